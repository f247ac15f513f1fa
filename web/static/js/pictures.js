// The pictures, videos and sounds of the conversation: chosen, shown large, and listed as thumbnails.

import { byId, el, newId } from "./dom.js";
import { droppedFiles } from "./folders.js";
import { onLanguage, t } from "./i18n.js";
import { fault, kindOf, picturesOnly, player, sign, sizeFault, speakOf } from "./media.js";

const MOST_BLOWN_UP = 4; // a tiny picture is shown larger, and not as a few large squares

export class Tray {
  #pictures = [];
  #shown = null;
  #limits = { max_picture_bytes: Infinity, max_pictures: Infinity };
  #kinds = ["image"];

  // onChange() after every change; onRefuse(sentence) when a file is not taken.
  constructor({ onChange, onRefuse }) {
    this.onChange = onChange;
    this.onRefuse = onRefuse;
    onLanguage(() => this.#renderAnew());
  }

  setLimits(limits) {
    this.#limits = limits;
  }

  // The kinds of media that the model takes.
  setKinds(kinds) {
    this.#kinds = kinds;
    byId("files").accept = kinds.map((kind) => `${kind}/*`).join(",");
    byId("photograph").hidden = !kinds.includes("image");
    speakOf(kinds);
    this.onChange();
  }

  get picturesOnly() {
    return picturesOnly(this.#kinds);
  }

  // What the model saw of each video, and heard of each sound, in their order.
  note({ videos = [], sounds = [] }) {
    for (const [kind, said] of [["video", videos], ["audio", sounds]]) {
      this.#pictures.filter((picture) => picture.kind === kind).forEach((picture, i) => {
        picture.noted = said[i] ?? picture.noted;
      });
    }
    this.#renderAnew();
  }

  get count() {
    return this.#pictures.length;
  }

  // Pictures that no question has been sent with yet.
  get waiting() {
    return this.#pictures.filter((picture) => !picture.asked);
  }

  add(files) {
    for (const file of files) {
      const reason = this.#refusal(file);
      if (reason) {
        this.onRefuse(reason);
        continue;
      }
      const picture = { id: newId(), file, name: file.name || t("pasted"), kind: kindOf(file, file.name), url: URL.createObjectURL(file), asked: false };
      this.#pictures.push(picture);
      this.#shown = picture;
    }
    this.#render();
  }

  // Gives pictures back to the next question, or takes them from it.
  setAsked(pictures, asked) {
    for (const picture of pictures) picture.asked = asked;
    this.#render();
  }

  // Drops pictures whose questions are gone.
  drop(pictures) {
    for (const picture of pictures) this.#forget(picture);
    this.#render();
  }

  // Takes the pictures of a kept conversation, in which they have been asked about.
  load(pictures) {
    this.clear();
    for (const picture of pictures) Object.assign(picture, { kind: kindOf(picture.file, picture.name), url: URL.createObjectURL(picture.file), asked: true });
    this.#pictures = [...pictures];
    this.#shown = this.#pictures.at(-1) ?? null;
    this.#render();
  }

  clear() {
    for (const picture of this.#pictures) URL.revokeObjectURL(picture.url);
    this.#pictures = [];
    this.#shown = null;
    this.#render();
  }

  #refusal(file) {
    return fault(file, this.#kinds, this.#pictures, this.#limits);
  }

  #forget(picture) {
    const at = this.#pictures.indexOf(picture);
    if (at < 0) return;
    this.#pictures.splice(at, 1);
    URL.revokeObjectURL(picture.url);
    if (this.#shown === picture) this.#shown = this.#pictures[Math.min(at, this.count - 1)] ?? null;
  }

  #remove(picture) {
    this.#forget(picture);
    this.#render();
    (byId("strip").querySelector(".thumb, .more") ?? byId("files")).focus();
  }

