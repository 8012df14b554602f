// The captions as files: a .txt for each image, and all of them as JSONL and as CSV.

import { unique } from "./items.js";
import { CSV_COLUMNS } from "./messages.js";
import { zipOf } from "./zip.js";

export function save(name, blob) {
  const href = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

export const stem = (path) => path.replace(/\.[^./]*$/, "");

export function archiveOf(items) {
  const stems = new Map();
  const key = (path) => stem(path).toLowerCase(); // a.jpg and A.png would share a.txt on many disks
  for (const { path } of items) stems.set(key(path), (stems.get(key(path)) || 0) + 1);
  const taken = new Set(["captions.jsonl", "captions.csv"]);
  const files = items.filter((item) => item.text).map(({ path, text }) => [
    unique(`${stems.get(key(path)) > 1 ? path : stem(path)}.txt`, taken),
    `${text}\n`,
  ]);
  const results = items
    .filter((item) => item.text || item.error)
    .map(({ path, text, details, error }) => ({ file: path, caption: text || null, details, error: text ? null : error }));
  const lines = results.map((result) => `${JSON.stringify(result)}\n`);
  const header = [...CSV_COLUMNS, "error"];
  const rows = results.map(({ details, error, ...named }) => {
    const values = { ...details, ...named, error: error?.code };
    return header.map((column) => cell(values[column]));
  });
  files.push(["captions.jsonl", lines.join("")]);
  files.push(["captions.csv", [header, ...rows].map((row) => `${row.join(",")}\r\n`).join("")]);
  return zipOf(files);
}

// A CSV cell as Python's csv module writes it, because the command line's captions.csv comes from there.
function cell(value) {
  const text = typeof value === "boolean" ? (value ? "True" : "False") : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
