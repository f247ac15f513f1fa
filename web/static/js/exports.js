// Captions as files: .txt beside each picture's name, JSON Lines, CSV. A caption is {file, caption}.

import { zip } from "./zip.js";

const stem = (file) => file.replace(/\.[^./]+$/, "");

// One .txt a picture. Where two pictures would share one, the later keeps its own suffix and, at need, a number.
export function toZip(captions) {
  const taken = new Set();
  const entries = captions.map(({ file, caption }) => {
    let name = stem(file);
    for (let i = 1; taken.has(name.toLowerCase()); i++) name = i === 1 ? file : `${file}-${i}`;
    taken.add(name.toLowerCase());
    return [`${name}.txt`, caption];
  });
  return zip(entries);
}

export const toJSONL = (captions) =>
  new Blob([captions.map((each) => `${JSON.stringify(each)}\n`).join("")], { type: "application/jsonl" });

// With CRLF and a byte order mark, so that spreadsheets read it as UTF-8 (RFC 4180).
export function toCSV(captions) {
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = [["file", "caption"], ...captions.map(({ file, caption }) => [file, caption])];
  return new Blob([`\ufeff${rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("")}`], { type: "text/csv" });
}
