// The service's public API, as this page uses it.

const KEY = "s2d-api-key";

/** What went wrong, as a sentence for the person in front of the page. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(asSentence(message));
    this.status = status;
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** The targets, as /v1/models lists them. */
export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/** State of targets and draft; a service that is not ready answers too. */
export async function readState() {
  return (await call("ready", {}, [503])).json();
}

/** The service's version. */
export async function readVersion() {
  return (await (await call("version")).json()).version;
}

const BROKEN = "The answer broke off before its end; the service may have been restarted";

/** The bodies of a chat's stream, one after the other. */
export async function* streamChat(request, signal) {
  const body = JSON.stringify({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
    speculation: { ...request.speculation, detailed: true },
  });
  const headers = { "Content-Type": "application/json" };
  const answer = await call("v1/chat/completions", { method: "POST", headers, body, signal });
  for await (const { event, data } of readEvents(answer.body)) {
    if (event === "error") throw new ApiError(JSON.parse(data).error.message);
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
  throw new ApiError(BROKEN);
}

async function call(path, options = {}, expected = []) {
  const headers = { ...options.headers };
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer; it may be starting, or have been stopped");
  }
  if (answer.ok || expected.includes(answer.status)) return answer;
  const told = await answer.json().catch(() => null);
  const message = told?.error?.message ?? `The service answered with status ${answer.status}`;
  throw new ApiError(message, answer.status);
}

/** Server-sent events: {event, data}; comments are dropped. */
async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(BROKEN);
      });
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const fields = new Map(
          block
            .split("\n")
            .filter((line) => !line.startsWith(":"))
            .map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]),
        );
        if (fields.has("data")) yield { event: fields.get("event"), data: fields.get("data") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function asSentence(message) {
  const text = message.trim();
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
