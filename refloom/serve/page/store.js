/* What waits, what is decided, what is on its way. It knows no element of the page. */

import * as outbox from "./outbox.js";
import { oneLine } from "./dom.js";

const DONE = { accept: "Accepted.", edit: "Edit saved.", reject: "Rejected." };

/** Fires "change" when anything did, and "said" with what a person should hear. */
export class ReviewStore extends EventTarget {
  constructor(source) {
    super();
    this.source = source;
    this.items = [];
    this.current = null;
    this.total = 0;
    /** How many more wait than are listed: a run lists some hundred at a time. */
    this.beyond = 0;
    this.unsent = new Map();
    /** Id -> when its undo is through; before that the server may not show it. */
    this.returning = new Map();
    this.log = outbox.readLog();
    this.chain = Promise.resolve();
  }

  get decided() {
    return Math.max(0, this.total - this.items.length - this.beyond);
  }

  get item() {
    return this.items.find((item) => item.id === this.current) ?? null;
  }

  /** Ask what waits; what an earlier visit left unsent is sent now. */
  async load() {
    const found = await this.source.queue();
    const left = outbox.kept().filter((entry) => !this.unsent.has(entry.id));
    for (const entry of left) this.unsent.set(entry.id, { ...entry, state: "queued" });
    this.items = [];
    this.#counted(found);
    this.#number();
    this.current = this.items[0]?.id ?? null;
    this.#changed();
    for (const entry of left) this.#enqueue(() => this.#send(this.unsent.get(entry.id)));
  }

  select(id) {
    this.current = id;
    this.#changed();
  }

  step(by) {
    const at = this.items.findIndex((item) => item.id === this.current) + by;
    if (at >= 0 && at < this.items.length) this.select(this.items[at].id);
    else this.#say(by > 0 ? "This is the last one." : "This is the first one.");
  }

  /** Take a decision on the current sample; the next one is current at once. */
  decide(decision) {
    const { item } = this;
    if (!item) return;
    const entry = { id: item.id, decision, item, state: "queued" };
    const at = this.items.indexOf(item);
    this.items.splice(at, 1);
    this.current = (this.items[at] ?? this.items[at - 1])?.id ?? null;
    this.unsent.set(item.id, entry);
    this.#logged([...this.log, { id: item.id, decision, item, at }]);
    const safe = outbox.keep(entry);
    this.#say(`${DONE[decision.decision]} u undoes it.${safe ? "" : " Keep this page open."}`);
    this.#changed();
    this.#enqueue(() => this.#send(entry));
  }

  /** Take back the newest decision of this session. */
  undo() {
    const last = this.log.at(-1);
    if (!last) return this.#say("Nothing to undo.");
    const was = this.unsent.get(last.id);
    this.#logged(this.log.slice(0, -1));
    this.#back(last.item, last.at);
    this.#say("Taken back.");
    this.dispatchEvent(new CustomEvent("undone", { detail: last }));
    if (was && was.state !== "sending") this.#withdraw(was);
    else this.returning.set(last.id, this.#enqueue(() => this.#undoThere(last)));
    this.#changed();
    return undefined;
  }

  retry() {
    for (const entry of this.unsent.values()) {
      if (entry.state !== "failed") continue;
      entry.state = "queued";
      this.#enqueue(() => this.#send(entry));
    }
    this.#changed();
  }

  /** Give up sending a decision: its sample waits again, an edit stays as a draft. */
  takeBack(id) {
    const entry = this.unsent.get(id);
    this.#withdraw(entry);
    this.#logged(this.log.filter((past) => past.id !== id));
    this.#back(entry.item, 0);
    this.dispatchEvent(new CustomEvent("undone", { detail: entry }));
    this.#say("Taken back.");
    this.#changed();
  }

  async #send(entry) {
    if (entry.state !== "queued") return;
    entry.state = "sending";
    this.#changed();
    try {
      const counts = await this.source.decide(entry.id, entry.decision);
      outbox.forget(entry.id);
      this.unsent.delete(entry.id);
      this.#counted(counts);
      if (!this.items.length && this.beyond) this.#counted(await this.source.queue());
    } catch (error) {
      entry.state = "failed";
      entry.error = error.message;
      this.#say(`Not saved: ${error.message}`, true);
    }
    this.#changed();
  }

  async #undoThere(last) {
    const failed = this.unsent.get(last.id);
    try {
      if (failed?.state === "failed") this.#withdraw(failed);
      else this.#counted(await this.source.undo(last.id));
    } catch (error) {
      this.items = this.items.filter((item) => item.id !== last.id);
      if (this.current === last.id) this.current = this.items[0]?.id ?? null;
      this.#logged([...this.log, last]);
      this.#say(`Not undone: ${error.message}`, true);
    }
    this.returning.delete(last.id);
    return this.#changed();
  }

  #withdraw(entry) {
    entry.state = "withdrawn";
    this.unsent.delete(entry.id);
    outbox.forget(entry.id);
  }

  #back(item, at) {
    this.items = this.items.filter((other) => other.id !== item.id);
    this.items.splice(Math.min(at, this.items.length), 0, item);
    this.current = item.id;
  }

  #counted(found) {
    this.total = found.waiting + found.decided;
    if (found.items) this.beyond = Math.max(0, found.waiting - found.items.length);
    const known = new Set([...this.items.map((item) => item.id), ...this.unsent.keys()]);
    const more = (found.items ?? []).filter((item) => !known.has(item.id));
    const summary = (item) => ({ ...item, instruction: oneLine(item.instruction ?? "") });
    this.items.push(...more.map(summary));
    this.current ??= this.items[0]?.id ?? null;
    this.#number();
  }

  #number() {
    const numbers = this.items.map((item) => item.number ?? 0);
    let last = Math.max(this.decided, ...numbers);
    for (const item of this.items) item.number ??= last += 1;
  }

  #logged(log) {
    this.log = log;
    outbox.writeLog(log);
  }

  #enqueue(job) {
    this.chain = this.chain.then(job);
    return this.chain;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #say(text, wrong = false) {
    this.dispatchEvent(new CustomEvent("said", { detail: { text, wrong } }));
  }
}
