// The same question as a command line, or as a Python program.

import { plain } from "./boxes.js";
import { part } from "./media.js";
import { toSchema } from "./schema.js";

// `asked` is {turns, system, shape, url, key}: the turns up to the question, its own last; key says whether one is used.
export function asCurl(asked) {
  return asked.turns.length === 1 && asked.shape.kind !== "choice" ? formCurl(asked) : jsonCurl(asked);
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const TYPES = { image: "image/jpeg", video: "video/mp4", audio: "audio/mpeg" }; // the server looks at the bytes
const AUTHORIZATION = '-H "Authorization: Bearer $MMSERVE_API_KEY"';

function formCurl({ turns: [turn], system, shape, url, key }) {
  const file = ({ kind, name }) => quote(`${kind}=@"${name.replace(/[\\"]/g, "\\$&")}"`);
  const parts = turn.pictures.map((medium) => `-F ${file(medium)}`);
  const field = (name, value) => parts.push(`--form-string ${quote(`${name}=${value}`)}`);
  field("question", turn.question);
  if (system) field("system", system);
  if (shape.kind === "json") field("schema", JSON.stringify(toSchema(shape.fields)));
  if (key) parts.push(AUTHORIZATION);
  return `curl ${url}/v1/vqa \\\n  ${parts.join(" \\\n  ")}`;
}

// The body comes from a here-document, in which the shell puts the pictures.
function jsonCurl({ turns, system, shape, url, key }) {
  const images = [];
  const image = (picture) => {
    images.push(picture.name);
    return part(picture.kind, `data:${TYPES[picture.kind]};base64,@${images.length - 1}@`);
  };
  const messages = openAI(turns, system, image);
  const decision = shape.kind === "choice";
  const questions = [{ type: "continuation", id: "answer", options: shape.options }];
  const body = decision ? { messages, questions } : { messages, ...format(shape) };
  // Every backslash, dollar and back quote of the JSON is kept from the shell; then the pictures are put in.
  const text = JSON.stringify(body, null, 1)
    .replace(/[\\$`]/g, "\\$&")
    .replace(/base64,@(\d+)@"/g, (_, i) => `base64,$(base64 < ${quote(images[i])} | tr -d '\\n')"`);
  const path = decision ? "/v1/decisions" : "/v1/chat/completions";
  return `curl ${url}${path} -H 'Content-Type: application/json' ${key ? `${AUTHORIZATION} ` : ""}-d @- <<END\n${text}\nEND`;
}

// What a shape adds to a chat request.
export function format(shape) {
  if (shape.kind !== "json") return {};
  return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: toSchema(shape.fields) } } };
}

// Turns in OpenAI's form; `image(picture)` makes the part for one.
export function openAI(turns, system, image) {
  const messages = turns.flatMap((turn, i) => {
    const user = { role: "user", content: [...turn.pictures.map(image), { type: "text", text: turn.question }] };
    return i < turns.length - 1 ? [user, { role: "assistant", content: plain(turn.answer.text) }] : [user];
  });
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

export function asPython({ turns, system, shape, url, key }) {
  const [turn] = turns;
  const single = turns.length === 1;
  const wanted = { choice: { choices: shape.options }, json: { schema: shape.kind === "json" && toSchema(shape.fields) } }[shape.kind] ?? {};
  const options = { ...(single && system && { system }), ...wanted };
  const extra = Object.entries(options).map(([name, value]) => `, ${name}=${literal(value)}`).join("");
  const files = (kind) => `[${turn.pictures.filter((medium) => medium.kind === kind).map(({ name }) => literal(name)).join(", ")}]`;
  const pictures = files("image");
  const others = ["video", "audio"].filter((kind) => files(kind) !== "[]").map((kind) => `, ${kind}=${files(kind)}`).join("");
  const lines = ["from mmserve import Client", ""];
  const client = key ? `${literal(url)}, api_key=os.environ["MMSERVE_API_KEY"]` : literal(url);
  const print = { choice: "answer.text", json: "answer.parsed", text: "answer.text" }[shape.kind];
  if (key) lines.unshift("import os", "");
  if (single && shape.kind === "choice" && !system && !others) {
    lines.push(`with Client(${client}) as client:`);
    lines.push(`    decision = client.decide(${pictures}, ${literal(turn.question)}, ${literal(shape.options)})`);
    lines.push("    print(decision.choice, decision.probabilities)");
  } else if (single) {
    lines.push(`with Client(${client}) as client:`);
    lines.push(`    answer = client.ask(${pictures}, ${literal(turn.question)}${others}${extra})`, `    print(${print})`);
  } else {
    const carried = turns.some((each) => each.pictures.some(({ kind }) => kind !== "image"));
    lines.unshift(...(carried ? ["from base64 import b64encode"] : []), "from pathlib import Path", "");
    lines.push("messages = [", ...pythonMessages(turns, system), "]", `with Client(${client}) as client:`);
    lines.push(`    answer = client.chat(messages${extra})`, `    print(${print})`);
  }
  return `${lines.join("\n")}\n`;
}

function pythonMessages(turns, system) {
  const picture = ({ kind, name }) => {
    const path = `Path(${literal(name)})`;
    const url = `"data:;base64," + b64encode(${path}.read_bytes()).decode()`;
    return { python: kind === "image" ? path : `{"type": "${kind}_url", "${kind}_url": {"url": ${url}}}` };
  };
  const messages = openAI(turns, system, picture);
  return messages.map(({ role, content }) => {
    const parts = typeof content === "string" ? literal(content) : `[${content.map((part) => part.python ?? literal(part.text)).join(", ")}]`;
    return `    {"role": "${role}", "content": ${parts}},`;
  });
}

// A JSON value as Python writes it. Strings of JSON are strings of Python.
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${literal(k)}: ${literal(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}
