// What was chosen and typed on the right, remembered in this browser only, until it is forgotten with one click.

import { NAMES } from "./choice.js";

const KEY = "captioner-choices";
const of = (selector) => document.querySelector(selector);
let touched = false; // by the visitor; Gradio reports its own changes too

export function watchChoices() {
  for (const name of ["input", "pointerdown", "keydown"]) {
    of("#choice").addEventListener(name, ({ target }) => (touched ||= !target.closest("#memory")), { capture: true });
  }
  of("#forget").addEventListener("click", () => {
    touched = false;
    store(null);
    of("#forgotten").textContent = "Forgotten. New tabs start with the defaults.";
  });
}

export function remember(values) {
  if (!touched) return;
  of("#forgotten").textContent = "";
  store(Object.fromEntries(NAMES.map((name, index) => [name, values[index]])));
}

// Returns the values to start with: those of `values` that are not remembered stay. An edited prompt is remembered,
// one that follows the choices is not.
export function recall(values) {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    const edited = kept.prompt && kept.prompt !== kept.rendered;
    if (!edited) delete kept.prompt;
    delete kept.rendered;
    return NAMES.map((name, index) => (isValue(name, kept[name]) ? kept[name] : values[index]));
  } catch {
    return values;
  }
}

const isValue = (name, value) =>
  name === "extras" ? Array.isArray(value) && value.every((each) => typeof each === "string") : typeof value === "string";

function store(values) {
  try {
    if (values) localStorage.setItem(KEY, JSON.stringify(values));
    else localStorage.removeItem(KEY);
  } catch {
    // A private window, or a browser that keeps nothing.
  }
}
