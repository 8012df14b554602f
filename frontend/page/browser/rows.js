// The list of captions. A row far from what is visible has only its name, so that thousands of rows stay smooth.

import { element, problem } from "./messages.js";
import { forget, want } from "./thumbnails.js";

const NEAR = "800px 0px";
const PARTS = `
  <img alt=""><button type="button"></button>
  <textarea rows="2" placeholder="Write a caption"></textarea><div class="status"></div>`;

export class Rows {
  #list;
  #lines = new Map(); // item → its <li>
  #items = new WeakMap(); // <li> → its item
  #onType;
  #onWrite;
  #observer;

  // `onType(item, text)` is called when a person writes, `onWrite(item)` for the button of a row.
  constructor(list, { onType, onWrite }) {
    [this.#list, this.#onType, this.#onWrite] = [list, onType, onWrite];
    this.#observer = new IntersectionObserver((seen) => seen.forEach((each) => this.#onSeen(each)), {
      root: list,
      rootMargin: NEAR,
    });
    list.addEventListener("input", ({ target }) => this.#onType(this.#itemAt(target), target.value));
    list.addEventListener("click", ({ target }) => target.matches("button") && this.#onWrite(this.#itemAt(target)));
    list.addEventListener("keydown", (event) => this.#onKey(event));
  }

  add(items) {
    const lines = items.map((item) => {
      const line = element("li", "");
      line.append(element("b", item.path));
      this.#lines.set(item, line);
      this.#items.set(line, item);
      return line;
    });
    this.#list.append(...lines);
    for (const line of lines) this.#observer.observe(line);
  }

  // Shows what an item has now, if its row is near.
  update(item) {
    const line = this.#lines.get(item);
    const text = line?.querySelector("textarea");
    if (!text) return;
    const shown = item.draft ?? item.text;
    if (text.value !== shown) text.value = shown;
    const doubtful = Boolean(item.details?.unsure) && !item.byHand && !item.writing;
    line.classList.toggle("doubtful", doubtful);
    const [button, status] = [line.querySelector("button"), line.querySelector(".status")];
    button.textContent = item.error ? "Try again" : item.text ? "Again" : "Caption";
    button.ariaLabel = `${button.textContent}: ${item.path}`;
    button.disabled = Boolean(item.writing);
    const notes = [
      item.writing && "Writing …",
      doubtful && "Unsure: please check.",
      item.byHand && item.text && (item.details ? "Edited." : "Written by hand."),
      item.details?.image.shrunk_from && `Shrunk from ${item.details.image.shrunk_from}.`,
    ];
    status.replaceChildren(item.error && !item.writing ? problem(item.error) : notes.filter(Boolean).join(" "));
  }

  // Shows only the rows that `isShown` accepts; returns how many these are.
  filter(isShown) {
    let shown = 0;
    for (const [item, line] of this.#lines) {
      line.hidden = !isShown(item);
      shown += !line.hidden;
    }
    return shown;
  }

  clear() {
    for (const item of this.#lines.keys()) {
      forget(item);
      if (item.thumbnail) URL.revokeObjectURL(item.thumbnail);
    }
    this.#observer.disconnect();
    this.#lines.clear();
    this.#list.replaceChildren();
  }

  #itemAt(target) {
    return this.#items.get(target.closest("li"));
  }

  #onSeen({ target: line, isIntersecting, boundingClientRect }) {
    if (!line.isConnected) return;
    if (isIntersecting) return this.#fill(line);
    if (line.contains(document.activeElement) || line.hidden) return;
    forget(this.#items.get(line));
    line.style.minHeight = `${boundingClientRect.height}px`;
    line.replaceChildren(line.firstChild);
  }

  #fill(line) {
    if (line.childElementCount > 1) return;
    const item = this.#items.get(line);
    line.style.minHeight = "";
    line.insertAdjacentHTML("beforeend", PARTS);
    line.querySelector("textarea").ariaLabel = `Caption of ${item.path}`;
    want(item, (address) => {
      const preview = line.querySelector("img");
      if (address) preview?.setAttribute("src", address);
    });
    this.update(item);
  }

  // Alt with an arrow key goes to the caption below or above.
  #onKey(event) {
    if (!event.altKey || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    event.preventDefault();
    const step = event.key === "ArrowDown" ? "nextElementSibling" : "previousElementSibling";
    let line = event.target.closest("li")[step];
    while (line?.hidden) line = line[step];
    if (!line) return;
    this.#fill(line);
    line.scrollIntoView({ block: "nearest" });
    line.querySelector("textarea").focus();
  }
}
