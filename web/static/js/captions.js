// The captioning tab: many pictures, one prompt, captions to edit and take away.

import { captions } from "./api.js";
import { Pace, runBatch } from "./batch.js";
import { captionForm, captionRow } from "./captionview.js";
import { byId, download } from "./dom.js";
import { toCSV, toJSONL, toZip } from "./exports.js";
import { isPicture, placeOf } from "./folders.js";
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
    const { form, stop, clear, files, folder, downloads } = this.#view;
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
    folder.onchange = () => {
      this.add([...folder.files].filter(isPicture));
      folder.value = "";
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
      const item = { file, name: placeOf(file), caption: "", state: "waiting", error: "" };
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
    let ended = null; // what ended the batch, where not its last picture
    try {
      await runBatch(items, {
        width: told.width,
        signal,
        work: (chunk) => captions(formOf(chunk, told), signal),
        wanted: (item) => item.state !== "done",
        onStart: (item) => this.#set(item, "working"),
        onLeft: (item) => item.state === "working" && this.#set(item, "waiting"),
        onResult: (item, caption, error) => this.#finished(item, caption, error),
      });
    } catch (error) {
      ended = error;
    }
    this.#running = null;
    this.#progress();
    const failed = items.filter((item) => item.state === "failed").length;
    if (ended) this.#say(t("batchEnded", { reason: ended.message }));
    else if (failed) this.#say(t("someFailed", { failed }));
  }

  // What was typed meanwhile stays.
  #finished(item, caption, error) {
    if (item.state !== "working") return;
    this.#pace.note(performance.now());
    if (error) {
      this.#set(item, "failed", error.message);
      return;
    }
    item.caption = caption;
    this.#set(item, "done");
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
    const parts = [t(total ? "progress" : "captionsLater", { done, total })];
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

// What is sent for some pictures. In the prompt {name} is a file's name without its suffix, {directory} its folder's; the
// server fills them in.
export function formOf(items, { prompt, include, start, words }) {
  const form = new FormData();
  form.append("prompt", prompt);
  for (const word of splitList(include)) form.append("must_include", word);
  if (start) form.append("start_with", start);
  if (words) form.append("max_words", words);
  for (const item of items) form.append("image", item.file, item.name);
  return form;
}
