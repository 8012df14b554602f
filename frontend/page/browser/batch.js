// The Batch tab: many images, each a request of its own, in a table that fills. What was captioned stays here until
// it is downloaded; one image's failure is its row's alone.

import { caption } from "./api.js";
import { parametersOf } from "./choice.js";
import { dropping } from "./image.js";
import { problem } from "./words.js";
import { filesOf, zipOf } from "./zip.js";

const AT_ONCE = 4; // a browser opens six connections to a host
const TRIES = 8; // while nobody answers: a replica that restarts loses nothing
const IMAGE_NAME = /\.(jpe?g|jfif|png|webp|gif|bmp|tiff?)$/i;
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
  dropping(of("#files"), async (dropped) => {
    const entries = [...dropped.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = [...dropped.files].map((file) => ({ path: file.name, file }));
    await add(entries.length ? (await Promise.all(entries.map((entry) => under(entry)))).flat() : files);
  });
  of("#download").addEventListener("click", download);
  of("#clear").addEventListener("click", () => {
    running?.abort();
    items = [];
    downloaded = true;
    of("#rows").replaceChildren();
    shown();
  });
  addEventListener("beforeunload", (event) => !downloaded && event.preventDefault());
  busy(false);
  shown();
}

async function under(entry, path = "") {
  const name = path + entry.name;
  if (entry.isFile) return [{ path: name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found.flat();
    for (const each of some) found.push(await under(each, `${name}/`));
  }
}

async function add(found) {
  of("#batch-problem").textContent = "";
  for (const { path, file } of found) {
    try {
      if (/\.zip$/i.test(path)) {
        for await (const { name, open } of filesOf(file)) {
          if (IMAGE_NAME.test(name) && !/(^|\/)(\.|__MACOSX\/)/.test(name)) row(name, open);
        }
      } else if (found.length === 1 || file.type.startsWith("image/") || IMAGE_NAME.test(path)) {
        row(path, async () => file);
      }
    } catch (error) {
      of("#batch-problem").textContent = `${path}: ${error.message}`;
    }
  }
  shown();
}

function row(path, open) {
  if (items.some((item) => item.path === path)) return;
  const line = document.createElement("tr");
  line.innerHTML = ROW;
  const [text, told] = [line.querySelector("textarea"), line.querySelector("[role]")];
  const item = { path, open, line, text, told, details: null, error: null };
  line.querySelector("b").textContent = path;
  item.text.ariaLabel = `Caption of ${path}`;
  item.text.addEventListener("input", () => (downloaded = false));
  line.querySelector("img").addEventListener("error", ({ target }) => target.classList.add("unseen"));
  of("#rows").append(line);
  items.push(item);
}

export async function captionAll(choice) {
  if (running) return;
  const mine = (running = new AbortController());
  const todo = items.filter((item) => !item.details);
  const run = { began: performance.now(), done: 0, failed: 0, total: todo.length };
  busy(true);
  const parameters = parametersOf(choice);
  const worker = async () => {
    for (let item; !mine.signal.aborted && (item = todo.shift()); progress(run)) {
      await one(item, parameters, mine.signal, run);
    }
  };
  progress(run);
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (running === mine) running = null;
  busy(false);
  progress(run, mine.signal.aborted ? "stopped" : "done");
}

async function one(item, parameters, signal, run) {
  item.error = null;
  item.told.replaceChildren("…");
  try {
    const file = await item.open();
    preview(item, file);
    item.details = await caption(new File([file], item.path.split("/").pop()), parameters, {
      signal,
      tries: TRIES,
      onText: (text) => (item.text.value = text),
    });
    downloaded = false;
    run.done++;
    item.told.replaceChildren(item.details.unsure ? "Unsure: please check." : "");
    item.line.classList.toggle("doubtful", Boolean(item.details.unsure));
  } catch (error) {
    item.text.value = "";
    item.told.replaceChildren();
    if (error.name === "AbortError") return;
    run.failed++;
    item.error = { code: error.code || "IMAGE_BROKEN", message: error.message };
    item.told.replaceChildren(problem(item.error));
  }
}

function preview(item, file) {
  const picture = item.line.querySelector("img");
  if (!picture.src) picture.src = URL.createObjectURL(file);
}

export function stopAll() {
  running?.abort();
}

function busy(is) {
  of("#start-batch").disabled = is;
  of("#stop-batch").disabled = !is;
}

function shown() {
  of("#batch").hidden = !items.length;
  of("#progress").value = 0;
  of("#progress-text").textContent = `${items.length} images`;
}

function progress(run, ended = "") {
  const finished = run.done + run.failed;
  const rate = finished / ((performance.now() - run.began) / 1000);
  const left = finished && !ended ? `${clock((run.total - finished) / rate)} left` : "";
  of("#progress").max = Math.max(run.total, 1);
  of("#progress").value = finished;
  of("#progress-text").textContent = [
    `${finished} of ${run.total}`,
    finished ? `${rate.toFixed(1)} images/s` : "",
    run.failed ? `${run.failed} failed` : "",
    left,
    ended,
  ].filter(Boolean).join(" · ");
}

function clock(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// Everything that there is so far: a .txt beside each image's name, and all as JSONL and as CSV.
function download() {
  const captioned = items.filter((item) => item.text.value);
  const stems = new Map();
  for (const { path } of items) stems.set(stem(path), (stems.get(stem(path)) || 0) + 1);
  const texts = captioned.map((item) => [
    `${stems.get(stem(item.path)) > 1 ? item.path : stem(item.path)}.txt`, // a.jpg and a.png would share a.txt
    `${item.text.value}\n`,
  ]);
  const told = items.filter((item) => item.text.value || item.error);
  const lines = told.map(({ path, text, details, error }) =>
    JSON.stringify({ file: path, caption: text.value || null, details, error }),
  );
  const rows = told.map(({ path, text, details, error }) =>
    [path, text.value, details?.model, details?.revision, details?.confidence, error?.code].map(cell).join(","),
  );
  texts.push(["captions.jsonl", lines.map((line) => `${line}\n`).join("")]);
  texts.push(["captions.csv", ["file,caption,model,revision,confidence,error", ...rows, ""].join("\r\n")]);
  const href = URL.createObjectURL(zipOf(texts));
  Object.assign(document.createElement("a"), { href, download: "captions.zip" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
  downloaded = true;
}

const stem = (path) => path.replace(/\.[^./]*$/, "");
const cell = (value) => (/[",\r\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : (value ?? ""));
