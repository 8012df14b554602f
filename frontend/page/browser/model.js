// Polls which model is served and shows its card. The card's author is not trusted: all of its content stays text.
// Gradio has a timer for polling, but it reloads the page, and loses captions, when one of its responses is lost.

import { servedModel } from "./api.js";
import { POLL_S, element, pairs } from "./messages.js";

const HUB = "https://huggingface.co";
const HUB_ID = /^\w[\w.-]{0,95}\/\w[\w.-]{0,95}$/;
const COMMIT = /^[0-9a-f]{40}$/;
const LINE = 200, PARAGRAPH = 600; // maximum characters shown
const of = (selector) => document.querySelector(selector);

let polling = false;

export function watchModel() {
  setInterval(poll, POLL_S * 1000);
  document.addEventListener("visibilitychange", poll);
  poll();
}

async function poll() {
  if (polling || document.hidden) return;
  polling = true;
  try {
    const card = await servedModel();
    if (!card || versionOf(card) !== of("#server .server").dataset.version) of("#refresh").click();
    if (card) show(card);
  } catch {
    // The page's own server is down. The last card stays.
  } finally {
    polling = false;
  }
}

// The same text as `data-version` in frontend/page/messages.py.
const versionOf = (card) => [card.id, card.revision, card.version, card.device, card.precision].join(" ");

function show(card) {
  const about = of("#about");
  if (about.dataset.version === versionOf(card)) return; // the visitor may be selecting text in it
  about.dataset.version = versionOf(card);
  about.hidden = false;
  const values = {
    Model: hubLink(card.id),
    Commit: commit(card),
    Version: cut(card.version, LINE),
    Device: card.device,
    Precision: `decoder ${card.precision}, encoder ${card.encoder_precision}`,
    Licence: stated(card.license, LINE),
    "Base model": card.base_model ? baseModels(card.base_model) : stated(""),
    "Intended use": stated(card.intended_use, PARAGRAPH),
  };
  about.querySelector("dl").replaceChildren(...pairs(values));
}

function commit({ id, revision }) {
  const parts = [element("code", cut(revision, LINE)), ...copyButton(revision)];
  if (!HUB_ID.test(id) || !COMMIT.test(revision)) return parts;
  const hub = link(`${HUB}/${id}/commit/${revision}`, "On the Hub");
  hub.ariaLabel = "This commit on the Hub";
  return [...parts, hub];
}

function copyButton(text) {
  if (!navigator.clipboard) return []; // browsers offer it only on localhost and over HTTPS
  const [button, status] = [element("button", "Copy"), element("span", "")];
  Object.assign(button, { type: "button", ariaLabel: "Copy the commit" });
  status.role = "status";
  button.addEventListener("click", async () => {
    const copied = navigator.clipboard.writeText(text);
    status.textContent = await copied.then(() => "Copied", () => "This browser does not allow copying");
    setTimeout(() => (status.textContent = ""), 3000);
  });
  return [button, status];
}

const baseModels = (names) => cut(names, LINE).split(", ").flatMap((name) => [", ", hubLink(name)]).slice(1);

const hubLink = (name) => (HUB_ID.test(name) ? link(`${HUB}/${name}`, name) : cut(name, LINE));

const stated = (text, limit) => (text ? cut(text, limit) : element("i", "not stated"));

function link(href, text) {
  return Object.assign(element("a", text), { href, target: "_blank", rel: "noopener noreferrer" });
}

// At most `limit` characters on one line, cut between words if the script separates words.
function cut(text, limit) {
  const characters = [...text.trim().replace(/\s+/g, " ")];
  if (characters.length <= limit) return characters.join("");
  return `${characters.slice(0, limit - 1).join("").replace(/\s\S{0,40}$/, "")}…`;
}
