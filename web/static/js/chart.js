// A small line chart of the last two minutes.

import { el, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 80;

// The next of 1, 2, 5, 10, 20, ... that is at least `value`.
export function niceCeiling(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

export class Chart {
  #points = [];
  #line = svg("polyline", { class: "line" });
  #area = svg("polygon", { class: "area" });
  #now = el("strong");
  #most = el("span", { className: "most", ariaHidden: "true" });
  #drawing;
  #title = el("h3");
  node;

  // `capacity` points, at equal distances; `show(value)` puts a value in words; `top` is the least upper end.
  constructor({ capacity, show, top = 1 }) {
    Object.assign(this, { capacity, show, top });
    this.#drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, this.#area, this.#line);
    this.node = el("section", { className: "chart" }, this.#title, this.#now, el("div", { className: "plot" }, this.#drawing, this.#most));
  }

  add(value) {
    this.#points.push(value);
    if (this.#points.length > this.capacity) this.#points.shift();
  }

  draw(title) {
    const most = niceCeiling(Math.max(this.top, ...this.#points));
    const x = (i) => WIDTH - ((this.#points.length - 1 - i) / (this.capacity - 1)) * WIDTH;
    const y = (value) => HEIGHT - (value / most) * (HEIGHT - 4);
    const line = this.#points.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    this.#line.setAttribute("points", line);
    this.#area.setAttribute("points", this.#points.length ? `${x(0).toFixed(1)},${HEIGHT} ${line} ${WIDTH},${HEIGHT}` : "");
    const said = this.#points.length ? this.show(this.#points.at(-1)) : "–";
    this.#title.textContent = title;
    this.#now.textContent = said;
    this.#most.textContent = this.show(most);
    this.#drawing.setAttribute("aria-label", `${title}: ${said}`);
  }
}
