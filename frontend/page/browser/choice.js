// What Gradio's components hold when a button is pressed, as the API's parameters.

import { FIELDS } from "./words.js";

export function parametersOf([rendered, prompt, style, length, extras, name, limit, ...fields]) {
  const own = prompt && prompt !== rendered;
  const values = own ? { prompt } : { style, length, name, extras: extras?.length ? JSON.stringify(extras) : "" };
  values.max_characters = limit;
  FIELDS.forEach((field, at) => (values[field] = fields[at]));
  return Object.fromEntries(
    Object.entries(values)
      .map(([key, value]) => [key, String(value ?? "").trim()])
      .filter(([, value]) => value !== ""),
  );
}
