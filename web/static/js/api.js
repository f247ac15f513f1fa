// The server, as the page needs it.

import { isKnown, language, t } from "./i18n.js";
import { apiKey, askForKey } from "./key.js";

export class ServerError extends Error {
  // retryAfter is in seconds; null where asking again at once is no use. locked: without the right key.
  constructor(message, { code = "", param = null, status = 0, retryAfter = null, locked = false } = {}) {
    super(message);
    this.locked = locked;
    this.code = code;
    this.param = param;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// fetch() with the API key. Where the server wants one, the reader is asked for it, but for `quiet` calls.
async function call(path, init = {}, quiet = false) {
  for (;;) {
    const key = apiKey();
    const headers = { ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...init, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(t("unreachable"));
    }
    if (response.ok) return response;
    const locked = response.status === 401 || response.status === 403;
    if (locked && !quiet && (await askForKey(key))) continue;
    throw locked ? new ServerError(t("locked"), { status: response.status, locked }) : await refusal(response);
  }
}

async function refusal(response) {
  const rest = { status: response.status };
  if (response.status === 429 || response.status === 503) rest.retryAfter = Number(response.headers.get("Retry-After")) || 1;
  try {
    const { error } = await response.json();
    return new ServerError(inWords(error), { ...error, ...rest });
  } catch {
    return new ServerError(t("answered", { status: `${response.status} ${response.statusText}`.trim() }), rest);
  }
}

// The server speaks English; to other readers its words come after ours.
function inWords(error) {
  const key = `code_${error.code}`;
  return language() !== "en" && isKnown(key) ? `${t(key)}（${error.message}）` : error.message;
}

export async function isReady() {
  try {
    const { ok, status } = await fetch("/health");
    return ok || status === 401 || status === 403; // then it is there, behind a lock
  } catch {
    return false;
  }
}

const getJSON = async (path, quiet) => (await call(path, {}, quiet)).json();

export const serverInfo = (quiet = false) => getJSON("/server_info", quiet);
export const modelCard = (name) => getJSON(`/v1/models/${encodeURIComponent(name)}`);
export const examples = () => getJSON("/examples/examples.json");
export const flushCache = async () => (await call("/flush_cache", { method: "POST" })).json();

// The id under which the server keeps a picture for a while.
export async function keepPicture(file, name, signal) {
  const body = new FormData();
  body.append("image", file, name);
  const { data } = await (await call("/v1/pictures", { method: "POST", body, signal })).json();
  return data[0].id;
}

const postJSON = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

// How likely each of `options` is as the next answer: {choice, probabilities, label_mass}, and the usage.
export async function decide(messages, options, signal) {
  const questions = [{ type: "continuation", id: "answer", options }];
  const body = await (await postJSON("/v1/decisions", { messages, questions }, signal)).json();
  return { ...body.answers.answer, usage: body.usage };
}

// Captions of the pictures of a form as they are ready: {index, value} or {index, error}, index by the form's order.
export async function* captions(form, signal) {
  const response = await call("/v1/captions", { method: "POST", body: form, signal });
  const left = new Set(form.getAll("image").keys());
  for await (const line of pieces(response.body, "\n")) {
    const { index, caption, error } = JSON.parse(line);
    const busy = ["queue_full", "engine_unavailable"].includes(error?.code);
    if (!left.delete(index)) continue;
    yield error ? { index, error: new ServerError(inWords(error), { ...error, retryAfter: busy ? 1 : null }) } : { index, value: caption };
  }
  if (left.size) throw new ServerError(t("broke"));
}

// The parts of a body between `separator`s, as they come. Throws ServerError where the connection breaks.
async function* pieces(body, separator) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (pending + value).split(separator);
      pending = parts.pop();
      yield* parts;
    }
  } catch (error) {
    throw error instanceof TypeError ? new ServerError(t("broke")) : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Asks and yields {text}, then {finish, report} and {usage, images, videos, sounds}. Throws ServerError with the server's own words.
export async function* chat(messages, extra, signal) {
  const asked = { messages, stream: true, stream_options: { include_usage: true }, ...extra };
  const response = await postJSON("/v1/chat/completions", asked, signal);
  let complete = false;
  for await (const event of pieces(response.body, "\n\n")) {
    if (!event.startsWith("data: ")) continue;
    const data = event.slice(6);
    if (data === "[DONE]") {
      complete = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(inWords(chunk.error), chunk.error);
    const choice = chunk.choices[0];
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason, report: reported(choice, chunk.constraint) };
    if (chunk.usage) yield { usage: chunk.usage, images: chunk.images, videos: chunk.videos, sounds: chunk.sounds };
  }
  if (!complete) throw new ServerError(t("broke"));
}

// How a constraint was kept. What is as asked the server leaves out.
const reported = (choice, constraint) => ({
  step: constraint?.step ?? "strict",
  relaxed: constraint?.relaxed ?? [],
  valid: "valid" in choice ? choice.valid : true,
  closedEarly: choice.closed_early ?? false,
});
