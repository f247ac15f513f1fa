// Example pictures with a question each, when the server has some.

import { examples } from "./api.js";
import { byId, el } from "./dom.js";

// onPick(file, question) when a card is chosen.
export async function showExamples(onPick) {
  const known = await examples();
  if (!known.length) return;
  byId("example-list").replaceChildren(...known.map((example) => card(example, onPick)));
  byId("examples").hidden = false;
}

function card({ file, question }, onPick) {
  const url = `/examples/${file.split("/").map(encodeURIComponent).join("/")}`;
  const button = el("button", { type: "button", className: "example" });
  button.append(el("img", { src: url, alt: "", loading: "lazy" }), el("span", { textContent: question }));
  button.onclick = async () => {
    const blob = await (await fetch(url)).blob();
    onPick(new File([blob], file.split("/").pop(), { type: blob.type }), question);
  };
  return el("li", {}, button);
}
