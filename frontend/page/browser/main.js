// The page's buttons. Gradio calls `window.captioner` with the values of its components.

import { caption } from "./api.js";
import { captionAll, stopAll, watchBatch } from "./batch.js";
import { giveValues, parametersOf, warmer } from "./choice.js";
import { save, stem } from "./download.js";
import { image, imageName, watchImage } from "./image.js";
import { remember, watchChoices } from "./memory.js";
import { details, note, problem } from "./messages.js";
import { watchModel } from "./model.js";
import { drawRegions } from "./regions.js";
import { addTake, clearTakes, keepText, watchTakes } from "./takes.js";

const of = (selector) => document.querySelector(selector);
let running = null;

function setCaption(text) {
  const area = of("#caption textarea");
  area.value = text;
  area.dispatchEvent(new Event("input", { bubbles: true })); // Gradio's copy button needs to know it
}

// `said` is for screen readers: a caption once it has ended, not at each token.
// `result` has the details of the caption that is shown.
function show({ errors = [], results = [], said = "", result = null }) {
  of("#problem").replaceChildren(...errors);
  if (errors.length) of("#problem").scrollIntoView({ block: "nearest" });
  of("#details").replaceChildren(...results);
  drawRegions(result);
  of("#said").textContent = said;
}

function setBusy(busy) {
  for (const name of ["#start", "#again"]) of(name).disabled = busy;
  of("#stop").disabled = !busy;
}

async function captionImage(parameters) {
  const mine = (running = new AbortController());
  const isMine = () => running === mine;
  let text = "";
  setBusy(true);
  keepText(of("#caption textarea").value);
  setCaption("");
  show({ results: [note("Looking at the image …")], said: "Looking at the image" });
  try {
    if (!image()) throw { code: "IMAGE_MISSING", message: "Choose, drop or paste one first." };
    const result = await caption(await image(), parameters, {
      signal: mine.signal,
      onText: (all) => isMine() && setCaption((text = all)),
    });
    if (!isMine()) return;
    const shown = details(result, text);
    addTake(text, shown, result);
    const unsure = result.unsure ? " The model is unsure: please check." : "";
    show({ results: shown, said: `Caption: ${text}${unsure}`, result });
  } catch (error) {
    if (!isMine()) return;
    const stopped = error.name === "AbortError";
    if (stopped) addTake(text, [note("Stopped.")]);
    show(stopped ? { results: [note("Stopped.")], said: "Stopped." } : { errors: [problem(error)] });
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
  clearTakes();
  setCaption("");
  show({});
}

function startImageTab() {
  watchImage(onImageChange);
  watchTakes(({ text, shown, result }) => {
    setCaption(text);
    show({ results: shown, result });
  });
  setBusy(false);
  of("#caption textarea").ariaLabel = "Caption";
  of("#save").addEventListener("click", () => {
    const text = of("#caption textarea").value;
    if (text) save(`${stem(imageName()) || "caption"}.txt`, new Blob([`${text}\n`], { type: "text/plain" }));
  });
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

window.captioner = {
  caption: (values) => captionImage(parametersOf(values)),
  again: (values) => captionImage(warmer(parametersOf(values))),
  stop: () => running?.abort(),
  captionAll,
  stopAll,
  giveValues,
  remember,
};
whenRendered(["#image img", "#caption textarea", "#start", "#again", "#stop", "#save", "#takes ol"], startImageTab);
whenRendered(["#files input", "#rows", "#replace form", "#start-batch", "#stop-batch"], watchBatch);
whenRendered(["#about dl", "#server .server", "#refresh"], watchModel);
whenRendered(["#choice", "#forget"], watchChoices);
