// The page, put together.

import { isReady, modelCard, serverInfo } from "./api.js";
import { renderCard } from "./card.js";
import { Conversation, keepInView } from "./conversation.js";
import { byId } from "./dom.js";
import { showExamples } from "./examples.js";
import { Tray, watchInputs } from "./pictures.js";

const question = byId("question");
const conversation = new Conversation();
const tray = new Tray({ onChange: refresh, onRefuse: notice });
let running = null; // the AbortController of the answer that is being written

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
  byId("welcome").hidden = begun;
  document.body.classList.toggle("begun", begun);
  document.body.classList.toggle("chosen", tray.count > 0);
  question.placeholder = begun ? "Ask a follow-up…" : tray.count ? "Ask about the picture…" : "What would you like to know?";
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
    notice("Add a picture first: drop one, paste one, or choose a file.");
    byId("files").focus();
    return;
  }
  notice("");
  const pictures = tray.waiting;
  running = new AbortController();
  setQuestion("");
  const turn = conversation.ask(text, pictures, running.signal);
  refresh();
  const answered = await turn;
  running = null;
  if (answered) {
    tray.markAsked(pictures);
  } else {
    if (!question.value) setQuestion(text); // to be mended and asked again
    watchServer();
  }
  refresh();
  keepInView(false); // the question's box may have grown again
  question.focus({ preventScroll: true });
}

function startOver() {
  conversation.clear();
  tray.clear();
  notice("");
  setQuestion("");
}

function addPictures(files) {
  notice("");
  tray.add(files);
  if (tray.count && matchMedia("(hover: hover)").matches) question.focus({ preventScroll: true });
}

async function showModel() {
  const info = await serverInfo();
  tray.setLimits(info.limits);
  const model = await modelCard(info.model);
  document.title = `${model.id} · mmserve`;
  byId("model-name").textContent = model.id;
  byId("model-description").textContent = model.description;
  byId("card-text").replaceChildren(...renderCard(model.card));
  byId("card").hidden = !model.card;
  byId("about").hidden = false;
}

// Shows whether questions can be answered, and looks again until they can.
async function watchServer() {
  const ready = await isReady();
  byId("status").classList.toggle("ready", ready);
  const text = ready ? "ready" : "the model is not ready yet…";
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
  if (!ready) setTimeout(watchServer, 1500);
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
byId("new").onclick = () => {
  startOver();
  question.focus({ preventScroll: true });
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

watchInputs(addPictures);
refresh();
watchServer();
showModel().catch(() => {});
showExamples((file, text) => {
  if (running) return;
  startOver();
  addPictures([file]);
  setQuestion(text);
  ask();
}).catch(() => {});
