// The page's parts as tabs, by the pattern of the ARIA practices: arrows move, and what is moved to is shown.

import { byId } from "./dom.js";

// onShow(name) after each change; names are the part of the tabs' ids behind "tab-". Returns show(name).
export function watchTabs(onShow) {
  const tabs = [...byId("tabs").querySelectorAll('[role="tab"]')];
  const show = (chosen) => {
    for (const tab of tabs) {
      const selected = tab === chosen;
      tab.ariaSelected = String(selected);
      tab.tabIndex = selected ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !selected;
    }
    onShow(chosen.id.slice(4));
  };
  for (const [i, tab] of tabs.entries()) {
    tab.onclick = () => show(tab);
    tab.onkeydown = (event) => {
      const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const target = tabs[(next + tabs.length) % tabs.length];
      target.focus();
      show(target);
    };
  }
  return (name) => show(byId(`tab-${name}`));
}
