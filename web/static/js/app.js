// The page, put together.

import { isReady, modelCard, serverInfo } from "./api.js";
import { Captions } from "./captions.js";
import { renderCard } from "./card.js";
import { Conversation } from "./conversation.js";
import { byId } from "./dom.js";
import { showExamples } from "./examples.js";
import { History } from "./history.js";
import { language, onLanguage, setLanguage, t, translate } from "./i18n.js";
import { Tray, watchInputs } from "./pictures.js";
import { ShapePicker } from "./shape.js";
import { Status } from "./status.js";
import { Store } from "./store.js";
import { watchTabs } from "./tabs.js";
import { atEnd, keepInView } from "./turn.js";

translate();
const question = byId("question");
const store = new Store();
const conversation = new Conversation({ onEdit: edit, onRetry: retry });
const tray = new Tray({ onChange: refresh, onRefuse: notice });
const picker = new ShapePicker(byId("shape"));
const captions = new Captions();
const status = new Status();
new History(store, {
  onOpen: openKept,
  onRemove: (id) => id === conversation.record.id && !running && startOver(),
  onRename: (id, title) => conversation.rename(id, title),
});
let running = null; // the AbortController of the answer that is being written
let edited = null; // {index, pictures} of the question that is being changed
let tab = "ask";
let stale = false; // whether the log is in another language than the page

function notice(sentence) {
  byId("notice").textContent = sentence;
  byId("notice").hidden = !sentence;
}

function refresh() {
  const busy = running !== null;
  const begun = !conversation.empty || byId("log").childElementCount > 0;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("new").disabled = busy || !(begun || tray.count);
  byId("open-history").disabled = busy;
  byId("editing").hidden = edited === null;
  byId("welcome").hidden = begun;
  document.body.classList.toggle("busy", busy);
  document.body.classList.toggle("begun", begun);
  document.body.classList.toggle("chosen", tray.count > 0);
  question.placeholder = t(begun ? "askOn" : tray.count ? (tray.picturesOnly ? "askPicture" : "askFile") : "askFirst");
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function setQuestion(text) {
  question.value = text;
  fitQuestion();
}

async function ask() {
  const text = question.value.trim();
  if (running || !text) return;
  if (!tray.count) {
    notice(t(tray.picturesOnly ? "needPicture" : "needFile"));
    byId("files").focus();
    return;
  }
  const { shape, system } = picker;
  if (!shape) {
    picker.complain();
    notice(t("needShape"));
    return;
  }
  notice("");
  if (edited) replace();
  const pictures = tray.waiting;
  running = new AbortController();
  setQuestion("");
  const turn = conversation.ask(text, pictures, { shape, system }, running.signal);
  refresh();
  const answered = await turn;
  running = null;
  if (answered) {
    tray.setAsked(pictures, true);
    tray.note(conversation.record.turns.at(-1).answer);
    keep();
  } else {
    if (!question.value) setQuestion(text); // to be mended and asked again
    watchServer();
  }
  if (stale) renderAgain();
  refresh();
  keepInView(false); // the question's box may have grown again
  if (tab === "ask" && !document.querySelector("dialog[open]")) question.focus({ preventScroll: true });
}

// Forgets the edited question and what follows; pictures that came later go with their questions.
function replace() {
  const later = conversation.record.turns.slice(edited.index + 1).flatMap((turn) => turn.pictures);
  conversation.cut(edited.index);
  tray.drop(later);
  edited = null;
}

function edit(index, turn) {
  if (running) return;
  cancelEdit();
  edited = { index, pictures: turn.pictures };
  tray.setAsked(turn.pictures, false);
  picker.set(turn.shape, turn.system);
  setQuestion(turn.question);
  refresh();
  question.focus();
}

function retry(index, turn) {
  if (running) return;
  edit(index, turn);
  ask();
}

function cancelEdit() {
  if (!edited) return;
  tray.setAsked(edited.pictures, true);
  edited = null;
  setQuestion("");
  refresh();
}

function startOver() {
  edited = null;
  conversation.clear();
  tray.clear();
  notice("");
  setQuestion("");
}

async function keep() {
  try {
    await store.save(conversation.record);
  } catch (error) {
    if (error?.name === "QuotaExceededError") notice(t("historyFull")); // where nothing may be kept, the list says so
  }
}

function openKept(record) {
  startOver();
  const last = record.turns.at(-1);
  tray.load(record.turns.flatMap((turn) => turn.pictures));
  tray.note(last.answer);
  picker.set(last.shape, record.system);
  conversation.load(record);
  refresh();
  keepInView(true);
  question.focus({ preventScroll: true });
}

function addPictures(files) {
  if (tab === "captions") {
    captions.add(files);
    return;
  }
  show("ask");
  notice("");
  tray.add(files);
  if (tray.count && matchMedia("(hover: hover)").matches) question.focus({ preventScroll: true });
}

async function showModel() {
  const info = await serverInfo();
  tray.setLimits(info.limits);
  captions.setLimits(info.limits);
  const model = await modelCard(info.model);
  tray.setKinds(model.media);
  document.title = `${model.id} · mmserve`;
  byId("model-name").textContent = model.id;
  byId("model-description").textContent = model.description;
  byId("card-text").replaceChildren(...renderCard(model.card));
  byId("card").hidden = !model.card;
  byId("about").hidden = false;
}

// Shows whether questions can be answered, and looks again until they can.
let watch = null;
async function watchServer() {
  clearTimeout(watch);
  const ready = await isReady();
  byId("status").classList.toggle("ready", ready);
  byId("status-text").dataset.t = ready ? "ready" : "notReady";
  const text = t(byId("status-text").dataset.t);
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
  if (!ready) watch = setTimeout(watchServer, 1500);
}

function renderAgain() {
  stale = false;
  conversation.render();
}

byId("composer").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
question.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
};
question.oninput = fitQuestion;
byId("stop").onclick = () => running?.abort();
byId("cancel-edit").onclick = () => {
  cancelEdit();
  question.focus();
};
byId("new").onclick = () => {
  startOver();
  question.focus({ preventScroll: true });
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else cancelEdit();
});

// The newest answer stays in view when the form under it grows.
let height = byId("composer").offsetHeight;
new ResizeObserver(() => {
  const grown = byId("composer").offsetHeight - height;
  height += grown;
  if (grown > 0 && !conversation.empty) keepInView(atEnd(grown));
}).observe(byId("composer"));

const other = { en: "zh", zh: "en" };
function nameLanguage() {
  byId("language").textContent = language() === "en" ? "中文" : "English";
  byId("language").lang = language() === "en" ? "zh-CN" : "en";
}
byId("language").onclick = () => setLanguage(other[language()]);
onLanguage(() => {
  nameLanguage();
  refresh();
  if (running) stale = true;
  else if (!conversation.empty) renderAgain();
});

const show = watchTabs((name) => {
  tab = name;
  byId("skip").hidden = name !== "ask";
  status.setShown(name === "status");
});
watchInputs(addPictures);
nameLanguage();
refresh();
watchServer();
showModel().catch(() => {});
showExamples((file, text) => {
  if (running) return;
  startOver();
  addPictures([file]);
  picker.set({ kind: "text" });
  setQuestion(text);
  ask();
}).catch(() => {});
