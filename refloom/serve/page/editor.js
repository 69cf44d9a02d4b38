/* Editing a response, and giving a reason: what is typed is never thrown away. */

import { byId, make } from "./dom.js";

const drafts = new Map();
const unified = (text) => text.replace(/\r\n?/g, "\n");

export const keepDraft = (id, text) => drafts.set(id, text);
export const dropDraft = (id) => drafts.delete(id);

/** Put an editor in the place of a response. `done(text)` is called with what is to be saved. */
export class Editor {
  constructor(view, id, { done, closed, say }) {
    Object.assign(this, { view, id, done, closed, say });
    const original = view.sample.response;
    this.area = make("textarea", { "aria-label": "Response", spellcheck: "true", rows: "12" });
    this.area.value = drafts.get(id) ?? original;
    this.area.addEventListener("keydown", (event) => this.#key(event));
    this.area.addEventListener("input", () => drafts.set(id, this.area.value));
    const button = (text, key, props, action) => {
      const hint = key ? make("kbd", { text: key }) : null;
      return make("button", { type: "button", ...props, on: { click: action } }, text, hint);
    };
    this.element = make(
      "section",
      { class: "editor", "aria-label": "Edit the response" },
      make("div", { class: "bar" }, make("h3", { text: "Edit the response" })),
      this.area,
      make(
        "div",
        { class: "buttons" },
        button("Save", "Ctrl ⏎", { class: "accept" }, () => this.save()),
        button("Close", "Esc", { class: "plain" }, () => this.close()),
        button("Start over", null, { class: "plain" }, () => this.#startOver(original)),
      ),
    );
    view.element.replaceWith(this.element);
    document.body.classList.add("editing");
    this.area.focus({ preventScroll: true });
    this.area.setSelectionRange(0, 0);
    this.area.scrollTop = 0;
    this.element.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    if (event.isComposing) return;
    const save = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (!save && event.key !== "Escape") return;
    event.preventDefault();
    if (save) this.save();
    else this.close();
  }

  #startOver(original) {
    this.area.value = original;
    drafts.delete(this.id);
    this.area.focus();
  }

  save() {
    const text = this.area.value;
    if (!text.trim()) return this.say("A response cannot be empty.");
    if (text === unified(this.view.sample.response)) {
      return this.say("Nothing is changed: close it, and accept it as it is.");
    }
    this.remove();
    return this.done(text);
  }

  close() {
    const kept = this.area.value !== unified(this.view.sample.response);
    if (!kept) drafts.delete(this.id);
    this.remove();
    this.closed();
    this.say(kept ? "Closed. Your text is kept: e opens it again." : "Closed.");
  }

  remove() {
    this.element.replaceWith(this.view.element);
    document.body.classList.remove("editing");
  }
}

/** Ask for a reason in the place of the buttons. */
export class ReasonForm {
  constructor(done) {
    this.form = byId("reason-form");
    this.input = byId("reason");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.close();
      done(this.input.value.trim());
      this.input.value = "";
    });
    byId("reason-cancel").addEventListener("click", () => this.cancel());
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault();
      this.cancel();
    });
  }

  open(reason = "") {
    this.input.value = reason;
    byId("buttons").hidden = true;
    this.form.hidden = false;
    this.input.focus({ preventScroll: true });
  }

  close() {
    byId("buttons").hidden = false;
    this.form.hidden = true;
  }

  cancel() {
    this.close();
    byId("heading").focus({ preventScroll: true });
  }

  get isOpen() {
    return !this.form.hidden;
  }
}
