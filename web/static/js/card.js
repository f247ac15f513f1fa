// The model's card: the usual parts of Markdown as elements. What it does not know stays as it is written.

import { el } from "./dom.js";

export function renderCard(markdown) {
  const lines = markdown.replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  const nodes = [];
  while (lines.length) {
    const line = lines[0].trim();
    if (!line) lines.shift();
    else if (line.startsWith("```")) nodes.push(fence(lines));
    else if (line.startsWith("#")) nodes.push(el("h3", {}, ...inline(lines.shift().replace(/^\s*#+\s*/, ""))));
    else if (line.startsWith("|")) nodes.push(table(lines));
    else if (isItem(line)) nodes.push(list(lines));
    else nodes.push(el("p", {}, ...inline(paragraph(lines))));
  }
  return nodes;
}

const isItem = (line) => /^([-*+]|\d+\.)\s/.test(line.trim());
const startsBlock = (line) => /^\s*(#|\||```)/.test(line) || isItem(line);

// Takes the lines of one paragraph, the first whatever it is.
function paragraph(lines) {
  let text = lines.shift().trim();
  while (lines.length && lines[0].trim() && !startsBlock(lines[0])) text += ` ${lines.shift().trim()}`;
  return text;
}

function fence(lines) {
  lines.shift();
  const code = [];
  while (lines.length && !lines[0].trim().startsWith("```")) code.push(lines.shift());
  lines.shift();
  return el("pre", { tabIndex: 0 }, el("code", { textContent: code.join("\n") }));
}

function list(lines) {
  const items = el("ul");
  while (lines.length && isItem(lines[0])) {
    items.append(el("li", {}, ...inline(paragraph(lines).replace(/^([-*+]|\d+\.)\s+/, ""))));
  }
  return items;
}

function table(lines) {
  const rows = [];
  while (lines.length && lines[0].trim().startsWith("|")) {
    const cells = lines.shift().trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
    if (!cells.every((cell) => /^:?-+:?$/.test(cell))) rows.push(cells);
  }
  const row = (cells, tag) => el("tr", {}, ...cells.map((cell) => el(tag, {}, ...inline(cell))));
  const body = el("table", {}, ...rows.map((cells, i) => row(cells, i ? "td" : "th")));
  return el("div", { className: "wide", tabIndex: 0 }, body);
}

// `code`, **strong** and [links](...): links keep their words, since the page leads nowhere else.
function inline(text) {
  const words = text.replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1");
  return words.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((piece) => {
    if (piece.startsWith("`") && piece.length > 2) return el("code", { textContent: piece.slice(1, -1) });
    if (piece.startsWith("**") && piece.length > 4) return el("strong", { textContent: piece.slice(2, -2) });
    return piece;
  });
}
