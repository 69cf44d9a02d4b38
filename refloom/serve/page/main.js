/* Puts the page together: store, views, keys. */

import { ask, onKeyNeeded, untilItAnswers } from "./api.js";
import { openFor } from "./outbox.js";
import { Filter } from "./filter.js";
import { figuresOf } from "./figures.js";
import { ReviewStore } from "./store.js";
import { askForKey, setUpKeysDialog } from "./dialogs.js";
import { byId, make } from "./dom.js";
import { dropDraft, Editor, keepDraft, ReasonForm } from "./editor.js";
import { bindKeys } from "./keys.js";
import { showProgress, showQueue, showUnsent } from "./queue.js";
import { RunSource } from "./run_source.js";
import { showDecision, showHeading, showLoading, showMessage, showSample } from "./sample.js";
import { ThreadsSource } from "./thread_source.js";
import { pressMark, stepVerdict } from "./verdicts.js";

class Page {
  constructor(store) {
    this.store = store;
    this.cache = new Map();
    this.shownId = undefined;
    this.view = null;
    this.editor = null;
    this.reasons = new Map();
    /** Id -> the verdicts and criteria marked as wrong, until the decision takes them along. */
    this.marks = new Map();
    this.reasonForm = new ReasonForm((reason) => this.rejectFor(reason));
    if (store.source.run) {
      store.filter = new Filter((text) => store.source.search(text), () => store.refilter());
    }
    store.addEventListener("revised", ({ detail }) => this.revised(detail));
    store.addEventListener("change", () => this.changed());
    store.addEventListener("said", ({ detail }) => this.say(detail.text, detail.wrong));
    store.addEventListener("back", () => this.back());
    store.addEventListener("undone", ({ detail }) => this.undone(detail));
  }

  async start() {
    try {
      await this.store.load();
      this.reasonForm.offer(this.store.reasons, (reason) => this.rejectFor(reason));
      if (!this.store.current) await this.show(null);
    } catch (error) {
      showHeading(null);
      showMessage("Nothing could be read", error.message, "Try again", () => this.start());
      if (error.unreachable) this.store.lost();
    }
  }

