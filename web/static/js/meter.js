// How an answer went: measured while it comes, said in a quiet line under it.

import { t } from "./i18n.js";

export class Stopwatch {
  #start = performance.now();
  #first = null;
  #last = null;

  token() {
    this.#last = performance.now();
    this.#first ??= this.#last;
  }

  // Plain numbers: milliseconds, and tokens per second where there were enough for long enough to tell: what a grammar
  // forces comes at once.
  facts({ usage, finish }) {
    const tokens = usage?.completion_tokens ?? 0;
    const span = this.#last - this.#first;
    return {
      first: this.#first === null ? null : this.#first - this.#start,
      total: performance.now() - this.#start,
      rate: tokens > 8 && span > 100 ? ((tokens - 1) / span) * 1000 : null,
      usage: usage ?? null,
      finish: finish ?? "",
    };
  }
}

// `pictures` is how many the prompt had; `system` whether it had instructions.
export function quietLine(facts, { pictures, system }) {
  const parts = [];
  if (facts.first !== null) parts.push(t("firstToken", { time: duration(facts.first) }));
  else if (facts.usage) parts.push(t("took", { time: duration(facts.total) }));
  if (facts.rate !== null) parts.push(t("tokensPerSecond", { rate: Math.round(facts.rate) }));
  parts.push(...reuse(facts.usage, pictures, system));
  if (facts.finish === "length") parts.push(t("cutOff"));
  if (facts.finish === "stopped") parts.push(t("stopped"));
  return parts.join(" · ");
}

const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

function reuse(usage, pictures, system) {
  const details = usage?.prompt_tokens_details;
  if (!details) return [];
  const said = [];
  const { cached_images: cached, system_tokens: instructions, cached_system_tokens: known } = details;
  if (pictures === 1) said.push(t(cached ? "pictureCached" : "pictureNew"));
  else if (pictures > 1 && cached === pictures) said.push(t("picturesCached"));
  else if (pictures > 1) said.push(t("picturesPartly", { cached, pictures }));
  if (system && instructions > 0) said.push(t(known === instructions ? "systemCached" : "systemNew"));
  return said;
}
