// Small helpers over the document. Text is only ever set as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// The same for drawings, whose properties are all attributes.
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const button = (text, onclick, properties = {}) => el("button", { type: "button", textContent: text, onclick, ...properties });

// An id that is its own in this browser. (crypto.randomUUID is missing on plain http.)
export const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 10);

// Hands the reader a file.
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // On plain http, and where the reader forbids it, there is only the old way.
    const box = el("textarea", { value: text, className: "unseen" });
    const before = document.activeElement;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    before?.focus();
  }
}
