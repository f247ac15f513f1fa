// A finished answer as it is shown: text, choices with their probabilities, or the fields of JSON.

import { fromJSON, words as wordsOf } from "./boxes.js";
import { el } from "./dom.js";
import { t } from "./i18n.js";

const UNLIKELY = 0.5; // below it the model would rather have said something else

// The nodes for `answer` in the shape that was asked for.
export function renderAnswer(answer, shape) {
  if (shape.kind === "choice") return [text(answer.text), bars(answer), ...note(answer.mass < UNLIKELY && t("lowMass", { mass: percent(answer.mass) }))];
  if (shape.kind === "json") return [...fields(answer.text), ...flags(answer)];
  return fromJSON(answer.text) ? fields(answer.text) : [prose(answer.text)];
}

// Text with the names of what has a box in the box's colour.
function prose(words) {
  const parts = wordsOf(words).map((part) => (typeof part === "string" ? part : el("span", { className: `thing shade-${part.shade}`, textContent: part.label })));
  if (!parts.length) return text("");
  return el("p", { className: "answer-text" }, ...parts);
}

function text(words) {
  return el("p", { className: words ? "answer-text" : "answer-text none", textContent: words || t("noAnswer") });
}

const note = (sentence) => (sentence ? [el("p", { className: "flag", textContent: sentence })] : []);

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
}

function bars({ probabilities }) {
  const rows = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
  return el("ul", { className: "bars", ariaLabel: t("probabilities") }, ...rows.map(([name, share]) => {
    const bar = el("span", { className: "bar-fill", ariaHidden: "true" });
    bar.style.width = `${share * 100}%`;
    return el("li", {}, el("span", { className: "bar-name", textContent: name }), el("span", { className: "bar-share", textContent: percent(share) }), el("span", { className: "bar-track" }, bar));
  }));
}

// What is JSON becomes a table, with the text itself behind a fold.
function fields(words) {
  let value;
  try {
    value = JSON.parse(words.match(/```(?:json)?\s*([\s\S]*?)```/)?.[1] ?? words);
  } catch {
    return [text(words), ...note(t("notJSON"))];
  }
  const raw = el("pre", { tabIndex: 0, className: "answer-text raw", textContent: JSON.stringify(value, null, 2) });
  return [el("div", { className: "wide" }, view(value)), el("details", {}, el("summary", { textContent: t("showJSON") }), raw)];
}

const isRecord = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function view(value) {
  if (value === null) return el("span", { className: "none", textContent: "–" });
  if (typeof value === "boolean") return el("span", { textContent: t(value ? "yes" : "no") });
  if (typeof value !== "object") return el("span", { textContent: String(value) });
  if (isRecord(value)) return record(value);
  if (value.length && value.every(isRecord)) return grid(value);
  return value.length ? el("ul", { className: "values" }, ...value.map((each) => el("li", {}, view(each)))) : el("span", { className: "none", textContent: t("emptyList") });
}

function record(value) {
  const rows = Object.entries(value).map(([name, each]) => el("tr", {}, el("th", { scope: "row", textContent: name }), el("td", {}, view(each))));
  return el("table", { className: "fields" }, ...rows);
}

function grid(rows) {
  const names = [...new Set(rows.flatMap(Object.keys))];
  const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col", textContent: name })));
  const body = rows.map((row) => el("tr", {}, ...names.map((name) => el("td", {}, name in row ? view(row[name]) : ""))));
  return el("table", { className: "fields" }, head, ...body);
}

// What the server says about how the answer's shape was kept, where not all is as asked.
function flags({ report }) {
  if (!report) return [];
  const said = [];
  if (report.closedEarly) said.push(t("flagClosed"));
  if (report.step !== "strict") said.push(t(`flag_${report.step}`), ...report.relaxed);
  if (report.valid === false) said.push(t("flagInvalid"));
  if (report.valid === null) said.push(t("flagUnknown"));
  return said.flatMap(note);
}
