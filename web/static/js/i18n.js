// The page's language: English or Chinese, remembered.

import { words } from "./words.js";

const LANGUAGES = ["en", "zh"];
const TAGS = { en: "en", zh: "zh-CN" };
const listeners = [];
let current = first();

function first() {
  const kept = recall("language");
  if (LANGUAGES.includes(kept)) return kept;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

// What the browser remembers for this page; nothing where it does not allow that.
export function recall(name) {
  try {
    return localStorage.getItem(`mmserve.${name}`);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`mmserve.${name}`, value);
  } catch {
    // Then it holds until the page is left.
  }
}

export const language = () => current;
export const languageTag = () => TAGS[current];

// The words for `key`, with {name} replaced by values.name where there is one.
export function t(key, values = {}) {
  const known = words[key];
  if (!known) throw new Error(`no words for "${key}"`);
  return known[LANGUAGES.indexOf(current)].replace(/\{(\w+)\}/g, (written, name) => values[name] ?? written);
}

export const isKnown = (key) => key in words;

// fn() after each change of the language.
export function onLanguage(fn) {
  listeners.push(fn);
}

export function setLanguage(next) {
  current = next;
  remember("language", next);
  translate();
  for (const fn of listeners) fn();
}

// Sets every text that the document itself has: data-t is the text, data-t-label, -placeholder and -title attributes.
export function translate() {
  document.documentElement.lang = languageTag();
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.ariaLabel = t(node.dataset.tLabel);
  for (const node of document.querySelectorAll("[data-t-placeholder]")) node.placeholder = t(node.dataset.tPlaceholder);
}
