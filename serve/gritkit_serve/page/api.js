// Requests to the server that this page came from: JSON, streams of server-sent events, and the key.
// The key is kept in sessionStorage alone, so it ends with the tab. Knows nothing about what is shown.

const KEY = "gritkit-api-key";

/** What went wrong, as a sentence for the reader. `retryAfter` counts seconds, null where waiting does not help. */
export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let askForKey = async () => null;
let asking = null;

/** `ask(refused)` resolves to a key or null; it is called when the server answers 401. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export function forgetKey() {
  sessionStorage.removeItem(KEY);
}

/** The JSON of an answer. */
export async function request(method, path, body, { signal } = {}) {
  const response = await send(method, path, body, signal);
  return response.status === 204 ? null : read(() => response.json());
}

/**
 * The events of a stream as {event, data}, data parsed, until the server says [DONE].
 * Whoever stops reading closes the connection, and the server stops its work.
 */
export async function* stream(path, body, { signal } = {}) {
  const response = await send("POST", path, body, signal);
  for await (const { event, data } of events(response.body)) {
    if (data === "[DONE]") return;
    const parsed = JSON.parse(data);
    if (parsed.error) throw new ApiError(sentence(parsed.error.message));
    yield { event, data: parsed };
  }
  throw new ApiError("The connection ended before the answer did.");
}

/** Server-sent events of a byte stream, as the HTML standard reads them, but for what it says about reconnecting. */
export async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  let event = "message";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await read(() => reader.read());
      if (done) return;
      pending += value;
      const held = pending.endsWith("\r") ? "\r" : ""; // its \n may come with the next piece
      const lines = pending.slice(0, pending.length - held.length).split(/\r\n|\n|\r/);
      pending = lines.pop() + held;
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message";
          data = [];
          continue;
        }
        const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (field === "data") data.push(text);
        else if (field === "event") event = text;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that failed already
  }
}

async function send(method, path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    const isForm = body instanceof FormData;
    if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
    const response = await read(() =>
      fetch(new URL(path, document.baseURI), {
        method,
        headers,
        body: body === undefined || isForm ? body : JSON.stringify(body),
        signal,
        cache: "no-store",
      }),
    );
    if (response.ok) return response;
    const error = await failure(response);
    if (response.status !== 401 || !(await newKey(key))) throw error;
  }
}

/** Whether there is another key to try than the one that was refused. One dialog serves all that wait. */
async function newKey(tried) {
  if (sessionStorage.getItem(KEY) !== tried) return hasKey();
  asking ??= askForKey(tried !== null).finally(() => {
    asking = null;
  });
  const key = await asking;
  if (key === null) return false;
  sessionStorage.setItem(KEY, key);
  return true;
}

/** `work`, with what a browser throws for a lost connection said as a sentence; an abort stays one. */
async function read(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
}

async function failure(response) {
  const said = await response.json().then(
    (body) => body.error?.message ?? body.detail,
    () => undefined,
  );
  const { status } = response;
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const retryAfter = status === 429 || status === 503 ? (Number.isFinite(seconds) ? seconds : 1) : null;
  const message = typeof said === "string" && said ? said : `The server answered ${status} without saying why.`;
  return new ApiError(sentence(message), { status, retryAfter });
}

/** A message of the API as a sentence: "the server is going down" begins small there, but "top_k=0" is a name. */
function sentence(message) {
  const begun = message.replace(/^[a-z]{3,}(?= )/, (word) => word[0].toUpperCase() + word.slice(1));
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}
