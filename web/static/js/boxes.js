// Boxes in an answer, as Qwen-VL models write them: read, taken out of the words, and drawn over the picture.

import { el, svg } from "./dom.js";

const POINT = String.raw`\((\d+(?:\.\d+)?),\s*(\d+(?:\.\d+)?)\)`;
const BOX = String.raw`(?:<\|box_start\|>)?${POINT},\s*${POINT}(?:<\|box_end\|>)?`;
const QUAD = String.raw`<\|quad_start\|>${POINT},\s*${POINT},\s*${POINT},\s*${POINT}<\|quad_end\|>`;
const FOUND = new RegExp(String.raw`(?:<\|object_ref_start\|>((?:(?!<\|).)*)<\|object_ref_end\|>\s*)?(?:${QUAD}|${BOX})`, "gs");
const TOKENS = /<\|(?:(?:object_ref|box|quad|vision|im)_(?:start|end)|endoftext)\|>/g;
const UNFINISHED = /<\|(?:box|quad)_start\|>[^<]*$|<\|[a-z_]*\|?$/;
const SHADES = 6;

// What Qwen-VL writes, in parts: strings, and {label, shade, corners} for a thing with its box, of which the corners are
// in thousandths of the picture: [left, top, right, bottom]. The label of what has none is "". Another box right behind
// a thing's first is one more of the same.
function parts(text) {
  const found = [];
  const shades = new Map();
  let end = 0;
  for (const match of text.matchAll(FOUND)) {
    const [all, name, ...numbers] = match;
    const points = numbers.filter((number) => number !== undefined).map(Number);
    if (points.some((number) => number > 1000)) continue;
    const between = text.slice(end, match.index);
    const last = found.at(-1);
    if (between) found.push(between);
    const same = !between.trim() && all.startsWith("<|") && last?.label;
    const label = name?.trim() ?? (same ? last.label : "");
    if (!shades.has(label)) shades.set(label, shades.size % SHADES);
    const [x, y] = [0, 1].map((odd) => points.filter((_, i) => i % 2 === odd));
    found.push({ label, shade: shades.get(label), again: name === undefined && label !== "", written: all.replace(TOKENS, ""), corners: [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)] });
    end = match.index + all.length;
  }
  if (end < text.length) found.push(text.slice(end));
  return found;
}

// The text as programs get it: without special tokens.
export const plain = (text) => text.replace(TOKENS, "");

// The text as it is read while it is written: a thing's name without its box.
export const readable = (text) => words(text.replace(UNFINISHED, "")).map((part) => part.label ?? part).join("");

// The text for a reader: strings, and {label, shade} for what has a box.
export function words(text) {
  const said = [];
  for (const part of parts(text)) {
    if (typeof part === "string") said.push(plain(part));
    else if (!part.label) said.push(part.written);
    else if (!part.again) said.push(part);
  }
  return said;
}

// The boxes in `text`, for a picture of {width, height} in pixels: [{label, shade, x, y, width, height}], in its pixels.
// Two forms are read: (x1,y1),(x2,y2) in thousandths of the picture, with or without the special tokens around it, and
// JSON with "bbox_2d": [x1, y1, x2, y2] in pixels of the picture as the model saw it, whose width and height are `seen`.
// Boxes without an area or outside the picture are left out.
export function parseBoxes(text, size, seen = null) {
  const known = fromJSON(text);
  const [across, down] = known ? (seen ?? [size.width, size.height]) : [1000, 1000];
  const found = known ?? parts(text).filter((part) => part.corners);
  return found.map((box) => inside(box, size.width / across, size.height / down, size)).filter(Boolean);
}

// null where the text is no JSON with boxes.
export function fromJSON(text) {
  const fenced = text.match(/```(?:json)?\s*([\s\S]*?)```/);
  let value;
  try {
    value = JSON.parse(fenced ? fenced[1] : text);
  } catch {
    return null;
  }
  const found = [];
  collect(value, found);
  const labels = [...new Set(found.map(({ label }) => label))];
  return found.length ? found.map((box) => ({ ...box, shade: labels.indexOf(box.label) % SHADES })) : null;
}

function collect(value, found) {
  if (value === null || typeof value !== "object") return;
  const corners = value.bbox_2d;
  if (Array.isArray(corners) && corners.length === 4 && corners.every(Number.isFinite)) {
    found.push({ label: String(value.label ?? value.name ?? ""), corners });
    return;
  }
  for (const part of Object.values(value)) collect(part, found);
}

function inside({ label, shade, corners: [x1, y1, x2, y2] }, across, down, { width, height }) {
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  const [left, right] = [clip(Math.min(x1, x2) * across, width), clip(Math.max(x1, x2) * across, width)];
  const [top, bottom] = [clip(Math.min(y1, y2) * down, height), clip(Math.max(y1, y2) * down, height)];
  if (right <= left || bottom <= top) return null;
  return { label, shade, x: left, y: top, width: right - left, height: bottom - top };
}

// A figure of the picture with `boxes` over it; `description` says in words what is drawn.
export function boxFigure(url, size, boxes, description) {
  const unit = Math.max(size.width, size.height) / 100;
  const marks = boxes.flatMap((box) => mark(box, unit));
  const drawing = svg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": description }, ...marks);
  return el("figure", { className: "boxed" }, el("img", { src: url, alt: "" }), drawing);
}

function mark({ label, shade, x, y, width, height }, unit) {
  const frame = svg("rect", { x, y, width, height, "stroke-width": unit * 0.7, class: `box shade-${shade}` });
  if (!label) return [frame];
  const size = 4.2 * unit;
  const above = y >= size * 1.2 ? y - size * 0.3 : y + size;
  const text = svg("text", { x: x + unit / 2, y: above, "font-size": size, "stroke-width": unit, class: `box-label shade-${shade}` });
  text.textContent = label;
  return [frame, text];
}

// The size of the picture at `url` in pixels; null where the browser cannot show it.
export function pictureSize(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => resolve(null);
    image.src = url;
  });
}
