// Pictures, videos and sounds: what a file is, how it is sent, and how it is played.

import { el } from "./dom.js";
import { t, translate } from "./i18n.js";

const ENDINGS = { video: /\.(mp4|m4v|mov|webm|mkv|avi)$/i, audio: /\.(wav|mp3|flac|ogg|oga|opus)$/i };
const LIMITS = {
  image: { bytes: "max_picture_bytes", number: "max_pictures", many: "tooMany" },
  video: { bytes: "max_video_bytes", number: "max_videos", many: "tooManyVideos" },
  audio: { bytes: "max_sound_bytes", number: "max_sounds", many: "tooManySounds" },
};

// "image", "video" or "audio"; null for what is none of these. Browsers do not know the type of every file.
export function kindOf({ type }, name) {
  const said = ["image", "video", "audio"].find((kind) => type.startsWith(`${kind}/`));
  return said ?? Object.keys(ENDINGS).find((kind) => ENDINGS[kind].test(name)) ?? (type ? null : "image");
}

const OF_ANY_KIND = { dropTitle: "dropFile", addPicture: "addFile", welcome: "welcomeFile", welcomeText: "welcomeFileText" };

export const picturesOnly = (kinds) => kinds.every((kind) => kind === "image");

// The page speaks of files where the model takes other media than pictures.
export function speakOf(kinds) {
  if (picturesOnly(kinds)) return;
  for (const node of document.querySelectorAll("[data-t]")) node.dataset.t = OF_ANY_KIND[node.dataset.t] ?? node.dataset.t;
  translate();
}

// What stands for a medium in OpenAI's messages.
export function part(kind, url) {
  const name = `${kind}_url`;
  return { type: name, [name]: { url } };
}

// Why a file cannot be asked about, in words; null where it can. `kinds` are those that the model takes, `chosen` the
// media of the conversation.
export function fault(file, kinds, chosen, limits) {
  const { name } = file;
  const kind = kindOf(file, name);
  if (!kind) return t(kinds.length > 1 ? "notMedia" : "notPicture", { name });
  if (!kinds.includes(kind)) return t(`notTaken_${kind}`, { name });
  const { bytes, number, many } = LIMITS[kind];
  if (chosen.filter((medium) => medium.kind === kind).length >= limits[number]) return t(many, { most: limits[number] });
  return sizeFault(file, limits[bytes]);
}

export function sizeFault({ name, size }, most) {
  if (size === 0) return t("emptyFile", { name });
  if (size > most) return t("tooBig", { name, size: megabytes(size), most: megabytes(most) });
  return null;
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

// A player for a video or sound, and under it what the model saw or heard of it, once it has.
export function player({ kind, url, name, noted }, onError) {
  const play = el(kind, { src: url, controls: true, preload: "metadata", ariaLabel: name, onerror: onError });
  return el("div", { className: `player ${kind}` }, play, ...(noted ? [notes(kind, noted, play)] : []));
}

// The frames that the model saw, each at its place in time and a way to it; or how much it heard.
function notes(kind, noted, play) {
  if (kind === "audio") return el("p", { className: "seen", textContent: t("heard", { time: seconds(noted.heard_seconds) }) });
  const marks = noted.frames.map((time) => {
    const label = t("frameAt", { time: seconds(time) });
    const mark = el("button", { type: "button", className: "frame", ariaLabel: label, title: label });
    mark.style.left = `${(100 * time) / noted.duration}%`;
    mark.onclick = () => {
      play.pause();
      play.currentTime = time;
    };
    return mark;
  });
  const said = el("p", { className: "seen", textContent: t("seen", { count: marks.length }) });
  return el("div", {}, el("div", { className: "frames" }, ...marks), said);
}

const seconds = (time) => `${time.toFixed(1)} s`;

// A small sign of a medium, for a list of them.
export function sign({ kind, url, name }, alt) {
  if (kind === "audio") return el("span", { className: "sign", textContent: "♪", title: name });
  if (kind === "video") return el("video", { src: url, muted: true, preload: "metadata", tabIndex: -1, ariaHidden: "true" });
  return el("img", { src: url, alt });
}