  /** The server is back: bring what could not be had without it. */
  back() {
    if (!this.store.loaded) this.start();
    else if (!this.editor && !this.view?.shown) this.show(this.shownId);
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
      this.view = showSample(found, this.marksOf(id, found.sample.decided));
      showDecision(found.sample.decided);
      if (!found.shown) this.withoutHtml(id, found.error);
    } catch (error) {
      this.cache.delete(id);
      if (this.shownId !== id) return;
      const { item, total } = this.store;
      showMessage("", error.message, "Try again", () => this.show(id));
      showHeading(item, total);
      if (error.unreachable) this.store.lost();
    }
    const { listed } = this.store;
    const next = listed[listed.findIndex((item) => item.id === id) + 1];
    if (next) this.fetch(next.id).catch(() => this.cache.delete(next.id));
  }

  /** A sample is shown as its source text: with HTML perhaps when it is shown again. */
  withoutHtml(id, error) {
    this.cache.delete(id);
    if (error.unreachable) this.store.lost();
    else this.say(`Shown as source text: ${error.message}`);
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
      return { sample, references, shown: null, error };
    }
  }

  /** The marks on a sample's verdicts and criteria; null where decisions cannot carry any. */
  marksOf(id, decided) {
    if (!this.store.source.run) return null;
    if (!this.marks.has(id)) this.setMarks(id, decided);
    return this.marks.get(id);
  }

  setMarks(id, decision) {
    const { wrong_criteria: criteria, wrong_verdicts: verdicts } = decision ?? {};
    this.marks.set(id, { criteria: new Set(criteria), verdicts: new Set(verdicts) });
  }

  async showEnd() {
    const { decided, beyond, all, filter, mode, source } = this.store;
    if (all.length && filter.active) {
      return showMessage("No sample fits", "None fits what you search or filter by.", "Show all", () => filter.clear());
    }
    if (mode === "decided") {
      return showMessage("Nothing decided", "No sample is decided yet.", "Those that wait", () => this.store.turn("waiting"));
    }
    if (beyond) return showMessage("More is coming", "", "Look again", () => this.start());
    const title = decided ? "All decided" : "Nothing waits";
    const text = decided ? "Every sample has its decision." : "There is no sample to review yet.";
    showMessage(title, text, "Look again", () => this.start());
    if (!decided || !source.run) return undefined;
    try {
      // The last decisions count, too, and are sent when the server is back.
      await this.store.chain;
      if (this.store.gone) return undefined;
      const figures = await source.figures();
      if (this.shownId !== null) return undefined;
      const closing = make("section", { class: "closing", "aria-label": "Figures" }, ...figuresOf(figures));
      showMessage(title, text, "Look again", () => this.start(), closing);
    } catch (error) {
      this.say(`No figures: ${error.message}`, true);
    }
    return undefined;
  }

  /** Show the figures so far, or close them. */
  async figures() {
    const dialog = byId("figures");
    if (!this.store.source.run) return;
    if (dialog.open) return dialog.close();
    try {
      await this.store.chain;
      byId("figures-body").replaceChildren(...figuresOf(await this.store.source.figures()));
      dialog.showModal();
    } catch (error) {
      this.say(`No figures: ${error.message}`, true);
    }
  }

  /** A decided sample was changed: what is shown of it is old. */
  revised(id) {
    if (id === null) this.cache.clear();
    this.cache.delete(id);
    if (id === this.store.current) this.show(id);
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
    this.reasonForm.close();
    const marks = this.marks.get(current);
    this.marks.delete(current);
    this.cache.delete(current);
    const wrong = { wrong_criteria: [...(marks?.criteria ?? [])], wrong_verdicts: [...(marks?.verdicts ?? [])] };
    const named = Object.entries(wrong).filter(([, ids]) => ids.length);
    return this.store.decide({ ...decision, ...Object.fromEntries(named) });
  }

  rejectFor(reason) {
    this.decide(reason ? { decision: "reject", reason } : { decision: "reject" });
  }

  /** Reject for the reason on a number key. */
  rejectByNumber(number) {
    const reason = this.store.reasons[number - 1];
    if (!this.view || this.editor) return;
    if (reason) this.rejectFor(reason);
    else this.say(`There is no reason ${number}.`);
  }

  accept() {
    if (!this.editor) this.decide({ decision: "accept" });
  }

  undo() {
    if (!this.editor) this.store.undo();
  }

  edit(focus = "response") {
    if (!this.view || this.editor) return;
    this.reasonForm.close();
    this.say("");
    const { sample } = this.view;
    const texts = { response: sample.response };
    if (this.store.source.run) texts.instruction = sample.instruction;
    this.editor = new Editor(this.view, this.store.current, texts, {
      decided: sample.decided?.decision === "edit" ? sample.decided : {},
      focus,
      done: (edited) => this.saveEdit(edited),
      closed: () => {
        this.editor = null;
        this.focus();
      },
      say: (text) => this.say(text),
    });
  }

  /** Save edited texts; gives why they cannot be taken, or null. */
  async saveEdit(edited) {
    const decision = { decision: "edit", ...edited };
    const { source, current } = this.store;
    if (source.run) {
      try {
        await source.check(current, decision);
      } catch (error) {
        if (error.status === 422) return error.message;
        // Whatever else is wrong, the text is kept and sent again.
      }
      if (current !== this.store.current) return null;
    }
    this.decide(decision);
    return null;
  }

  reject() {
    if (!this.view || this.editor) return;
    this.say("");
    this.reasonForm.open(this.reasons.get(this.store.current));
  }

  /** What was typed for a decision that was taken back is there for the next one. */
  undone({ id, decision }) {
    const { response, instruction, reason } = decision;
    if (decision.decision === "edit") keepDraft(id, instruction === undefined ? { response } : { response, instruction });
    if (reason) this.reasons.set(id, reason);
    if (this.store.source.run) this.setMarks(id, decision);
  }

  turn(mode) {
    if (!this.view || this.editor) return;
    if (this.view.turn(mode)) return;
    const anew = this.view.sample.reasoning != null;
    this.say(anew ? "The response was written anew, not from a draft." : "The first draft is the response: no differences.");
  }

  step(by) {
    if (!this.editor) this.store.step(by);
  }

  skip() {
    if (!this.editor) this.store.skip();
  }

  flag() {
    this.store.flag();
  }

  verdict(by) {
    if (!stepVerdict(by)) this.say("There are no verdicts.");
  }

  markVerdict(key) {
    if (!pressMark(key)) this.say("v goes to a verdict first.");
  }

  /** Go to the list, which narrow windows show only then; or away from it. */
  list(open = !byId("list").contains(document.activeElement)) {
    document.body.classList.toggle("listing", open);
    byId("list-button").setAttribute("aria-expanded", String(open));
    const line = byId("queue").querySelector("[aria-current]") ?? byId("queue").querySelector("button");
    if (open) (line ?? byId("search")).focus();
    else byId("heading").focus({ preventScroll: true });
  }

  find() {
    this.list(true);
    byId("search").focus();
    byId("search").select();
  }

  showList(mode) {
    if (!this.editor) this.store.turn(mode);
  }
}

