// Results and errors as DOM elements. The tables come from frontend/page/messages.py. All content is text, never HTML.

const data = JSON.parse(document.querySelector("#captioner-messages").textContent);
export const FIELDS = data.fields;
export const CSV_COLUMNS = data.csv_columns;
export const POLL_S = data.poll_s;
export const IMAGE_URLS = data.image_urls; // whether the server fetches images by address
export const LIMITS = data.limits; // of an image: bytes, pixels, px of a side

// Whether a path is hidden, or in a folder that is not the user's.
export const isHidden = (path) => path.split("/").some((part) => part.startsWith(".") || data.system_folders.includes(part));

// Whether a file name has an image suffix.
export const isImage = (name) => data.image_suffixes.some((suffix) => name.toLowerCase().endsWith(suffix));

// "1 image", "2 images"
export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export function element(tag, text, className = "") {
  const created = Object.assign(document.createElement(tag), { textContent: text });
  if (className) created.className = className;
  return created;
}

// The terms and values of a <dl>. A value is a text, an element or a list of these; an empty value is omitted.
export function pairs(values) {
  return Object.entries(values).filter(([, value]) => value).map(([name, value]) => {
    const [pair, dd] = [element("div", ""), element("dd", "")];
    dd.append(...[value].flat());
    pair.append(element("dt", name), dd);
    return pair;
  });
}

export function problem(error) {
  const box = element("div", "", "problem");
  const code = error.code || "INTERNAL";
  const message = error.message || String(error);
  box.append(
    element("strong", data.headings[code] || data.headings.INTERNAL),
    element("span", message[0].toUpperCase() + message.slice(1)),
    element("code", code),
  );
  return box;
}

export function note(text) {
  return element("p", text, "note");
}

export function details(result, text) {
  const { format, width, height } = result.image;
  const times = result.timings_ms;
  const facts = {
    model: `${result.model} ${result.revision.slice(0, 7)}`,
    confidence: result.confidence === null ? "" : `${Math.round(result.confidence * 100)}%`,
    "first token": `${times.first_token.toFixed(0)} ms`,
    total: `${times.total.toFixed(0)} ms`,
    tokens: `${result.tokens}`,
    characters: `${[...text].length}`,
    finish: data.finish_reasons[result.finish_reason],
    image: `${format} ${width} × ${height}${result.cache_hit ? " (cached)" : ""}`,
    seed: `${result.seed}`,
  };
  const list = element("dl", "", "facts");
  list.append(...pairs(facts));
  const unsure = "Unsure: the main subject may be wrong. Please check this caption.";
  return result.unsure ? [element("p", unsure, "unsure"), list] : [list];
}
