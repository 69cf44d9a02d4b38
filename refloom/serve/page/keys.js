/* Single keys; none of them does anything while a person types. */

import { byId } from "./dom.js";

const OFF = "refloom-keys-off";
const FIELDS = "input, textarea, select, [contenteditable]";

/** The letter of a key, also on a keyboard whose letters are not Latin. */
function letter(event) {
  const foreign = event.key.length === 1 && event.key > "\u007f";
  return foreign && event.code.startsWith("Key") ? event.code[3].toLowerCase() : event.key;
}

function idle(event) {
  const { target } = event;
  if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) {
    return true;
  }
  const inside = target instanceof Element ? target : document.body;
  // Arrows scroll wide code and tables sideways.
  return inside.matches(FIELDS) || (event.key.startsWith("Arrow") && inside.closest("pre, table"));
}

/** Bind keys: {key: action}. Those in `once` do not repeat while they are held down. */
export function bindKeys(actions, once) {
  const box = byId("keys-on");
  box.checked = localStorage.getItem(OFF) === null;
  box.addEventListener("change", () => {
    if (box.checked) localStorage.removeItem(OFF);
    else localStorage.setItem(OFF, "1");
  });
  document.addEventListener("keydown", (event) => {
    const key = letter(event);
    const action = Object.hasOwn(actions, key) ? actions[key] : null;
    if (!action || idle(event) || (event.repeat && once.includes(key))) return;
    if (document.querySelector("dialog[open]") && !"?g".includes(key)) return;
    if (!box.checked && key.length === 1) return;
    event.preventDefault();
    action();
  });
}