function connect(page) {
  const [accept, edit] = [() => page.accept(), () => page.edit()];
  const [reject, undo] = [() => page.reject(), () => page.undo()];
  const [next, previous] = [() => page.step(1), () => page.step(-1)];
  const [differences, source] = [() => page.turn("changes"), () => page.turn("source")];
  const [skip, flag, figures] = [() => page.skip(), () => page.flag(), () => page.figures()];
  const buttons = { accept, edit, reject, undo, next, previous, skip, flag };
  for (const [id, action] of Object.entries(buttons)) byId(id).addEventListener("click", action);
  const arrows = { ArrowRight: next, ArrowLeft: previous };
  const verdicts = { v: () => page.verdict(1), V: () => page.verdict(-1) };
  const letters = { n: next, j: next, p: previous, k: previous, d: differences, s: source, ...verdicts };
  const keys = { a: accept, e: edit, r: reject, u: undo, "?": setUpKeysDialog() };
  const inRun = page.store.source.run ? connectRun(page, { x: skip, f: flag, g: figures }) : {};
  const once = ["d", "s", ...Object.keys(keys), ...Object.keys(inRun)];
  bindKeys({ ...keys, ...letters, ...arrows, ...inRun }, once);
}

/** What a run's directory has and threads have not; gives its keys. */
function connectRun(page, keys) {
  byId("list-button").addEventListener("click", () => page.list(!document.body.classList.contains("listing")));
  byId("figures-button").addEventListener("click", keys.g);
  byId("figures-close").addEventListener("click", () => byId("figures").close());
  byId("tab-waiting").addEventListener("click", () => page.showList("waiting"));
  byId("tab-decided").addEventListener("click", () => page.showList("decided"));
  byId("list").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    event.preventDefault();
    page.list(false);
  });
  byId("queue").addEventListener("click", (event) => {
    if (event.target.closest("button")) document.body.classList.remove("listing");
  });
  const digits = Array.from({ length: 9 }, (_, i) => [String(i + 1), () => page.rejectByNumber(i + 1)]);
  const marks = { w: () => page.markVerdict("w"), c: () => page.markVerdict("c") };
  const lists = { l: () => page.list(), "/": () => page.find(), t: () => page.showList() };
  return { ...keys, ...marks, ...lists, i: () => page.edit("instruction"), ...Object.fromEntries(digits) };
}

onKeyNeeded(askForKey);
try {
  const config = await ask("GET", "review/config");
  document.body.classList.toggle("threads", config.source === "threads");
  if (config.run) openFor(config.run);
  const page = new Page(new ReviewStore(config.source === "threads" ? new ThreadsSource() : new RunSource()));
  connect(page);
  await page.start();
} catch (error) {
  showMessage("Nothing could be read", error.message, "Try again", () => location.reload());
  if (error.unreachable) untilItAnswers().then(() => location.reload());
}
