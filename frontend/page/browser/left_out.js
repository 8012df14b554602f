// The files that the Batch tab left out, each with its reason.

import { counted, element } from "./messages.js";
import { suffixesOf } from "./sources.js";

const LISTED = 200;
const of = (selector) => document.querySelector(selector);
let files = []; // of { path, reason }

export function leaveOut(more) {
  files.push(...more);
  show();
}

export function clearLeftOut() {
  files = [];
  show();
}

// "3 files left out (.jxl, .md)", or "" for none.
export function leftOutText() {
  if (!files.length) return "";
  const suffixes = suffixesOf(files.map(({ path }) => path));
  return `${counted(files.length, "file")} left out${suffixes && ` (${suffixes})`}`;
}

function show() {
  of("#left-out").hidden = !files.length;
  of("#left-out summary").textContent = leftOutText();
  const lines = files.slice(0, LISTED).map(({ path, reason }) => `${path}: ${reason}`);
  if (files.length > LISTED) lines.push(`and ${files.length - LISTED} more`);
  of("#left-out ul").replaceChildren(...lines.map((line) => element("li", line)));
}