  #show(picture) {
    this.#shown = picture;
    this.#render();
    byId("strip").querySelector('[aria-pressed="true"]')?.focus();
  }

  #render() {
    const shown = this.#shown;
    byId("drop").hidden = shown !== null;
    byId("stage").hidden = shown === null;
    byId("files").tabIndex = shown === null ? 0 : -1; // "+" takes its place among the thumbnails
    if (shown) this.#renderStage(shown);
    byId("strip").replaceChildren(...(this.count ? [...this.#pictures.map((p, i) => this.#thumb(p, i)), more()] : []));
    this.onChange();
  }

  // With a new player: what is said under it has changed.
  #renderAnew() {
    byId("stage-player").replaceChildren();
    this.#render();
  }

  #renderStage(picture) {
    if (picture.kind !== "image") return this.#renderPlayer(picture);
    const image = byId("stage-image");
    const caption = byId("stage-caption");
    byId("stage-player").replaceChildren();
    if (image.src === picture.url && !image.hidden) return;
    image.hidden = false;
    byId("no-preview").hidden = true;
    caption.textContent = picture.name;
    image.style.maxWidth = "";
    image.onload = () => {
      caption.textContent = `${picture.name} · ${image.naturalWidth} × ${image.naturalHeight}`;
      image.style.maxWidth = `min(100%, ${MOST_BLOWN_UP * image.naturalWidth}px)`;
    };
    image.onerror = () => {
      image.hidden = true;
      byId("no-preview").hidden = false;
    };
    image.alt = picture.name;
    image.src = picture.url;
  }

  #renderPlayer(medium) {
    const place = byId("stage-player");
    if (place.querySelector(medium.kind)?.src === medium.url) return;
    byId("stage-image").hidden = true;
    byId("no-preview").hidden = true;
    byId("stage-caption").textContent = medium.name;
    place.replaceChildren(player(medium, () => {
      byId("no-preview").hidden = false;
    }));
  }

  #thumb(picture, index) {
    const label = `${t(`kind_${picture.kind}`)} ${index + 1}: ${picture.name}`;
    const show = el("button", { type: "button", className: "thumb", ariaLabel: `${t("show")} ${label}`, title: picture.name });
    show.ariaPressed = String(picture === this.#shown);
    const image = sign(picture, "");
    image.onerror = () => image.replaceWith(el("span", { className: "broken", textContent: "?" }));
    show.append(image);
    show.onclick = () => this.#show(picture);
    if (picture.asked) return el("li", {}, show);
    const remove = el("button", { type: "button", className: "remove", ariaLabel: `${t("remove")} ${label}`, textContent: "×" });
    remove.onclick = () => this.#remove(picture);
    return el("li", {}, show, remove);
  }
}

function more() {
  const button = el("button", { type: "button", className: "more", ariaLabel: t("addAnother"), title: t("addAnother"), textContent: "+" });
  button.onclick = () => byId("files").click();
  return el("li", {}, button);
}

// Why a file cannot be asked about, in words; null where it can.
export function pictureFault(file, most) {
  if (file.type && !file.type.startsWith("image/")) return t("notPicture", { name: file.name });
  return sizeFault(file, most);
}

// A file as a data URI, read when it is needed.
export function dataURI(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(t("unreadable", { name: file.name ?? "" })));
    reader.readAsDataURL(file);
  });
}

// Pictures come by picker, camera, drop and paste, anywhere on the page.
export function watchInputs(add) {
  for (const input of [byId("files"), byId("camera")]) {
    input.onchange = () => {
      add([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    };
  }
  byId("photograph").onclick = () => byId("camera").click();
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });
  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0; // dragenter and dragleave also come for every element on the way
  const veil = (change) => {
    depth = Math.max(0, depth + change);
    byId("veil").hidden = depth === 0;
  };
  document.addEventListener("dragenter", (event) => carriesFiles(event) && veil(+1));
  document.addEventListener("dragleave", (event) => carriesFiles(event) && veil(-1));
  document.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    veil(0);
    droppedFiles(event.dataTransfer).then(add, () => {}); // a folder that went away meanwhile
  });
}
