// What the page says to the server and what it hears: the models, and a completion as server-sent events.

const BROKEN = "The connection ended before the completion did.";
const SILENT = "The server does not answer. Is it still running?";

/* status: of HTTP, 0 where none came; retryAfter: seconds that the server asks to wait. */
export class ServerError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/* The served models: [{id, defaults, limits, version}]. */
export async function models(key) {
  const response = await ask("v1/models", { headers: authorization(key) });
  const list = await response.json().catch(() => null);
  if (!Array.isArray(list?.data) || !list.data.length) throw new ServerError("The server lists no model.", response.status);
  return list.data.map((model) => {
    const { defaults = {}, limits = {}, version = null } = model.d1ray ?? list.d1ray ?? {};
    return { id: model.id, defaults, limits, version };
  });
}

/* Yields {event, data} of a chat completion until the server says that it is done. Throws ServerError; an aborted
   `signal` throws AbortError. */
export async function* completion(body, key, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  for await (const { event, data } of events(response.body)) {
    if (data === "[DONE]") return;
    let parsed;
    try {
      parsed = JSON.parse(data);
    } catch {
      throw new ServerError(`The server sent what is not JSON: ${data.slice(0, 80)}`, response.status);
    }
    if (parsed.error) throw new ServerError(parsed.error.message ?? "The server failed.", Number(parsed.error.code) || 500);
    yield { event, data: parsed };
  }
  throw new ServerError(BROKEN);
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(url, options) {
  const response = await fetch(url, { ...options, cache: "no-store" }).catch((error) => {
    throw error.name === "AbortError" ? error : new ServerError(SILENT);
  });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? (typeof said?.detail === "string" ? said.detail : response.statusText);
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  throw new ServerError(message || `HTTP ${response.status}`, response.status, Number.isFinite(wait) ? wait : null);
}

/* Server-sent events of a body (HTML standard, section 9.2.6): lines may end in any way and arrive in any pieces. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = "message", data = [];
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ServerError(BROKEN);
      });
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          [event, data] = ["message", []];
        } else if (!line.startsWith(":")) {
          const [, name, text] = /^([^:]*):? ?([^]*)$/.exec(line);
          if (name === "data") data.push(text);
          else if (name === "event") event = text;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
