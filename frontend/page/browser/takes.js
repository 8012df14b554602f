// The captions of the one image: the one in the text field, and those before it, to choose from.

import { element } from "./messages.js";

const of = (selector) => document.querySelector(selector);
let takes = []; // of { text, shown, result }: `shown` are the elements with the details in `result`
let chosen = null;
let onChoose = () => {};

export function watchTakes(choose) {
  onChoose = choose;
  of("#takes ol").addEventListener("click", ({ target }) => {
    const index = [...of("#takes ol").children].indexOf(target.closest("li"));
    if (index >= 0) select(takes[index]);
  });
}

export function clearTakes() {
  [takes, chosen] = [[], null];
  draw();
}

// Keeps what the text field has now, before another caption is written into it.
export function keepText(text) {
  if (chosen && text) chosen.text = text;
  else if (text) takes.push({ text, shown: [], result: null });
  chosen = null;
  draw();
}

// Adds a caption that has ended. A caption that is there already is not listed twice.
export function addTake(text, shown, result = null) {
  if (!text) return;
  takes = takes.filter((take) => take.text !== text);
  chosen = { text, shown, result };
  takes.push(chosen);
  draw();
}

function select(take) {
  if (chosen) chosen.text = of("#caption textarea").value || chosen.text;
  chosen = take;
  draw();
  onChoose(take);
}

function draw() {
  of("#takes").hidden = takes.length < 2;
  of("#takes ol").replaceChildren(...takes.map((take) => {
    const [line, button] = [element("li", ""), element("button", take.text)];
    Object.assign(button, { type: "button", ariaPressed: String(take === chosen) });
    line.append(button);
    return line;
  }));
}
