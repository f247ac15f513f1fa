// Boxes in an answer, as Qwen-VL writes them, and how they are drawn over the picture.

import { el, svg } from "./dom.js";

const MARKED =
  /(?:<\|object_ref_start\|>(.*?)<\|object_ref_end\|>)?(?:<\|box_start\|>)?\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)(?:<\|box_end\|>)?/gs;

// The boxes in `text`, for a picture of size {width, height} in pixels: [{label, x, y, width, height}], in pixels.
// Two forms are read: (x1,y1),(x2,y2) in thousandths of the picture, with or without the special tokens around it, and
// JSON with "bbox_2d": [x1, y1, x2, y2] in pixels. Boxes without an area or outside the picture are left out.
export function parseBoxes(text, size) {
  const found = fromJSON(text) ?? fromMarks(text, size);
  return found.map((box) => inside(box, size)).filter(Boolean);
}

function fromMarks(text, { width, height }) {
  const across = width / 1000;
  const down = height / 1000;
  return [...text.matchAll(MARKED)]
    .filter((match) => match.slice(2).every((number) => Number(number) <= 1000))
    .map(([, label = "", x1, y1, x2, y2]) => ({ label: label.trim(), corners: [x1 * across, y1 * down, x2 * across, y2 * down] }));
}

// null where the text is no JSON with boxes.
function fromJSON(text) {
  const fenced = text.match(/```(?:json)?\s*([\s\S]*?)```/);
  let value;
  try {
    value = JSON.parse(fenced ? fenced[1] : text);
  } catch {
    return null;
  }
  const found = [];
  collect(value, found);
  return found.length ? found : null;
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

function inside({ label, corners: [x1, y1, x2, y2] }, { width, height }) {
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  const [left, right] = [clip(Math.min(x1, x2), width), clip(Math.max(x1, x2), width)];
  const [top, bottom] = [clip(Math.min(y1, y2), height), clip(Math.max(y1, y2), height)];
  if (right <= left || bottom <= top) return null;
  return { label, x: left, y: top, width: right - left, height: bottom - top };
}

// A figure of the picture with `boxes` over it; `description` says in words what is drawn.
export function boxFigure(url, size, boxes, description) {
  const unit = Math.max(size.width, size.height) / 100;
  const marks = boxes.flatMap((box) => mark(box, unit));
  const drawing = svg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": description }, ...marks);
  return el("figure", { className: "boxed" }, el("img", { src: url, alt: "" }), drawing);
}

function mark({ label, x, y, width, height }, unit) {
  const frame = svg("rect", { x, y, width, height, "stroke-width": unit * 0.7, class: "box" });
  if (!label) return [frame];
  const size = 5 * unit;
  const above = y >= size * 1.2 ? y - size * 0.3 : y + size;
  const text = svg("text", { x: x + unit / 2, y: above, "font-size": size, "stroke-width": unit, class: "box-label" });
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
