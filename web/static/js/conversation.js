// Questions and answers: what was said, how it is shown, and what is sent.

import { chat } from "./api.js";
import { byId, el } from "./dom.js";
import { dataURI } from "./pictures.js";

export class Conversation {
  #messages = []; // in OpenAI's form, complete turns only
  #pictures = 0;

  get empty() {
    return this.#messages.length === 0;
  }

  clear() {
    this.#messages = [];
    this.#pictures = 0;
    byId("log").replaceChildren();
  }

  // Asks and shows the answer as it comes; true when the turn was kept. One that fails leaves nothing but its message,
  // so that it can be asked again.
  async ask(question, pictures, signal) {
    const entry = showTurn(question, pictures);
    const watch = new Stopwatch();
    let user = null;
    let text = "";
    const keep = (line) => {
      this.#messages.push(user, { role: "assistant", content: text });
      this.#pictures += pictures.length;
      entry.end(text, line(this.#pictures));
      return true;
    };
    try {
      user = { role: "user", content: [...(await Promise.all(pictures.map(imagePart))), { type: "text", text: question }] };
      for await (const event of chat([...this.#messages, user], signal)) {
        if (event.text) {
          watch.token();
          text += event.text;
          entry.write(text);
        }
        if (event.finish) watch.finish(event.finish);
        if (event.usage) watch.usage = event.usage;
      }
      return keep((count) => watch.line(count));
    } catch (error) {
      const stopped = error.name === "AbortError";
      if (stopped && text) return keep(() => "stopped");
      entry.fail(stopped ? "Stopped before the answer began." : error.message);
      return false;
    }
  }
}

const imagePart = async (picture) => ({ type: "image_url", image_url: { url: await dataURI(picture.file) } });

class Stopwatch {
  #start = performance.now();
  #first = null;
  #last = null;
  #reason = "";
  usage = null;

  token() {
    this.#last = performance.now();
    this.#first ??= this.#last;
  }

  finish(reason) {
    this.#reason = reason;
  }

  // The quiet line under an answer: speed, and what was reused.
  line(pictures) {
    const parts = [];
    if (this.#first !== null) parts.push(`first token ${seconds(this.#first - this.#start)}`);
    const tokens = this.usage?.completion_tokens ?? 0;
    const span = this.#last - this.#first;
    if (tokens > 8 && span > 0) parts.push(`${Math.round(((tokens - 1) / span) * 1000)} tokens/s`);
    parts.push(reuse(this.usage?.prompt_tokens_details, pictures));
    if (this.#reason === "length") parts.push("cut off at the length limit");
    return parts.filter(Boolean).join(" · ");
  }
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

function reuse(details, pictures) {
  const cached = details?.cached_images;
  if (cached === undefined || !pictures) return "";
  if (pictures === 1) return cached ? "picture: cached" : "picture: new";
  return cached === pictures ? "pictures: cached" : `pictures: ${cached} of ${pictures} cached`;
}

function showTurn(question, pictures) {
  const log = byId("log");
  for (const failed of log.querySelectorAll(".failed")) {
    failed.previousElementSibling.remove();
    failed.remove();
  }
  const thumbs = pictures.map((p) => el("img", { src: p.url, alt: p.name, onerror: (e) => e.target.remove() }));
  const asked = el("li", { className: "turn asked" }, el("span", { className: "unseen", textContent: "You asked: " }));
  if (thumbs.length) asked.append(el("div", { className: "with" }, ...thumbs));
  asked.append(el("p", { textContent: question }));
  const body = el("p", { className: "answer-text" });
  const meta = el("p", { className: "meta" });
  const dots = el("span", { className: "dots", ariaLabel: "waiting for the answer" }, el("i"), el("i"), el("i"));
  const answer = el("li", { className: "turn answer", ariaBusy: "true" }, el("span", { className: "unseen", textContent: "Answer: " }), dots, body, meta);
  log.append(asked, answer);
  keepInView(true);
  const settle = () => {
    dots.remove();
    answer.ariaBusy = "false";
  };
  return {
    write(text) {
      dots.remove();
      body.textContent = text;
      body.classList.add("growing");
      keepInView(false);
    },
    end(text, line) {
      settle();
      body.classList.remove("growing");
      body.textContent = text || "(no answer)";
      body.classList.toggle("none", !text);
      meta.textContent = line;
      keepInView(false);
    },
    fail(message) {
      settle();
      body.remove();
      answer.classList.add("failed");
      meta.replaceWith(el("p", { className: "failure", role: "alert", textContent: message }));
      keepInView(true);
    },
  };
}

// Follows the newest text, unless the reader has scrolled away from it.
export function keepInView(always) {
  const box = byId("scroll");
  const scroller = box.scrollHeight > box.clientHeight + 1 ? box : document.scrollingElement;
  const below = scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
  if (always || below < 120) scroller.scrollTop = scroller.scrollHeight;
}
