// The values of Gradio's components as parameters of the API.

import { FIELDS } from "./messages.js";

export const NAMES = ["rendered", "prompt", "style", "length", "extras", "name", "language", "limit", ...FIELDS];
const WARMTH = { temperature: "0.7", top_p: "0.9" };

let give = () => {};

export function parametersOf([rendered, prompt, style, length, extras, name, language, limit, ...fields]) {
  const edited = prompt && prompt !== rendered;
  const choice = { style, length, name, language, extras: extras?.length ? JSON.stringify(extras) : "" };
  const values = edited ? { prompt } : choice; // the sentence about the language is in the prompt
  values.max_characters = limit;
  FIELDS.forEach((field, index) => (values[field] = fields[index]));
  return Object.fromEntries(
    Object.entries(values)
      .map(([key, value]) => [key, String(value ?? "").trim()])
      .filter(([, value]) => value !== ""),
  );
}

// Parameters that give another caption each time: sampled, with a new seed. A temperature that was chosen is kept.
export function warmer({ seed, num_beams, candidates, ...parameters }) {
  return Number(parameters.temperature) ? parameters : { ...parameters, ...WARMTH };
}

// Gradio gives a component's value only to an event of its own, so this clicks a hidden button.
export function currentValues() {
  return new Promise((resolve) => {
    give = resolve;
    document.querySelector("#values").click();
  });
}

export const giveValues = (values) => give(values);
