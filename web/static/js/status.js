// The status tab: what the server is doing, looked at once a second while it is in view.

import { flushCache, serverInfo } from "./api.js";
import { Chart } from "./chart.js";
import { button, byId, el } from "./dom.js";
import { languageTag, onLanguage, t } from "./i18n.js";

const EVERY = 1000; // milliseconds
const KEPT = 120; // points

const number = (value) => value.toLocaleString(languageTag(), { maximumFractionDigits: value < 10 ? 1 : 0 });
const share = (value) => `${number(value * 100)} %`;
const ratio = (part, whole) => (whole > 0 ? part / whole : 0);

// What each chart shows, of two samples {at, stats} in order.
const CHARTS = {
  chartTokens: { show: number, top: 10, of: (a, b) => rate(a, b, "generated_tokens") },
  chartPrompt: { show: number, top: 10, of: (a, b) => rate(a, b, "prefilled_tokens") },
  chartQueue: { show: number, top: 4, of: (_, { stats }) => (stats.requests_running ?? 0) + (stats.requests_waiting ?? 0) },
  chartReused: { show: share, top: 1, of: (a, b) => ratio(grown(a, b, "cached_tokens"), grown(a, b, "prompt_tokens")) },
  chartCache: { show: share, top: 1, of: (_, { stats }) => ratio(stats.slots_cached ?? 0, stats.slots_total ?? 0) },
  chartPictures: { show: number, top: 4, of: (_, { stats }) => stats.encoder_cache_pictures ?? 0 },
};

const grown = (a, b, name) => Math.max(0, (b.stats[name] ?? 0) - (a.stats[name] ?? 0));
const rate = (a, b, name) => (grown(a, b, name) * 1000) / (b.at - a.at);

export class Status {
  #charts = Object.fromEntries(Object.entries(CHARTS).map(([key, { show, top }]) => [key, new Chart({ capacity: KEPT, show, top })]));
  #facts = el("dl", { className: "facts" });
  #counters = el("tbody");
  #notice = el("p", { className: "notice", role: "alert", hidden: true });
  #flushed = el("p", { className: "hint", id: "flushed", ariaLive: "polite" });
  #last = null;
  #info = null;
  #timer = null;

  constructor() {
    const said = (key, tag) => el(tag, { "data-t": key, textContent: t(key) });
    const flush = button(t("flush"), () => this.#flush(), { className: "quiet", "data-t": "flush" });
    const table = el("table", { className: "fields" }, this.#counters);
    byId("panel-status").append(
      said("statusTitle", "h2"), this.#notice, this.#facts,
      el("div", { className: "charts" }, ...Object.values(this.#charts).map((chart) => chart.node)),
      el("div", { className: "row" }, flush, el("small", { className: "hint", "data-t": "flushHint", textContent: t("flushHint") })), this.#flushed,
      el("details", {}, said("allNumbers", "summary"), el("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: t("allNumbers"), "data-t-label": "allNumbers" }, table)),
    );
    onLanguage(() => this.#draw());
    document.addEventListener("visibilitychange", () => this.#timer !== null && !document.hidden && this.#look());
    this.#draw();
  }

  // Looks at the server while `shown`.
  setShown(shown) {
    clearInterval(this.#timer);
    this.#timer = shown ? setInterval(() => document.hidden || this.#look(), EVERY) : null;
    if (shown) this.#look();
  }

  async #look() {
    try {
      this.#info = await serverInfo(true);
      this.#take({ at: performance.now(), stats: this.#info.stats });
      this.#say("");
    } catch (error) {
      this.#say(error.message);
    }
  }

  #take(sample) {
    const before = this.#last;
    if (before && sample.at - before.at < EVERY / 2) return;
    this.#last = sample;
    // A pause longer than a few looks would be drawn as if it were one: the charts begin anew with what follows.
    if (before && sample.at - before.at < 5 * EVERY) {
      for (const [key, chart] of Object.entries(this.#charts)) chart.add(CHARTS[key].of(before, sample));
    }
    this.#draw();
  }

  #say(sentence) {
    if (this.#notice.textContent !== sentence) this.#notice.textContent = sentence;
    this.#notice.hidden = !sentence;
  }

  #draw() {
    for (const [key, chart] of Object.entries(this.#charts)) chart.draw(t(key));
    if (!this.#info) return;
    const { version, model, max_model_len: length, stats } = this.#info;
    const facts = { factModel: model, factVersion: version, factContext: t("tokens", { count: number(length) }), factAnswered: number(stats.requests_finished ?? 0) };
    this.#facts.replaceChildren(...Object.entries(facts).map(([key, value]) => el("div", {}, el("dt", { textContent: t(key) }), el("dd", { textContent: value }))));
    const rows = Object.entries(stats).sort(([a], [b]) => a.localeCompare(b));
    this.#counters.replaceChildren(...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row", textContent: name }), el("td", { textContent: number(value) }))));
  }

  async #flush() {
    try {
      const { flushed_tokens: count } = await flushCache();
      this.#flushed.textContent = t("flushed", { count: number(count) });
    } catch (error) {
      this.#say(error.message);
    }
  }
}
