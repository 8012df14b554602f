// The page's buttons: Gradio calls `window.captioner` with what its components hold.

import { caption } from "./api.js";
import { captionAll, stopAll, watchBatch } from "./batch.js";
import { parametersOf } from "./choice.js";
import { image, watchImage } from "./image.js";
import { watchModel } from "./model.js";
import { details, note, problem } from "./words.js";

const of = (selector) => document.querySelector(selector);
let running = null;

function say(text) {
  const area = of("#caption textarea");
  area.value = text;
  area.dispatchEvent(new Event("input", { bubbles: true })); // so that Gradio knows it, for its copy button
}

function tell({ wrong = [], how = [] }) {
  of("#problem").replaceChildren(...wrong);
  of("#details").replaceChildren(...how);
}

function busy(is) {
  of("#start").disabled = is;
  of("#stop").disabled = !is;
}

async function write(choice) {
  const mine = (running = new AbortController());
  const isMine = () => running === mine;
  let text = "";
  busy(true);
  say("");
  tell({ how: [note("Looking at the image …")] });
  try {
    if (!image()) throw { code: "IMAGE_MISSING", message: "Drop, paste or choose one first." };
    const found = await caption(image(), parametersOf(choice), {
      signal: mine.signal,
      onText: (all) => isMine() && say((text = all)),
    });
    if (isMine()) tell({ how: details(found, text) });
  } catch (error) {
    if (!isMine()) return;
    tell(error.name === "AbortError" ? { how: [note("Stopped.")] } : { wrong: [problem(error)] });
  } finally {
    if (isMine()) {
      running = null;
      busy(false);
    }
  }
}

function anotherImage() {
  running?.abort();
  running = null;
  busy(false);
  say("");
  tell({});
}

function beginImage() {
  watchImage(anotherImage);
  busy(false);
  of("#caption textarea").ariaLabel = "Caption";
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && of("#start").offsetParent) of("#start").click();
  });
}

// Gradio renders a tab when it is first opened.
function once(selectors, begin) {
  const look = () => selectors.every(of) && (observer.disconnect(), begin());
  const observer = new MutationObserver(look);
  observer.observe(document, { childList: true, subtree: true });
  look();
}

window.captioner = { caption: write, stop: () => running?.abort(), captionAll, stopAll };
once(["#image img", "#caption textarea", "#start", "#stop"], beginImage);
once(["#files input", "#batch tbody", "#start-batch", "#stop-batch"], watchBatch);
once(["#about dl", "#server .server", "#look-again"], watchModel);
