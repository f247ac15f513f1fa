// The list of kept conversations: open, rename, export, delete.

import { plain } from "./boxes.js";
import { button, byId, download, el } from "./dom.js";
import { languageTag, t } from "./i18n.js";
import { kindOf, part } from "./media.js";
import { dataURI } from "./pictures.js";
import { openAI } from "./recipe.js";

// onOpen(record) when one is chosen, onRemove(id) and onRename(id, title) after the change.
export class History {
  #store;
  #on;

  constructor(store, on) {
    this.#store = store;
    this.#on = on;
    byId("open-history").onclick = () => this.#open();
  }

  async #open() {
    await this.#render();
    byId("history").showModal();
  }

  async #render() {
    const records = await this.#store.list().catch(() => null);
    const sentence = records === null ? "historyOff" : records.length ? null : "historyEmpty";
    byId("kept").replaceChildren(...(sentence ? [el("li", { textContent: t(sentence) })] : records.map((r) => this.#row(r))));
  }

  #row(record) {
    const when = new Date(record.updated).toLocaleString(languageTag(), { dateStyle: "medium", timeStyle: "short" });
    const open = button("", () => this.#choose(record.id), { className: "plain title" });
    open.append(el("span", { textContent: record.title }), el("small", { textContent: t("historyLine", { when, turns: record.turns.length }) }));
    const named = (key) => ({ className: "plain", ariaLabel: `${t(key)}: ${record.title}` });
    const row = el("li", {}, open);
    const remove = button(t("delete"), () => this.#remove(record, remove), named("delete"));
    row.append(
      button(t("rename"), () => this.#rename(record, row), named("rename")),
      button(t("export"), () => this.#export(record.id), named("export")),
      remove,
    );
    return row;
  }

  async #choose(id) {
    const record = await this.#store.load(id);
    byId("history").close();
    this.#on.onOpen(record);
  }

  // A second press deletes.
  async #remove(record, pressed) {
    if (!pressed.classList.contains("sure")) {
      pressed.classList.add("sure");
      pressed.textContent = t("reallyDelete");
      pressed.ariaLabel = `${t("reallyDelete")} ${record.title}`;
      return;
    }
    await this.#store.remove(record.id);
    this.#on.onRemove(record.id);
    await this.#render();
    (byId("kept").querySelector("button") ?? byId("history").querySelector("form button")).focus();
  }

  #rename(record, row) {
    const field = el("input", { value: record.title, ariaLabel: t("newTitle"), maxLength: 200 });
    const form = el("form", { className: "row" }, field, el("button", { className: "plain", textContent: t("save") }));
    form.onsubmit = async (event) => {
      event.preventDefault();
      const title = field.value.trim() || record.title;
      await this.#store.rename(record.id, title);
      this.#on.onRename(record.id, title);
      await this.#render();
      byId("kept").querySelector("button")?.focus();
    };
    row.replaceChildren(form);
    field.select();
  }

  async #export(id) {
    const record = await this.#store.load(id);
    const uris = new Map();
    for (const picture of record.turns.flatMap((turn) => turn.pictures)) uris.set(picture.id, await dataURI(picture.file));
    const medium = ({ id, file, name }) => part(kindOf(file, name), uris.get(id));
    const messages = openAI(record.turns, record.system, medium);
    messages.push({ role: "assistant", content: plain(record.turns.at(-1).answer.text) });
    const { title, created } = record;
    const whole = { title, created: new Date(created).toISOString(), messages, answers: record.turns.map((turn) => turn.answer) };
    const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
    download(`${name || "conversation"}.json`, new Blob([JSON.stringify(whole, null, 2)], { type: "application/json" }));
  }
}
