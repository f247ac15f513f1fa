// Questions and answers: what was said, and what is sent.

import { chat, decide } from "./api.js";
import { byId, newId } from "./dom.js";
import { t } from "./i18n.js";
import { apiKey } from "./key.js";
import { KeptPictures } from "./kept.js";
import { part } from "./media.js";
import { Stopwatch } from "./meter.js";
import { asCurl, asPython, format, openAI } from "./recipe.js";
import { keepInView, showTurn } from "./turn.js";

export class Conversation {
  #on;
  #record = fresh();
  #kept = new KeptPictures();

  // onEdit(index, turn) and onRetry(index, turn) when the reader wants that.
  constructor(on) {
    this.#on = on;
  }

  get empty() {
    return this.#record.turns.length === 0;
  }

  // {id, title, created, system, turns}; of a turn {question, pictures, shape, system, answer}.
  get record() {
    return this.#record;
  }

  clear() {
    this.#record = fresh();
    byId("log").replaceChildren();
  }

  load(record) {
    this.#record = record;
    this.render();
  }

  rename(id, title) {
    if (this.#record.id === id) this.#record.title = title;
  }

  // Forgets the turn at `index` and what follows.
  cut(index) {
    this.#record.turns.length = index;
    this.render();
  }

  render() {
    byId("log").replaceChildren();
    for (const [i, turn] of this.#record.turns.entries()) this.#show(turn, i).end(this.#context(i));
  }

  // Asks and shows the answer as it comes; true when the turn was kept. One that fails leaves nothing but its message,
  // so that it can be asked again.
  async ask(question, pictures, { shape, system }, signal) {
    for (const failed of byId("log").querySelectorAll(".failed")) {
      failed.previousElementSibling.remove();
      failed.remove();
    }
    const turn = { question, pictures, shape, system, answer: { text: "" } };
    const { turns } = this.#record;
    const entry = this.#show(turn, turns.length);
    keepInView(true);
    const watch = new Stopwatch();
    const keep = (rest) => {
      turn.answer = { ...turn.answer, facts: watch.facts(rest), ...rest.more };
      this.#record.title ||= question.slice(0, 80);
      this.#record.system = system;
      turns.push(turn);
      entry.end(this.#context(turns.length - 1));
      return true;
    };
    try {
      const rest = await this.#kept.whileKept(async () => {
        const messages = await this.#messages([...turns, turn], system, signal);
        return shape.kind === "choice" ? this.#decide(turn, messages, signal) : this.#write(turn, messages, watch, entry, signal);
      });
      return keep(rest);
    } catch (error) {
      const stopped = error.name === "AbortError";
      if (stopped && turn.answer.text) return keep({ finish: "stopped" });
      entry.fail(stopped ? t("stoppedEarly") : error.message);
      return false;
    }
  }

  async #decide(turn, messages, signal) {
    const { choice, probabilities, label_mass: mass, usage } = await decide(messages, turn.shape.options, signal);
    return { usage, more: { text: choice, probabilities, mass } };
  }

  async #write(turn, messages, watch, entry, signal) {
    const rest = { more: {} };
    for await (const event of chat(messages, { ...format(turn.shape), skip_special_tokens: false }, signal)) {
      if (event.text) {
        watch.token();
        turn.answer.text += event.text;
        entry.write(turn.answer.text);
      }
      if (event.finish) Object.assign(rest, { finish: event.finish, more: { ...rest.more, report: event.report } });
      if (event.usage) {
        rest.usage = event.usage;
        rest.more.resized = event.images?.at(-1)?.resized ?? null;
        if (event.videos) rest.more.videos = event.videos;
        if (event.sounds) rest.more.sounds = event.sounds;
      }
    }
    return rest;
  }

  #show(turn, index) {
    const asked = () => ({
      turns: [...this.#record.turns.slice(0, index), turn],
      system: turn.system,
      shape: turn.shape,
      url: location.origin,
      key: apiKey() !== "",
    });
    return showTurn(turn, {
      edit: () => this.#on.onEdit(index, turn),
      retry: () => this.#on.onRetry(index, turn),
      curl: () => asCurl(asked()),
      python: () => asPython(asked()),
    });
  }

  async #messages(turns, system, signal) {
    const urls = await this.#kept.addresses(turns.flatMap((turn) => turn.pictures), signal);
    return openAI(turns, system, (medium) => part(medium.kind, urls.get(medium.id)));
  }

  #context(index) {
    const media = this.#record.turns.slice(0, index + 1).flatMap((turn) => turn.pictures);
    const pictures = media.filter((medium) => medium.kind === "image");
    return { pictures: pictures.length, shown: pictures.at(-1) };
  }
}

const fresh = () => ({ id: newId(), title: "", created: Date.now(), system: "", turns: [] });
