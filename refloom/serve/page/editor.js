/* Editing a response, and giving a reason: what is typed is never thrown away. */

import { byId, make } from "./dom.js";

const drafts = new Map();
const unified = (text) => text.replace(/\r\n?/g, "\n");

/** Keep what was typed for a sample: {response, instruction}, either of them or both. */
export const keepDraft = (id, texts) => drafts.set(id, { ...drafts.get(id), ...texts });
export const dropDraft = (id) => drafts.delete(id);

/**
 * Put an editor in the place of a response. `texts` are {response} or {response, instruction};
 * `done(edited)` is called with those that are to be saved, and gives why they cannot be, or null.
 */
export class Editor {
  constructor(view, id, texts, { decided = {}, focus = "response", done, closed, say }) {
    Object.assign(this, { view, id, texts, done, closed, say });
    this.areas = new Map(Object.keys(texts).sort().map((name) => [name, this.#area(name, decided[name] ?? texts[name])]));
    this.problem = make("p", { class: "problem", role: "alert" });
    const button = (text, key, props, action) => {
      const hint = key ? make("kbd", { text: key }) : null;
      return make("button", { type: "button", ...props, on: { click: action } }, text, hint);
    };
    this.element = make(
      "section",
      { class: "editor", "aria-label": "Edit the sample" },
      ...[...this.areas].map(([name, area]) =>
        make("label", { class: "field" }, make("span", { text: `Edit the ${name}` }), area),
      ),
      this.problem,
      make(
        "div",
        { class: "buttons" },
        button("Save", "Ctrl ⏎", { class: "accept" }, () => this.save()),
        button("Close", "Esc", { class: "plain" }, () => this.close()),
        button("Start over", null, { class: "plain" }, () => this.#startOver()),
      ),
    );
    view.element.replaceWith(this.element);
    document.body.classList.add("editing");
    const area = this.areas.get(focus) ?? this.areas.get("response");
    area.focus({ preventScroll: true });
    area.setSelectionRange(0, 0);
    area.scrollTop = 0;
    this.element.scrollIntoView({ block: "nearest" });
  }

  #area(name, text) {
    const area = make("textarea", { name, dir: "auto", spellcheck: "true", rows: name === "response" ? "12" : "3" });
    area.value = drafts.get(this.id)?.[name] ?? text;
    area.addEventListener("keydown", (event) => this.#key(event));
    area.addEventListener("input", () => keepDraft(this.id, { [name]: area.value }));
    return area;
  }

  #key(event) {
    if (event.isComposing) return;
    const save = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (!save && event.key !== "Escape") return;
    event.preventDefault();
    if (save) this.save();
    else this.close();
  }

  #startOver() {
    for (const [name, area] of this.areas) area.value = this.texts[name];
    drafts.delete(this.id);
    this.problem.textContent = "";
    this.areas.get("response").focus();
  }

  #isChanged(name) {
    return this.areas.get(name).value.trim() !== unified(this.texts[name]).trim();
  }

  async save() {
    if (this.saving) return;
    const names = [...this.areas.keys()];
    const empty = names.find((name) => !this.areas.get(name).value.trim());
    if (empty) return this.#refuse(empty, `The ${empty} cannot be empty.`);
    if (!names.some((name) => this.#isChanged(name))) {
      return this.say("Nothing is changed: close it, and accept it as it is.");
    }
    const edited = { response: this.areas.get("response").value };
    if (names.includes("instruction") && this.#isChanged("instruction")) {
      edited.instruction = this.areas.get("instruction").value;
    }
    this.saving = true;
    const problem = await this.done(edited);
    this.saving = false;
    if (problem) this.#refuse(edited.instruction ? "instruction" : "response", problem);
  }

  #refuse(name, problem) {
    this.problem.textContent = problem;
    this.areas.get(name).focus();
  }

  close() {
    const kept = [...this.areas.keys()].some((name) => this.#isChanged(name));
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

  /** Offer reasons to choose from: `choose(reason)` is called with one. */
  offer(reasons, choose) {
    const line = (reason, i) => {
      const key = i < 9 ? make("kbd", { text: String(i + 1) }) : null;
      const click = () => {
        this.close();
        this.input.value = "";
        choose(reason);
      };
      return make("li", {}, make("button", { type: "button", class: "plain", on: { click } }, key, reason));
    };
    byId("reasons").replaceChildren(...reasons.map(line));
    byId("key-reasons").replaceChildren(
      ...reasons.slice(0, 9).map((reason, i) => make("li", {}, make("kbd", { text: String(i + 1) }), reason)),
    );
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
