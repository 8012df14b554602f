// The page's buttons. Gradio calls `window.captioner` with the values of its components.

import { caption } from "./api.js";
import { captionAll, stopAll, watchBatch } from "./batch.js";
import { parametersOf } from "./choice.js";
import { image, watchImage } from "./image.js";
import { details, note, problem } from "./messages.js";
import { watchModel } from "./model.js";

const of = (selector) => document.querySelector(selector);
let running = null;

function setCaption(text) {
  const area = of("#caption textarea");
  area.value = text;
  area.dispatchEvent(new Event("input", { bubbles: true })); // Gradio's copy button needs to know it
}

function show({ errors = [], results = [] }) {
  of("#problem").replaceChildren(...errors);
  of("#details").replaceChildren(...results);
}

function setBusy(busy) {
  of("#start").disabled = busy;
  of("#stop").disabled = !busy;
}

async function captionImage(values) {
  const mine = (running = new AbortController());
  const isMine = () => running === mine;
  let text = "";
  setBusy(true);
  setCaption("");
  show({ results: [note("Looking at the image …")] });
  try {
    if (!image()) throw { code: "IMAGE_MISSING", message: "Choose, drop or paste one first." };
    const result = await caption(await image(), parametersOf(values), {
      signal: mine.signal,
      onText: (all) => isMine() && setCaption((text = all)),
    });
    if (isMine()) show({ results: details(result, text) });
  } catch (error) {
    if (!isMine()) return;
    show(error.name === "AbortError" ? { results: [note("Stopped.")] } : { errors: [problem(error)] });
  } finally {
    if (isMine()) {
      running = null;
      setBusy(false);
    }
  }
}

function onImageChange() {
  running?.abort();
  running = null;
  setBusy(false);
  setCaption("");
  show({});
}

function startImageTab() {
  watchImage(onImageChange);
  setBusy(false);
  of("#caption textarea").ariaLabel = "Caption";
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && of("#start").offsetParent) of("#start").click();
  });
}

// Calls `start` when all elements exist: Gradio renders a tab when it is first opened.
function whenRendered(selectors, start) {
  const check = () => selectors.every(of) && (observer.disconnect(), start());
  const observer = new MutationObserver(check);
  observer.observe(document, { childList: true, subtree: true });
  check();
}

window.captioner = { caption: captionImage, stop: () => running?.abort(), captionAll, stopAll };
whenRendered(["#image img", "#caption textarea", "#start", "#stop"], startImageTab);
whenRendered(["#files input", "#batch tbody", "#start-batch", "#stop-batch"], watchBatch);
whenRendered(["#about dl", "#server .server", "#refresh"], watchModel);
