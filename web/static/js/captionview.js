// What the captioning tab looks like.

import { button, el } from "./dom.js";
import { onLanguage, t } from "./i18n.js";

// Builds the tab in `home`. Returns its live parts, and values(): what the fields say.
export function captionForm(home) {
  const said = (key, tag = "span", properties = {}) => el(tag, { "data-t": key, textContent: t(key), ...properties });
  const field = (key, control, hint) => {
    const label = el("label", { className: "entry" }, said(key), control);
    if (hint) label.append(said(hint, "small"));
    return label;
  };
  const prompt = el("textarea", { rows: 2, required: true, maxLength: 20_000, value: t("captionPrompt") });
  let suggested = prompt.value;
  onLanguage(() => {
    if (prompt.value === suggested) prompt.value = t("captionPrompt");
    suggested = t("captionPrompt");
  });
  const include = el("input", { maxLength: 2000 });
  const start = el("input", { maxLength: 1000 });
  const words = el("input", { type: "number", min: 1, max: 1000 });
  const width = el("input", { type: "number", min: 1, max: 64, required: true, value: 32 });
  const files = el("input", { type: "file", accept: "image/*", multiple: true, className: "unseen", id: "caption-files" });
  const pick = el("label", { className: "drop small", htmlFor: "caption-files" }, said("captionDrop", "span", { className: "drop-title" }), said("captionDropMore", "span", { className: "drop-more" }));
  const folder = el("input", { type: "file", webkitdirectory: true, hidden: true, id: "caption-folder" });
  const pickFolder = button(t("captionFolder"), () => folder.click(), { className: "quiet folder", "data-t": "captionFolder" });
  const submit = el("button", { className: "send", "data-t": "captionStart", textContent: t("captionStart") });
  const act = (key, properties = {}) => button(t(key), null, { "data-t": key, className: "quiet", ...properties });
  const stop = act("stop", { hidden: true, className: "send stop" });
  const clear = act("captionClear");
  const downloads = { zip: act("downloadZip"), jsonl: act("downloadJSONL"), csv: act("downloadCSV") };
  const notice = el("p", { className: "notice", role: "alert", hidden: true });
  const bar = el("progress", { value: 0, max: 1, hidden: true, ariaLabel: t("progressLabel"), "data-t-label": "progressLabel" });
  const line = el("p", { className: "hint", id: "caption-line" });
  const list = el("ul", { className: "captions", id: "caption-list", ariaLabel: t("captionList"), "data-t-label": "captionList" });
  const form = el("form", { className: "caption-form", autocomplete: "off" },
    field("captionPromptLabel", prompt, "captionPromptHint"),
    el("div", { className: "entries" }, field("mustInclude", include, "mustIncludeHint"), field("startWith", start), field("maxWords", words), field("concurrency", width)),
    el("div", { className: "row" }, submit, stop, clear),
  );
  home.append(
    said("captionTitle", "h2"), said("captionIntro", "p", { className: "hint" }),
    el("div", { className: "captioning" },
      el("div", {}, el("div", { className: "chooser" }, files, pick, folder, pickFolder), form),
      el("div", {}, notice, bar, line, el("div", { className: "row" }, ...Object.values(downloads)), list),
    ),
  );
  const values = () => ({ prompt: prompt.value, include: include.value, start: start.value, words: words.value, width: Number(width.value) });
  return { form, start: submit, stop, clear, files, folder, downloads, notice, bar, line, list, values };
}

// A picture with its caption. update(item) shows all of it; mark(item) leaves the text that is being typed alone.
export function captionRow(item, { onEdit, onAgain }) {
  const canvas = el("canvas", { ariaHidden: "true" });
  const state = el("span", { className: "state" });
  const text = el("textarea", { rows: 2 });
  text.oninput = () => onEdit(text.value);
  const again = button("", onAgain, { className: "plain" });
  const node = el("li", {}, canvas, el("div", { className: "caption-head" }, el("span", { className: "file", textContent: item.name }), state, again), text);
  const mark = ({ state: now, error }) => {
    node.dataset.state = now;
    state.textContent = error || t(`state_${now}`);
    again.textContent = t("again");
    again.ariaLabel = `${t("again")}: ${item.name}`;
    text.ariaLabel = `${t("captionOf")} ${item.name}`;
  };
  const update = (now) => {
    mark(now);
    if (text.value !== now.caption) text.value = now.caption;
  };
  update(item);
  return { node, canvas, mark, update };
}
