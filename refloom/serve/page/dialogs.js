/* The list of keys, and the form for an API key. */

import { byId } from "./dom.js";

export function setUpKeysDialog() {
  const dialog = byId("keys");
  const toggle = () => (dialog.open ? dialog.close() : dialog.showModal());
  byId("keys-button").addEventListener("click", toggle);
  byId("keys-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  return toggle;
}

/** Ask a person for the server's key; gives null when they would rather not. */
export function askForKey(refused) {
  const [dialog, form, input] = [byId("key-dialog"), byId("key-form"), byId("api-key")];
  const why = refused ? "The server refused this key." : "The server asks for a key.";
  byId("key-why").textContent = why;
  input.value = "";
  return new Promise((resolve) => {
    const over = new AbortController();
    const listen = (target, event, act) =>
      target.addEventListener(event, act, { signal: over.signal });
    const answer = (key) => {
      over.abort();
      dialog.close();
      input.value = "";
      resolve(key);
    };
    listen(form, "submit", (event) => {
      event.preventDefault();
      answer(input.value.trim() || null);
    });
    listen(byId("key-cancel"), "click", () => answer(null));
    listen(dialog, "cancel", (event) => {
      event.preventDefault();
      answer(null);
    });
    if (!dialog.open) dialog.showModal();
    input.focus();
  });
}
