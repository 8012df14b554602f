// The Batch tab: many images, one request for each, in a list. Captions stay in the browser until they are
// downloaded. An image that fails affects only its own row, and what a person wrote is not written over unasked.

import { caption } from "./api.js";
import { ask } from "./ask.js";
import { currentValues, parametersOf, warmer } from "./choice.js";
import { archiveOf, save } from "./download.js";
import { watchDrop } from "./image.js";
import { FILTERS, History, Item, count, replaceAll, unique } from "./items.js";
import { clearLeftOut, leaveOut, leftOutText } from "./left_out.js";
import { counted } from "./messages.js";
import { Rows } from "./rows.js";
import { Run } from "./run.js";
import { chosen, dropped, images } from "./sources.js";

const MAX_ROWS = 50_000; // a zip archive without extensions has up to 65,535 files
const COUNT_MS = 100; // between counts of the rows, each of which looks at all of them
const of = (selector) => document.querySelector(selector);

let items = [];
let saved = true;
let run = null;
let counting = 0;
let rows;
const names = new Set();
const history = new History();

export function watchBatch() {
  rows = new Rows(of("#rows"), { onType, onWrite });
  const input = of("#files-file");
  input.addEventListener("change", async () => {
    const files = chosen(input);
    input.value = "";
    await add(files);
  });
  watchDrop(of("#files"), async (data) => add(await dropped(data)));
  of("#download").addEventListener("click", () => {
    save("captions.zip", archiveOf(items));
    saved = true;
  });
  of("#undo").addEventListener("click", undo);
  of("#clear").addEventListener("click", clear);
  of("#filter").append(...Object.keys(FILTERS).map((name) => new Option(name, name)));
  of("#filter").addEventListener("change", filter);
  of("#find").addEventListener("input", showFound);
  of("#replace form").addEventListener("submit", (event) => {
    event.preventDefault();
    replace();
  });
  document.addEventListener("keydown", (event) => {
    const inText = event.target.matches?.("textarea, input");
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || inText) return;
    if (of("#batch").offsetParent && history.label) undo();
  });
  addEventListener("beforeunload", (event) => (run || !saved) && event.preventDefault());
  setBusy(false);
  show();
}

async function add(files) {
  showProblem("");
  const known = new Set(items.map(({ source, identity }) => `${source} ${identity}`));
  const [added, leftOut] = [[], []];
  for await (const { path, identity, open, reason, broken } of images(files)) {
    const again = known.has(`${path} ${identity}`);
    const full = items.length + added.length >= MAX_ROWS;
    const against = reason || (again && "in the list already") || (full && `more than ${MAX_ROWS} images`);
    if (against) leftOut.push({ path, reason: against });
    if (broken) showProblem(`${path}: ${reason}`);
    if (!against) added.push(new Item({ path: unique(path, names), source: path, identity, open }));
  }
  items.push(...added);
  rows.add(added);
  leaveOut(leftOut);
  show();
  showCount();
  say([counted(items.length, "image"), leftOutText()].filter(Boolean).join(", "));
}

function onType(item, text) {
  history.typing(item);
  item.type(text);
  saved = false;
  rows.update(item);
  show();
}

// The button of a row: its caption once more, or another one if it has one.
async function onWrite(item) {
  const parameters = parametersOf(await currentValues());
  const settings = JSON.stringify(parameters);
  start([{ item, parameters: item.text ? warmer(parameters) : parameters, settings }], `new caption of ${item.path}`);
}

export async function captionAll(values) {
  if (run) return;
  showProblem("");
  if (!items.length) return showProblem("Add images first.");
  const parameters = parametersOf(values);
  const settings = JSON.stringify(parameters);
  const empty = items.filter((item) => !item.text);
  const own = items.filter((item) => item.text && item.byHand);
  const other = items.filter((item) => item.text && !item.byHand && item.settings !== settings);
  const begin = (queue) => start(queue.map((item) => ({ item, parameters, settings })), "captions written anew");
  if (!other.length && empty.length) return begin(empty);
  if (!other.length) return showProblem("Every image has a caption. Choose other settings, or Again in a row.");
  const kept = own.length ? ` ${counted(own.length, "caption")} of your own will stay.` : "";
  const question = `${counted(other.length, "caption")} came from other settings and will be written anew.${kept}`;
  const choice = await ask(`${question} Undo brings the old ones back.`, {
    anew: `Write ${other.length + empty.length} captions`,
    ...(empty.length ? { empty: `Only the ${empty.length} without one` } : {}),
    ...(own.length ? { all: `All, also my ${own.length}` } : {}),
  });
  if (choice === "anew") begin([...empty, ...other]);
  if (choice === "empty") begin(empty);
  if (choice === "all") begin([...empty, ...other, ...own]);
}

function start(jobs, label) {
  if (run) return run.first(jobs);
  const step = history.begin(label);
  const mine = (run = new Run(jobs, {
    write: caption,
    before: (item) => item.text && step.add(item),
    changed: (item) => rows.update(item),
    ended: (item) => {
      saved &&= !item.text;
      show();
    },
    say,
  }));
  setBusy(true);
  mine.finished.then(() => {
    run = null;
    setBusy(false);
    filter();
  });
}

export function stopAll() {
  run?.stop();
}

function undo() {
  const changed = history.undo();
  for (const item of changed) rows.update(item);
  saved = false;
  filter();
  say(`${counted(changed.length, "caption")} as before`);
}

function replace() {
  const [text, by] = [of("#find").value, of("#replacement").value];
  const changed = text ? replaceAll(items, text, by, history) : [];
  for (const item of changed) rows.update(item);
  if (changed.length) saved = false;
  filter();
  of("#found").textContent = `replaced in ${counted(changed.length, "caption")}`;
}

async function clear() {
  const written = items.filter((item) => item.text).length;
  const question = `${counted(written, "caption")} will be lost: they are not downloaded.`;
  if (!saved && written && !(await ask(question, { clear: "Clear the list" }))) return;
  run?.stop();
  rows.clear();
  history.clear();
  names.clear();
  [items, saved] = [[], true];
  clearLeftOut();
  of("#filter").value = "all";
  filter();
  showCount();
}

function filter() {
  const shown = rows.filter(FILTERS[of("#filter").value]);
  of("#none").hidden = shown > 0;
  show();
}

function show() {
  of("#batch").hidden = !items.length;
  of("#undo").disabled = !history.label;
  of("#undo").title = history.label && `Undo the ${history.label}`;
  counting ||= setTimeout(showCounts, COUNT_MS);
}

function showCounts() {
  counting = 0;
  for (const option of of("#filter").options) {
    option.textContent = `${option.value} (${items.filter(FILTERS[option.value]).length})`;
  }
}

function showCount() {
  if (run) return;
  of("#progress").value = 0;
  of("#progress-text").textContent = counted(items.length, "image");
}

function showFound() {
  const text = of("#find").value;
  of("#found").textContent = text ? `${count(items, text)} found` : "";
}

function setBusy(busy) {
  of("#start-batch").disabled = busy;
  of("#stop-batch").disabled = !busy;
}

function showProblem(text) {
  of("#batch-problem").textContent = text;
}

function say(text) {
  of("#batch-said").textContent = text;
}
