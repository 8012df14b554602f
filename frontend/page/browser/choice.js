// The values of Gradio's components as parameters of the API.

import { FIELDS } from "./messages.js";

export function parametersOf([rendered, prompt, style, length, extras, name, limit, ...fields]) {
  const edited = prompt && prompt !== rendered;
  const values = edited ? { prompt } : { style, length, name, extras: extras?.length ? JSON.stringify(extras) : "" };
  values.max_characters = limit;
  FIELDS.forEach((field, index) => (values[field] = fields[index]));
  return Object.fromEntries(
    Object.entries(values)
      .map(([key, value]) => [key, String(value ?? "").trim()])
      .filter(([, value]) => value !== ""),
  );
}
