// The API as the browser uses it: one request a caption, its one answer an event stream; and the served model's card.

const CAPTIONS = new URL("../v1/captions", import.meta.url);
const MODELS = new URL("../v1/models", import.meta.url);
const AWAY = new Set([502, 503, 504]); // a replica or the way to it; another may answer

export class Refused extends Error {
  constructor(code, message, away = false, waitSeconds = 0) {
    super(message);
    Object.assign(this, { code, away, waitSeconds });
  }
}

// The card; null while no model is served. Fails where nobody answers at all.
export async function servedModel() {
  const answer = await fetch(MODELS, { cache: "no-store" });
  return answer.ok ? (await answer.json()).data[0] : null;
}

// Calls `onText` with all the text so far and gives the details. Tries again while nobody answers.
export async function caption(file, parameters, { signal, onText, tries = 2 }) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask(file, parameters, signal, onText);
    } catch (error) {
      if (!error.away || attempt >= tries) throw error;
      onText("");
      await pause(Math.max(error.waitSeconds, Math.min(2 ** attempt / 4, 8)) * (0.75 + Math.random() / 2), signal);
    }
  }
}

async function ask(file, parameters, signal, onText) {
  const form = new FormData();
  for (const [name, value] of Object.entries(parameters)) form.append(name, value);
  form.append("image", file, file.name || "image");
  let answer;
  try {
    answer = await fetch(CAPTIONS, { method: "POST", body: form, signal, headers: { Accept: "text/event-stream" } });
  } catch (error) {
    throw broken(error);
  }
  if (!answer.ok) throw await refusal(answer);
  let text = "";
  for await (const [event, data] of events(answer.body)) {
    if (event === "text") onText((text += data.text));
    if (event === "error") throw new Refused(data.code, data.message);
    if (event === "done") return data.details;
  }
  throw new Refused("SERVER_UNREACHABLE", "The answer ended too early.", true);
}

async function refusal(answer) {
  const wait = Number(answer.headers.get("Retry-After")) || 0;
  try {
    const { code, message } = (await answer.json()).error;
    return new Refused(code, message, AWAY.has(answer.status), wait);
  } catch {
    return new Refused("SERVER_UNREACHABLE", `The server answered ${answer.status}.`, AWAY.has(answer.status), wait);
  }
}

function broken(error) {
  return error.name === "AbortError" ? error : new Refused("SERVER_UNREACHABLE", "The connection broke.", true);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw broken(error);
    }
    if (part.done) return;
    const whole = (waiting + part.value).split(/\r?\n\r?\n/);
    waiting = whole.pop();
    for (const message of whole) {
      const field = (name) => message.match(new RegExp(`^${name}: ?(.*)$`, "m"))?.[1];
      if (field("data")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
