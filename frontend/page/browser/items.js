// The rows of the Batch tab: images, their captions, and the changes that can be undone. It knows no element.

const KEPT = ["text", "byHand", "settings", "details", "error"]; // what Undo brings back

export class Item {
  // `path` is unique; `source` is the path as it came; `identity` is equal for equal files; `open()` returns the content.
  constructor({ path, source, identity, open }) {
    Object.assign(this, { path, source, identity, open });
    Object.assign(this, { text: "", byHand: false, settings: "", details: null, error: null });
    Object.assign(this, { draft: null, writing: null, thumbnail: null });
  }

  type(text) {
    this.writing?.abort(); // what a person writes is kept
    Object.assign(this, { text, byHand: true, error: null, draft: null });
  }
}

export const FILTERS = {
  all: () => true,
  failed: (item) => Boolean(item.error),
  unsure: (item) => Boolean(item.details?.unsure && !item.byHand),
  edited: (item) => item.byHand && item.text !== "",
  "without a caption": (item) => item.text === "",
};

// A name that `taken` does not have yet in any case, with a number before its suffix if need be. Adds it to `taken`.
export function unique(name, taken) {
  const [, stem, suffix] = name.match(/^(.*?)(\.[^./]*)?$/s);
  let free = name;
  for (let number = 2; taken.has(free.toLowerCase()); number++) free = `${stem} (${number})${suffix ?? ""}`;
  taken.add(free.toLowerCase());
  return free;
}

// Steps that can be undone, the last one first.
export class History {
  #steps = [];

  // Returns a step, which is undone as one. It counts once an item is added to it, and that comes before the change.
  begin(label) {
    const step = { label, before: new Map() };
    const add = (item) => {
      if (!step.before.size) this.#steps.push(step);
      if (!step.before.has(item)) step.before.set(item, Object.fromEntries(KEPT.map((name) => [name, item[name]])));
    };
    return { add };
  }

  // Typing in one row is one step.
  typing(item) {
    const last = this.#steps.at(-1);
    if (last?.label !== `edit of ${item.path}`) this.begin(`edit of ${item.path}`).add(item);
  }

  get label() {
    return this.#steps.at(-1)?.label ?? "";
  }

  undo() {
    const before = this.#steps.pop()?.before ?? new Map();
    for (const [item, values] of before) {
      item.writing?.abort();
      Object.assign(item, values, { draft: null });
    }
    return [...before.keys()];
  }

  clear() {
    this.#steps = [];
  }
}

export const count = (items, text) => items.reduce((sum, item) => sum + (item.text.split(text).length - 1), 0);

// Replaces a text in all captions and returns the changed items.
export function replaceAll(items, text, by, history) {
  const step = history.begin(`replacement of “${text}”`);
  const changed = items.filter((item) => item.text.includes(text));
  for (const item of changed) {
    step.add(item);
    item.type(item.text.replaceAll(text, () => by));
  }
  return changed;
}
