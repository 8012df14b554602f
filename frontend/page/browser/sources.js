// What was chosen or dropped: files, folders and zip archives. Everything that is left out has a reason.

import { isHidden, isImage } from "./messages.js";
import { filesOf } from "./zip.js";

export function chosen(input) {
  return [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

// Returns the files of a drop as { path, file }, or { path, reason } for what cannot be read.
export async function dropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...data.files].map((file) => ({ path: file.name, file }));
  const files = [];
  for (const entry of entries) for await (const each of below(entry)) files.push(each);
  return files;
}

async function* below(entry, folder = "") {
  const path = folder + entry.name;
  try {
    if (entry.isFile) return yield { path, file: await new Promise((give, fail) => entry.file(give, fail)) };
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((give, fail) => reader.readEntries(give, fail)); // at most 100 entries
      if (!part.length) return;
      for (const each of part) yield* below(each, `${path}/`);
    }
  } catch (error) {
    yield { path, reason: `it cannot be read: ${error.message}` };
  }
}

// Yields the images as { path, identity, open }, and { path, reason } for each file that is left out.
export async function* images(files) {
  for (const { path, file, reason } of files) {
    if (reason) yield { path, reason };
    else if (/\.zip$/i.test(path) && !isHidden(path)) yield* inside(path, file);
    else {
      const against = reasonAgainst(path, file.type);
      // A single file is a row in any case: the server's error names its format.
      if (against && files.length > 1) yield { path, reason: against };
      else yield { path, identity: `${file.size}:${file.lastModified}`, open: async () => file };
    }
  }
}

async function* inside(archive, file) {
  try {
    for await (const { name, identity, open } of filesOf(file)) {
      const reason = reasonAgainst(name, "");
      yield reason ? { path: `${archive}/${name}`, reason } : { path: name, identity, open };
    }
  } catch (error) {
    yield { path: archive, reason: error.message, broken: true };
  }
}

function reasonAgainst(path, type) {
  if (isHidden(path)) return "a hidden file, or in a folder of the system";
  const named = isImage(path) || (type.startsWith("image/") && !suffixesOf([path]));
  return named ? "" : "not an image format that is read here";
}

// The suffixes of some files, each once: ".jxl, .md".
export function suffixesOf(paths) {
  return [...new Set(paths.map((path) => path.match(/[^/](\.[^./]+)$/)?.[1].toLowerCase()).filter(Boolean))].join(", ");
}
