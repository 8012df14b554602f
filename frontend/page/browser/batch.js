// The Batch tab: many images, one request for each, in a table. Captions stay in the browser until they are
// downloaded. An image that fails affects only its own row.

import { caption } from "./api.js";
import { parametersOf } from "./choice.js";
import { watchDrop } from "./image.js";
import { CSV_COLUMNS, isImage, problem } from "./messages.js";
import { fit } from "./shrink.js";
import { filesOf, zipOf } from "./zip.js";

const CONCURRENCY = 4; // a browser opens six connections to a host
const TRIES = 8; // long enough for a replica to restart
const ROW = `
  <td><img alt="" loading="lazy"></td>
  <td><b></b><textarea rows="1" placeholder=" "></textarea><div role="status"></div></td>`;
const of = (selector) => document.querySelector(selector);

let items = [];
let running = null;
let downloaded = true;

export function watchBatch() {
  const input = of("#files-file");
  input.addEventListener("change", async () => {
    await add([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
    input.value = "";
  });
  watchDrop(of("#files"), async (data) => {
    const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = [...data.files].map((file) => ({ path: file.name, file }));
    await add(entries.length ? (await Promise.all(entries.map((entry) => filesBelow(entry)))).flat() : files);
  });
  of("#download").addEventListener("click", download);
  of("#clear").addEventListener("click", () => {
    running?.abort();
    items = [];
    downloaded = true;
    of("#rows").replaceChildren();
    showCount();
  });
  addEventListener("beforeunload", (event) => !downloaded && event.preventDefault());
  setBusy(false);
  showCount();
}

async function filesBelow(entry, folder = "") {
  const path = folder + entry.name;
  if (entry.isFile) return [{ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 entries
    if (!part.length) return files.flat();
    for (const each of part) files.push(await filesBelow(each, `${path}/`));
  }
}

async function add(files) {
  showProblem("");
  for (const { path, file } of files) {
    try {
      if (/\.zip$/i.test(path)) {
        for await (const { name, open } of filesOf(file)) {
          if (isImage(name) && !/(^|\/)(\.|__MACOSX\/)/.test(name)) addRow(name, open);
        }
      } else if (files.length === 1 || file.type.startsWith("image/") || isImage(path)) {
        addRow(path, async () => file); // the server's error names an image format that is not supported
      }
    } catch (error) {
      showProblem(`${path}: ${error.message}`);
    }
  }
  showCount();
}

function addRow(path, open) {
  if (items.some((item) => item.path === path)) return;
  const line = document.createElement("tr");
  line.innerHTML = ROW;
  const [text, status] = [line.querySelector("textarea"), line.querySelector("[role]")];
  line.querySelector("b").textContent = path;
  text.ariaLabel = `Caption of ${path}`;
  text.addEventListener("input", () => (downloaded = false));
  line.querySelector("img").addEventListener("error", ({ target }) => target.classList.add("no-preview"));
  of("#rows").append(line);
  items.push({ path, open, line, text, status, details: null, error: null });
}

export async function captionAll(values) {
  if (running) return;
  const queue = items.filter((item) => !item.details);
  showProblem("");
  if (!items.length) return showProblem("Add images first.");
  if (!queue.length) return showProblem("Every image has a caption. Clear the list to start again.");
  const mine = (running = new AbortController());
  const run = { began: performance.now(), done: 0, failed: 0, total: queue.length };
  setBusy(true);
  const parameters = parametersOf(values);
  const worker = async () => {
    for (let item; !mine.signal.aborted && (item = queue.shift()); showProgress(run)) {
      await captionItem(item, parameters, mine.signal, run);
    }
  };
  showProgress(run);
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  if (running === mine) running = null;
  setBusy(false);
  showProgress(run, mine.signal.aborted ? "stopped" : "done");
}

async function captionItem(item, parameters, signal, run) {
  item.error = null;
  item.status.replaceChildren("…");
  try {
    const file = await item.open();
    showPreview(item, file);
    const fitted = await fit(new File([file], item.path.split("/").pop()));
    item.details = await caption(fitted, parameters, {
      signal,
      tries: TRIES,
      onText: (text) => (item.text.value = text),
    });
    downloaded = false;
    run.done++;
    const notes = [item.details.unsure && "Unsure: please check.", fitted.from && `Shrunk from ${fitted.from}.`];
    item.status.replaceChildren(notes.filter(Boolean).join(" "));
    item.line.classList.toggle("doubtful", Boolean(item.details.unsure));
  } catch (error) {
    item.text.value = "";
    item.status.replaceChildren();
    if (error.name === "AbortError") return;
    run.failed++;
    item.error = { code: error.code || "IMAGE_BROKEN", message: error.message };
    item.status.replaceChildren(problem(item.error));
  }
}

function showPreview(item, file) {
  const preview = item.line.querySelector("img");
  if (!preview.src) preview.src = URL.createObjectURL(file);
}

export function stopAll() {
  running?.abort();
}

function setBusy(busy) {
  of("#start-batch").disabled = busy;
  of("#stop-batch").disabled = !busy;
}

function showProblem(text) {
  of("#batch-problem").textContent = text;
}

function showCount() {
  of("#batch").hidden = !items.length;
  of("#progress").value = 0;
  of("#progress-text").textContent = items.length === 1 ? "1 image" : `${items.length} images`;
}

function showProgress(run, ended = "") {
  const finished = run.done + run.failed;
  const rate = finished / ((performance.now() - run.began) / 1000);
  const left = finished && !ended ? `${duration((run.total - finished) / rate)} left` : "";
  of("#progress").max = run.total;
  of("#progress").value = finished;
  of("#progress-text").textContent = [
    `${finished} of ${run.total}`,
    finished ? `${rate.toFixed(1)} images/s` : "",
    run.failed ? `${run.failed} failed` : "",
    left,
    ended,
  ].filter(Boolean).join(" · ");
}

function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// Saves the captions so far: a .txt for each image, and all of them as JSONL and as CSV.
function download() {
  const stems = new Map();
  for (const { path } of items) stems.set(stem(path), (stems.get(stem(path)) || 0) + 1);
  const files = items.filter((item) => item.text.value).map((item) => [
    `${stems.get(stem(item.path)) > 1 ? item.path : stem(item.path)}.txt`, // a.jpg and a.png would share a.txt
    `${item.text.value}\n`,
  ]);
  const results = items
    .filter((item) => item.text.value || item.error)
    .map(({ path, text, details, error }) => ({ file: path, caption: text.value || null, details, error }));
  const lines = results.map((result) => `${JSON.stringify(result)}\n`);
  const header = [...CSV_COLUMNS, "error"];
  const rows = results.map(({ details, error, ...named }) => {
    const values = { ...details, ...named, error: error?.code };
    return header.map((column) => cell(values[column]));
  });
  files.push(["captions.jsonl", lines.join("")]);
  files.push(["captions.csv", [header, ...rows].map((row) => `${row.join(",")}\r\n`).join("")]);
  const href = URL.createObjectURL(zipOf(files));
  Object.assign(document.createElement("a"), { href, download: "captions.zip" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
  downloaded = true;
}

const stem = (path) => path.replace(/\.[^./]*$/, "");

// A CSV cell as Python's csv module writes it, because the command line's captions.csv comes from there.
function cell(value) {
  const text = typeof value === "boolean" ? (value ? "True" : "False") : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
