// The API key, for a server that wants one. Kept by the browser until its window is closed.

import { byId } from "./dom.js";
import { t } from "./i18n.js";

const PLACE = "mmserve.key";
let held = read();
let asking = null; // one dialog for however many requests were refused

function read() {
  try {
    return sessionStorage.getItem(PLACE) ?? "";
  } catch {
    return "";
  }
}

export const apiKey = () => held;

// Asks for a key in place of `refused`; true when there is another one to try.
export async function askForKey(refused) {
  if (held !== refused) return true;
  asking ??= ask(refused !== "").finally(() => {
    asking = null;
  });
  return asking;
}

function ask(again) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-hint").textContent = t(again ? "keyRefused" : "keyHint");
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const given = dialog.returnValue === "use" ? field.value.trim() : "";
      field.value = "";
      if (given) keep(given);
      resolve(given !== "");
    };
  });
}

function keep(key) {
  held = key;
  try {
    sessionStorage.setItem(PLACE, key);
  } catch {
    // Then it holds until the page is left.
  }
}
