// Which model is served, asked again and again, and what its card says. Strangers write cards: all of it stays text.
// Gradio has a timer for this, but reloads the page, captions and all, where one of its answers is lost.

import { servedModel } from "./api.js";
import { LOOK_S, element, pairs } from "./words.js";

const HUB = "https://huggingface.co";
const HUB_ID = /^\w[\w.-]{0,95}\/\w[\w.-]{0,95}$/;
const COMMIT = /^[0-9a-f]{40}$/;
const LINE = 200, PARAGRAPH = 600; // the most characters that are shown
const of = (selector) => document.querySelector(selector);

let looking = false;

export function watchModel() {
  setInterval(look, LOOK_S * 1000);
  document.addEventListener("visibilitychange", look);
  look();
}

async function look() {
  if (looking || document.hidden) return;
  looking = true;
  try {
    const card = await servedModel();
    if (!card || served(card) !== of("#server .server").dataset.served) of("#look-again").click();
    if (card) tell(card);
  } catch {
    // The page's own server is away; what was said stays.
  } finally {
    looking = false;
  }
}

// As frontend/words.py writes it beside the model's name.
const served = (card) => [card.id, card.revision, card.version, card.device, card.precision].join(" ");

function tell(card) {
  const about = of("#about");
  if (about.dataset.served === served(card)) return; // somebody may be selecting text there
  about.dataset.served = served(card);
  about.hidden = false;
  const told = {
    Model: onHub(card.id),
    Commit: commit(card),
    Version: cut(card.version, LINE),
    Device: card.device,
    Precision: `decoder ${card.precision}, encoder ${card.encoder_precision}`,
    Licence: stated(card.license, LINE),
    "Base model": card.base_model ? bases(card.base_model) : stated(""),
    "Intended use": stated(card.intended_use, PARAGRAPH),
  };
  about.querySelector("dl").replaceChildren(...pairs(told));
}

function commit({ id, revision }) {
  const told = [element("code", cut(revision, LINE)), ...copying(revision)];
  if (!HUB_ID.test(id) || !COMMIT.test(revision)) return told;
  const hub = link(`${HUB}/${id}/commit/${revision}`, "On the Hub");
  hub.ariaLabel = "This commit on the Hub";
  return [...told, hub];
}

function copying(text) {
  if (!navigator.clipboard) return []; // only pages on this machine or behind TLS have it
  const [button, told] = [element("button", "Copy"), element("span", "")];
  Object.assign(button, { type: "button", ariaLabel: "Copy the commit" });
  told.role = "status";
  button.addEventListener("click", async () => {
    const write = navigator.clipboard.writeText(text);
    told.textContent = await write.then(() => "Copied", () => "This browser does not let it be copied");
    setTimeout(() => (told.textContent = ""), 3000);
  });
  return [button, told];
}

const bases = (names) => cut(names, LINE).split(", ").flatMap((name) => [", ", onHub(name)]).slice(1);

const onHub = (name) => (HUB_ID.test(name) ? link(`${HUB}/${name}`, name) : cut(name, LINE));

const stated = (text, most) => (text ? cut(text, most) : element("i", "not stated"));

function link(href, text) {
  return Object.assign(element("a", text), { href, target: "_blank", rel: "noopener noreferrer" });
}

// Whole words of a text, if its script has such, on one line.
function cut(text, most) {
  const characters = [...text.trim().replace(/\s+/g, " ")];
  if (characters.length <= most) return characters.join("");
  return `${characters.slice(0, most - 1).join("").replace(/\s\S{0,40}$/, "")}…`;
}
