// What is said of a caption: details and refusals. The words are frontend/words.py's; whatever is said is text.

const { headings, finishes, fields, look_s } = JSON.parse(document.querySelector("#captioner-words").textContent);
export { fields as FIELDS, look_s as LOOK_S };

export function element(tag, text, className = "") {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  if (className) made.className = className;
  return made;
}

// Names with what is told of each, a text or elements; names of which nothing is told are left out.
export function pairs(told) {
  return Object.entries(told).filter(([, what]) => what).map(([name, what]) => {
    const [pair, value] = [element("div", ""), element("dd", "")];
    value.append(...[what].flat());
    pair.append(element("dt", name), value);
    return pair;
  });
}

export function problem(error) {
  const box = element("div", "", "problem");
  const code = error.code || "INTERNAL";
  const sentence = error.message || String(error);
  box.append(
    element("strong", headings[code] || headings.INTERNAL),
    element("span", sentence[0].toUpperCase() + sentence.slice(1)),
    element("code", code),
  );
  return box;
}

export function note(text) {
  return element("p", text, "note");
}

export function details(found, text) {
  const times = found.timings_ms;
  const facts = {
    model: `${found.model} ${found.revision.slice(0, 7)}`,
    confidence: found.confidence === null ? "" : `${Math.round(found.confidence * 100)}%`,
    "first token": `${times.first_token.toFixed(0)} ms`,
    total: `${times.total.toFixed(0)} ms`,
    tokens: `${found.tokens}`,
    characters: `${[...text].length}`,
    finish: finishes[found.finish_reason],
    image: found.cache_hit ? "seen before" : `${found.image.format} ${found.image.width} × ${found.image.height}`,
    seed: `${found.seed}`,
  };
  const list = element("dl", "", "facts");
  list.append(...pairs(facts));
  const unsure = "Unsure: the main subject may be wrong. Please check this caption.";
  return found.unsure ? [element("p", unsure, "unsure"), list] : [list];
}
