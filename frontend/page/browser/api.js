// The API for the browser: one request for each caption, whose response is an event stream; and the model's card.

const CAPTIONS = new URL("../v1/captions", import.meta.url);
const MODELS = new URL("../v1/models", import.meta.url);
const TRANSIENT = new Set([502, 503, 504]); // another replica may answer

export class ApiError extends Error {
  constructor(code, message, transient = false, retryAfterS = 0) {
    super(message);
    Object.assign(this, { code, transient, retryAfterS });
  }
}

// Returns the card, or null if no model is served. Throws if this page's own server does not answer.
export async function servedModel() {
  const response = await fetch(MODELS, { cache: "no-store" });
  return response.ok ? (await response.json()).data[0] : null;
}

// Captions what `fit` of shrink.js returned, or the image at `url`. Calls `onText` with the whole text so far and returns the details. Retries
// transient errors.
export async function caption({ file, from = "", url }, parameters, { signal, onText, tries = 2 }) {
  for (let attempt = 1; ; attempt++) {
    try {
      const details = await request(url ?? file, parameters, signal, onText);
      details.image.shrunk_from = from; // as captioner.client does
      return details;
    } catch (error) {
      if (!error.transient || attempt >= tries) throw error;
      onText("");
      await pause(Math.max(error.retryAfterS, Math.min(2 ** attempt / 4, 8)) * (0.75 + Math.random() / 2), signal);
    }
  }
}

async function request(image, parameters, signal, onText) {
  const form = new FormData();
  for (const [name, value] of Object.entries(parameters)) form.append(name, value);
  if (typeof image === "string") form.append("image", image);
  else form.append("image", image, image.name || "image");
  let response;
  try {
    response = await fetch(CAPTIONS, { method: "POST", body: form, signal, headers: { Accept: "text/event-stream" } });
  } catch (error) {
    throw networkError(error);
  }
  if (!response.ok) throw await errorOf(response);
  let text = "";
  for await (const [event, data] of events(response.body)) {
    if (event === "text") onText((text += data.text));
    if (event === "error") throw new ApiError(data.code, data.message);
    if (event === "done") return data.details;
  }
  throw new ApiError("SERVER_UNREACHABLE", "The response ended too early.", true);
}

async function errorOf(response) {
  const { status } = response;
  const { headers } = response;
  const wait = Number(headers.get("retry-after-ms")) / 1000 || Number(headers.get("Retry-After")) || 0;
  try {
    const { code, message } = (await response.json()).error;
    return new ApiError(code, message, TRANSIENT.has(status), wait);
  } catch {
    return new ApiError("SERVER_UNREACHABLE", `The server answered HTTP ${status}.`, TRANSIENT.has(status), wait);
  }
}

function networkError(error) {
  return error.name === "AbortError" ? error : new ApiError("SERVER_UNREACHABLE", "The connection broke.", true);
}

// Yields [event, data] for each server-sent event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw networkError(error);
    }
    if (part.done) return;
    const messages = (pending + part.value).split(/\r?\n\r?\n/);
    pending = messages.pop();
    for (const message of messages) {
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
