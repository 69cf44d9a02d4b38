/* Puts the page together: store, views, keys. */

import { ask, onKeyNeeded } from "./api.js";
import { ReviewStore } from "./store.js";
import { askForKey, setUpKeysDialog } from "./dialogs.js";
import { byId } from "./dom.js";
import { dropDraft, Editor, keepDraft, ReasonForm } from "./editor.js";
import { bindKeys } from "./keys.js";
import { showProgress, showQueue, showUnsent } from "./queue.js";
import { RunSource } from "./run_source.js";
import { showHeading, showLoading, showMessage, showSample } from "./sample.js";
import { ThreadsSource } from "./thread_source.js";

class Page {
  constructor(store) {
    this.store = store;
    this.cache = new Map();
    this.shownId = undefined;
    this.view = null;
    this.editor = null;
    this.reasons = new Map();
    /** Id -> the criteria that are marked as wrong, until the decision takes them along. */
    this.marks = new Map();
    this.reasonForm = new ReasonForm((reason) =>
      this.decide(reason ? { decision: "reject", reason } : { decision: "reject" }),
    );
    store.addEventListener("change", () => this.changed());
    store.addEventListener("said", ({ detail }) => this.say(detail.text, detail.wrong));
    store.addEventListener("undone", ({ detail }) => this.undone(detail));
  }

  async start() {
    try {
      await this.store.load();
      if (!this.store.current) await this.show(null);
    } catch (error) {
      showHeading(null);
      showMessage("Nothing could be read", error.message, "Try again", () => this.start());
    }
  }

  changed() {
    showQueue(this.store);
    showProgress(this.store);
    showUnsent(this.store);
    if (this.store.current !== this.shownId) this.show(this.store.current);
  }

  /** Bring an item to the page and the focus to its heading. */
  async show(id) {
    const first = this.shownId === undefined;
    this.shownId = id;
    this.view = null;
    this.editor?.remove();
    this.editor = null;
    this.reasonForm.close();
    showHeading(this.store.item, this.store.total);
    if (id === null) this.showEnd();
    else showLoading();
    if (!first || id === null) this.focus();
    if (id !== null) await this.fill(id);
  }

  async fill(id) {
    try {
      const found = await this.fetch(id);
      if (this.shownId !== id) return;
      this.view = showSample(found, this.marksOf(id));
      if (!found.shown) this.say(`Shown as source text: ${found.error}`);
    } catch (error) {
      this.cache.delete(id);
      if (this.shownId !== id) return;
      const { item, total } = this.store;
      showMessage("", error.message, "Try again", () => this.show(id));
      showHeading(item, total);
    }
    const at = this.store.items.findIndex((item) => item.id === id);
    const next = this.store.items[at + 1];
    if (next) this.fetch(next.id).catch(() => this.cache.delete(next.id));
  }

  /** A sample with its HTML; without, if that cannot be had: its source text can be reviewed too. */
  fetch(id) {
    if (!this.cache.has(id)) this.cache.set(id, this.read(id));
    for (const old of this.cache.keys()) {
      if (this.cache.size > 20 && old !== id) this.cache.delete(old);
    }
    return this.cache.get(id);
  }

  async read(id) {
    await this.store.returning.get(id);
    const { sample, references = [] } = await this.store.source.item(id);
    const { instruction, response, attempts = [], reasoning } = sample;
    // A bare answer was written anew, and has no draft.
    const drafts = (reasoning == null ? attempts : []).slice(0, 1).map((attempt) => ({ response: attempt.response }));
    const pairs = references.map((one) => ({
      id: String(one.id ?? ""),
      instruction: one.instruction ?? "",
      response: one.response ?? "",
    }));
    const body = { sample: { instruction, response, attempts: drafts }, references: pairs };
    try {
      return { sample, references, shown: await ask("POST", "review/shown", body) };
    } catch (error) {
      return { sample, references, shown: null, error: error.message };
    }
  }

  /** The marks on a sample's criteria; null where decisions cannot carry any. */
  marksOf(id) {
    if (!this.store.source.marks) return null;
    if (!this.marks.has(id)) this.marks.set(id, new Set());
    return this.marks.get(id);
  }

  showEnd() {
    const { decided, beyond } = this.store;
    if (beyond) return showMessage("More is coming", "", "Look again", () => this.start());
    const title = decided ? "All decided" : "Nothing waits";
    const text = decided ? "Every sample has its decision." : "There is no sample to review yet.";
    return showMessage(title, text, "Look again", () => this.start());
  }

  focus() {
    scrollTo({ top: 0 });
    byId("heading").focus({ preventScroll: true });
  }

  say(text, wrong = false) {
    byId("status").textContent = wrong ? "" : text;
    byId("alert").textContent = wrong ? text : "";
  }

  decide(decision) {
    if (!this.view) return this.say("It has not come yet.");
    const { current } = this.store;
    if (decision.decision !== "edit") dropDraft(current);
    this.editor?.remove();
    this.editor = null;
    const wrong = [...(this.marks.get(current) ?? [])];
    this.marks.delete(current);
    return this.store.decide(wrong.length ? { ...decision, wrong_criteria: wrong } : decision);
  }

  accept() {
    if (!this.editor) this.decide({ decision: "accept" });
  }

  undo() {
    if (!this.editor) this.store.undo();
  }

  edit() {
    if (!this.view || this.editor) return;
    this.reasonForm.close();
    this.say("");
    this.editor = new Editor(this.view, this.store.current, {
      done: (response) => this.decide({ decision: "edit", response }),
      closed: () => {
        this.editor = null;
        this.focus();
      },
      say: (text) => this.say(text),
    });
  }

  reject() {
    if (!this.view || this.editor) return;
    this.say("");
    this.reasonForm.open(this.reasons.get(this.store.current));
  }

  /** What was typed for a decision that was taken back is there for the next one. */
  undone({ id, decision }) {
    if (decision.decision === "edit") keepDraft(id, decision.response);
    if (decision.reason) this.reasons.set(id, decision.reason);
    if (decision.wrong_criteria) this.marks.set(id, new Set(decision.wrong_criteria));
  }

  turn(mode) {
    if (!this.view || this.editor) return;
    if (!this.view.turn(mode)) this.say("The first draft is the response: no differences.");
  }

  step(by) {
    if (!this.editor) this.store.step(by);
  }
}

function connect(page) {
  const [accept, edit] = [() => page.accept(), () => page.edit()];
  const [reject, undo] = [() => page.reject(), () => page.undo()];
  const [next, previous] = [() => page.step(1), () => page.step(-1)];
  const [differences, source] = [() => page.turn("changes"), () => page.turn("source")];
  const buttons = { accept, edit, reject, undo, next, previous };
  for (const [id, action] of Object.entries(buttons)) byId(id).addEventListener("click", action);
  const arrows = { ArrowRight: next, ArrowLeft: previous };
  const letters = { n: next, j: next, p: previous, k: previous, d: differences, s: source };
  const keys = { a: accept, e: edit, r: reject, u: undo, "?": setUpKeysDialog() };
  bindKeys({ ...keys, ...letters, ...arrows }, ["a", "e", "r", "u", "d", "s", "?"]);
}

onKeyNeeded(askForKey);
try {
  const config = await ask("GET", "review/config");
  const page = new Page(new ReviewStore(config.source === "threads" ? new ThreadsSource() : new RunSource()));
  connect(page);
  await page.start();
} catch (error) {
  showMessage("Nothing could be read", error.message, "Try again", () => location.reload());
}
