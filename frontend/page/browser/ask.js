// A question in a dialog.

import { element } from "./messages.js";

// Returns the key of the chosen answer, or "" for Cancel and Escape. `answers`: key → the button's text.
export function ask(question, answers) {
  const dialog = element("dialog", "", "ask");
  const form = element("form", "", "tools");
  const text = Object.assign(element("p", question), { id: "ask-text" });
  form.method = "dialog";
  for (const [value, label] of Object.entries({ ...answers, "": "Cancel" })) {
    form.append(Object.assign(element("button", label), { value }));
  }
  dialog.setAttribute("aria-labelledby", text.id);
  dialog.append(text, form);
  document.querySelector(".gradio-container").append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}
