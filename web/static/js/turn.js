// One question and its answer in the log.

import { renderAnswer } from "./answer.js";
import { boxFigure, parseBoxes, pictureSize, plain, readable } from "./boxes.js";
import { button, byId, copyText, el } from "./dom.js";
import { t } from "./i18n.js";
import { sign } from "./media.js";
import { quietLine } from "./meter.js";

// Adds a turn to the log. `on` has edit(), retry(), curl() and python(). Returns {write, end, fail}.
export function showTurn(turn, on) {
  const asked = el("div", { className: "turn asked" }, el("span", { className: "unseen", textContent: t("youAsked") }));
  const thumbs = turn.pictures.map((medium) => Object.assign(sign(medium, medium.name), { onerror: (e) => e.target.remove() }));
  if (thumbs.length) asked.append(el("div", { className: "with" }, ...thumbs));
  asked.append(el("p", { textContent: turn.question }));
  const dots = el("span", { className: "dots", role: "img", ariaLabel: t("waiting") }, el("i"), el("i"), el("i"));
  const body = el("div", { className: "answer-body" });
  const answer = el("div", { className: "turn answer", ariaBusy: "true" }, el("span", { className: "unseen", textContent: t("answerIs") }), dots, body);
  byId("log").append(asked, answer);
  let growing = null;
  const settle = () => {
    dots.remove();
    answer.ariaBusy = "false";
  };
  return {
    write(text) {
      dots.remove();
      growing ??= body.appendChild(el("p", { className: "answer-text growing" }));
      growing.textContent = readable(text);
      keepInView(false);
    },
    // `context` is {pictures, shown}: how many pictures the prompt had, and the last of them.
    end(context) {
      const follow = atEnd();
      settle();
      asked.append(actions("asked-actions", [["edit", on.edit]]));
      body.replaceChildren(...renderAnswer(turn.answer, turn.shape));
      const line = quietLine(turn.answer.facts, { pictures: context.pictures, system: turn.system });
      answer.append(el("p", { className: "meta", textContent: line }));
      answer.append(actions("answer-actions", [
        ["copy", ({ target }) => copy(target, plain(turn.answer.text))],
        ["copyCurl", ({ target }) => copy(target, on.curl())],
        ["copyPython", ({ target }) => copy(target, on.python())],
        ["retry", on.retry],
      ]));
      if (context.shown) drawBoxes(body, turn.answer, context.shown);
      keepInView(follow);
    },
    fail(message) {
      settle();
      answer.classList.add("failed");
      body.replaceWith(el("p", { className: "failure", role: "alert", textContent: message }));
      keepInView(true);
    },
  };
}

function actions(className, wanted) {
  return el("div", { className: `actions ${className}` }, ...wanted.map(([key, act]) => button(t(key), act, { className: "plain" })));
}

// Copies, and says so on the button and aloud.
async function copy(pressed, text) {
  await copyText(text);
  byId("said").textContent = "";
  byId("said").textContent = t("copied");
  const before = pressed.textContent;
  if (before === t("copied")) return;
  pressed.textContent = t("copied");
  setTimeout(() => {
    pressed.textContent = before;
  }, 1500);
}

async function drawBoxes(body, { text, resized }, picture) {
  if (!/\d/.test(text)) return;
  const size = await pictureSize(picture.url);
  const boxes = size ? parseBoxes(text, size, resized) : [];
  if (!boxes.length) return;
  const labels = boxes.map((box) => box.label || t("box")).join(", ");
  const follow = atEnd();
  body.append(boxFigure(picture.url, size, boxes, t("boxesOver", { count: boxes.length, name: picture.name, labels })));
  keepInView(follow);
}

// Follows the newest text, unless the reader has scrolled away from it.
export function keepInView(always) {
  const scroller = scrolling();
  if (always || atEnd()) scroller.scrollTop = scroller.scrollHeight;
}

// Whether the newest text is in view, or was before something `grown` pixels high came in its way.
export function atEnd(grown = 0) {
  const { scrollHeight, clientHeight, scrollTop } = scrolling();
  return scrollHeight - clientHeight - scrollTop < 120 + grown;
}

function scrolling() {
  const box = byId("scroll");
  return box.scrollHeight > box.clientHeight + 1 ? box : document.scrollingElement;
}
