// The captioning tab: many pictures, one prompt, captions to edit and take away.

import { vqa } from "./api.js";
import { Pace, runBatch } from "./batch.js";
import { captionForm, captionRow } from "./captionview.js";
import { byId, download } from "./dom.js";
import { toCSV, toJSONL, toZip } from "./exports.js";
import { onLanguage, t } from "./i18n.js";
import { pictureFault } from "./pictures.js";
import { splitList } from "./schema.js";
import { Thumbnails } from "./thumbs.js";

export class Captions {
  #items = []; // {file, caption, state, error, row}; states: waiting, working, done, failed
  #thumbs = new Thumbnails();
  #running = null;
  #pace = new Pace();
  #most = Infinity;
  #view;
  #drawn = false; // whether a redraw of the progress is under way

  constructor() {
    this.#view = captionForm(byId("panel-captions"));
    const { form, stop, clear, files, downloads } = this.#view;
    form.onsubmit = (event) => {
      event.preventDefault();
      this.#start(this.#items.filter((item) => item.state !== "done"));
    };
    stop.onclick = () => this.#running?.abort();
    clear.onclick = () => this.#clear();
    files.onchange = () => {
      this.add([...files.files]);
      files.value = "";
    };
    const make = { zip: toZip, jsonl: toJSONL, csv: toCSV };
    for (const [kind, pressed] of Object.entries(downloads)) pressed.onclick = () => download(`captions.${kind}`, make[kind](this.#captions()));
    addEventListener("beforeunload", (event) => this.#running && event.preventDefault());
    onLanguage(() => {
      for (const item of this.#items) item.row.update(item);
      this.#progress();
    });
    this.#progress();
  }

  setLimits({ max_picture_bytes: most }) {
    this.#most = most;
  }

  add(files) {
    const refused = [];
    const rows = [];
    for (const file of files) {
      const fault = pictureFault(file, this.#most);
      if (fault) {
        refused.push(fault);
        continue;
      }
      const item = { file, name: file.webkitRelativePath || file.name, caption: "", state: "waiting", error: "" };
      item.row = captionRow(item, {
        onEdit: (text) => this.#edited(item, text),
        onAgain: () => this.#start([item]),
      });
      this.#thumbs.watch(item.row.canvas, file);
      this.#items.push(item);
      rows.push(item.row.node);
    }
    this.#view.list.append(...rows);
    this.#say(refused.join(" "));
    this.#progress();
  }

  #say(sentence) {
    this.#view.notice.textContent = sentence;
    this.#view.notice.hidden = !sentence;
  }

  #edited(item, text) {
    item.caption = text;
    item.state = text.trim() ? "done" : "waiting";
    item.error = "";
    item.row.mark(item);
    this.#progress();
  }

  #captions() {
    return this.#items.filter((item) => item.state === "done").map((item) => ({ file: item.name, caption: item.caption }));
  }

  #clear() {
    this.#items = [];
    this.#view.list.replaceChildren();
    this.#say("");
    this.#progress();
    this.#view.files.focus();
  }

  async #start(items) {
    if (this.#running) return;
    if (!items.length) {
      this.#say(t(this.#items.length ? "nothingToDo" : "picturesFirst"));
      return;
    }
    this.#say("");
    this.#running = new AbortController();
    this.#pace = new Pace();
    const { signal } = this.#running;
    const told = this.#view.values();
    for (const item of items) this.#set(item, "waiting");
    await runBatch(items, {
      width: told.width,
      signal,
      work: (item) => vqa(formOf(item, told), signal),
      onStart: (item) => this.#set(item, "working"),
      onResult: (item, answer, error) => this.#finished(item, answer, error),
    });
    this.#running = null;
    this.#progress();
    const failed = items.filter((item) => item.state === "failed").length;
    if (failed) this.#say(t("someFailed", { failed }));
  }

  #finished(item, answer, error) {
    if (error?.name === "AbortError") return this.#set(item, item.caption ? "done" : "waiting");
    this.#pace.note(performance.now());
    if (error) return this.#set(item, "failed", error.message);
    item.caption = answer.answer.trim();
    return this.#set(item, "done");
  }

  #set(item, state, error = "") {
    Object.assign(item, { state, error });
    item.row.update(item);
    this.#progress();
  }

  // At most once a frame: a fast server finishes more often than that.
  #progress() {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => {
      this.#drawn = false;
      this.#drawProgress();
    });
  }

  #drawProgress() {
    const { bar, line, start, stop, clear, downloads } = this.#view;
    const total = this.#items.length;
    const done = this.#items.filter((item) => item.state === "done").length;
    const failed = this.#items.filter((item) => item.state === "failed").length;
    const parts = total ? [t("progress", { done, total })] : [];
    const pace = this.#running && this.#pace.at(total - done - failed);
    if (pace) parts.push(t("pace", { rate: pace.rate.toFixed(1) }), t("eta", { left: clock(pace.left) }));
    if (failed) parts.push(t("failedCount", { failed }));
    line.textContent = parts.join(" · ");
    bar.hidden = total === 0;
    bar.max = total || 1;
    bar.value = done + failed;
    start.hidden = this.#running !== null;
    stop.hidden = this.#running === null;
    clear.disabled = this.#running !== null || !total;
    for (const each of Object.values(downloads)) each.disabled = done === 0;
  }
}

const clock = (seconds) => {
  const whole = Math.max(1, Math.round(seconds));
  return whole < 90 ? `${whole} s` : whole < 5400 ? `${Math.round(whole / 60)} min` : `${(whole / 3600).toFixed(1)} h`;
};

// What is sent for one picture. In the prompt {name} is the file's name without its suffix, {directory} its folder's.
export function formOf(item, { prompt, include, width: _, ...rest }) {
  const parts = item.name.split("/");
  const named = { name: parts.at(-1).replace(/\.[^.]+$/, ""), directory: parts.at(-2) ?? "" };
  const form = new FormData();
  form.append("image", item.file, parts.at(-1));
  form.append("question", prompt.replace(/\{(name|directory)\}/g, (__, key) => named[key]));
  for (const word of splitList(include)) form.append("must_include", word);
  if (rest.start) form.append("start_with", rest.start);
  if (rest.words) form.append("max_words", rest.words);
  return form;
}
