// The server, as the page needs it.

export class ServerError extends Error {
  constructor(message, { code = "", param = null, status = 0 } = {}) {
    super(message);
    this.code = code;
    this.param = param;
    this.status = status;
  }
}

async function getJSON(path) {
  const response = await fetch(path);
  if (!response.ok) throw new ServerError(`${path}: ${response.status}`, { status: response.status });
  return response.json();
}

export async function isReady() {
  try {
    return (await fetch("/health")).ok;
  } catch {
    return false;
  }
}

export const serverInfo = () => getJSON("/server_info");
export const modelCard = (name) => getJSON(`/v1/models/${encodeURIComponent(name)}`);
export const examples = () => getJSON("/examples/examples.json");

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (pending + value).split("\n\n");
    pending = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

// Asks and yields {text}, then {finish} and {usage}. Throws ServerError with the server's own words.
export async function* chat(messages, signal) {
  let response;
  try {
    response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  let complete = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      complete = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, chunk.error);
    const choice = chunk.choices[0];
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  if (!complete) throw new ServerError("The connection broke before the answer was complete. Ask again.");
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ServerError(error.message, { ...error, status: response.status });
  } catch {
    return new ServerError(`The server answered ${response.status} ${response.statusText}.`, { status: response.status });
  }
}
