/* What waits, what is decided, what is on its way. It knows no element of the page. */

import { UNREACHABLE, untilItAnswers } from "./api.js";
import * as outbox from "./outbox.js";
import { oneLine } from "./dom.js";

const DONE = { accept: "Accepted.", edit: "Edit saved.", reject: "Rejected." };
const STATUS = { accept: "accepted", edit: "accepted", reject: "rejected" };
const summary = (item) => ({ ...item, instruction: oneLine(item.instruction ?? "") });

/** Fires "change" when anything did, and "said" with what a person should hear. */
export class ReviewStore extends EventTarget {
  constructor(source) {
    super();
    this.source = source;
    this.items = [];
    /** What was decided, newest first; read when it is first looked at. */
    this.past = [];
    /** "waiting" or "decided": what the list shows, and what keys move in. */
    this.mode = "waiting";
    /** What may narrow and sort the list: `apply(items)`; a filter knows the elements. */
    this.filter = { apply: (items) => items, offer: () => {} };
    this.reasons = [];
    this.current = null;
    this.total = 0;
    /** How many more wait than are listed: a run lists some hundred at a time. */
    this.beyond = 0;
    this.unsent = new Map();
    /** Nobody answered the last request; the server is asked again until somebody does. */
    this.gone = false;
    /** Id -> when its undo is through; before that the server may not show it. */
    this.returning = new Map();
    this.log = outbox.readLog();
    this.chain = Promise.resolve();
  }

  get decided() {
    return Math.max(0, this.total - this.items.length - this.beyond);
  }

  get all() {
    return this.mode === "decided" ? this.past : this.items;
  }

  /** What the list shows. */
  get listed() {
    return this.filter.apply(this.all);
  }

  get item() {
    return this.all.find((item) => item.id === this.current) ?? null;
  }

  /** Ask what waits; what an earlier visit left unsent is sent now. */
  async load() {
    const found = await this.source.queue();
    const left = outbox.kept().filter((entry) => !this.unsent.has(entry.id));
    for (const entry of left) this.unsent.set(entry.id, { ...entry, state: "queued" });
    this.items = [];
    this.loaded = true;
    this.mode = "waiting";
    this.reasons = found.reasons ?? [];
    this.#counted(found);
    this.#number();
    this.current = this.listed[0]?.id ?? null;
    this.#changed();
    for (const entry of left) this.#enqueue(() => this.#send(this.unsent.get(entry.id)));
  }

  select(id) {
    this.current = id;
    this.#changed();
  }

  step(by) {
    const { listed } = this;
    const at = listed.findIndex((item) => item.id === this.current) + by;
    if (at >= 0 && at < listed.length) this.select(listed[at].id);
    else this.#say(by > 0 ? "This is the last one." : "This is the first one.");
  }

  /** Other samples fit the filter: keep the current one if it does. */
  refilter() {
    const { listed } = this;
    if (!listed.some((item) => item.id === this.current)) this.current = listed[0]?.id ?? null;
    this.#changed();
  }

  /** Look at the samples that wait, or at the decided ones. */
  async turn(mode = this.mode === "waiting" ? "decided" : "waiting") {
    try {
      // What is on its way is decided, too.
      if (mode === "decided") {
        await this.chain;
        this.past = (await this.source.decided()).map(summary);
      }
    } catch (error) {
      return this.#failed("read", error);
    }
    this.mode = mode;
    this.current = this.listed[0]?.id ?? null;
    this.#say("");
    return this.#changed();
  }

  /** Take a decision on the current sample; the next one is current at once. */
  decide(decision) {
    const { item } = this;
    if (!item) return undefined;
    if (this.mode === "decided") return this.#revise(item, decision);
    const entry = { id: item.id, decision, item, state: "queued" };
    const at = this.items.indexOf(item);
    const next = this.#after(item);
    this.items.splice(at, 1);
    this.current = next;
    this.unsent.set(item.id, entry);
    this.#logged([...this.log, { id: item.id, decision, item, at }]);
    const safe = outbox.keep(entry);
    const sent = this.gone ? "It is sent when the server is back." : "u undoes it.";
    this.#say(`${DONE[decision.decision]} ${sent}${safe ? "" : " Keep this page open."}`);
    this.#enqueue(() => this.#send(entry));
    return this.#changed();
  }

  /** The id that follows an item in the list, or the last before it. */
  #after(item) {
    const { listed } = this;
    const at = listed.indexOf(item);
    return (listed[at + 1] ?? listed[at - 1])?.id ?? null;
  }

  /** Decide a sample otherwise that was decided before; it stays where it is. */
  #revise(item, decision) {
    const entry = { id: item.id, decision: { ...decision, revise: true }, item, state: "queued" };
    this.past = this.past.map((one) => (one === item ? { ...item, decision: decision.decision, by: null } : one));
    this.unsent.set(item.id, entry);
    outbox.keep(entry);
    this.#say(`Changed: ${STATUS[decision.decision]}.`);
    this.#enqueue(() => this.#send(entry)).then(() => this.dispatchEvent(new CustomEvent("revised", { detail: item.id })));
    this.#changed();
  }

  /** Skip the current sample: it comes again at the end. A decided one waits again. */
  async skip() {
    const { item } = this;
    if (!item) return;
    if (this.mode === "decided") return this.#putBack(item);
    if (!this.#mark(item, "skip", !item.skipped)) return;
    if (!item.skipped) return this.#say("It has its place again.");
    const next = this.listed.find((one) => !one.skipped);
    const following = this.#afterSkip(item);
    this.#say("Skipped: it comes again at the end.");
    this.current = following ?? next?.id ?? this.current;
    this.#changed();
  }

  /** What stood behind an item before it was skipped. */
  #afterSkip(item) {
    item.skipped = false;
    const next = this.#after(item);
    item.skipped = true;
    return next;
  }

  async #putBack(item) {
    try {
      await this.#enqueue(() => this.source.undo(item.id));
      this.#logged(this.log.filter((past) => past.id !== item.id));
      this.items = [];
      const found = await this.source.queue();
      this.#counted(found);
      this.past = this.past.filter((one) => one !== item);
      if (this.current === item.id) this.current = this.listed[0]?.id ?? null;
      this.dispatchEvent(new CustomEvent("revised", { detail: null }));
      this.#say("It waits again.");
    } catch (error) {
      this.#failed("put back", error);
    }
    this.#changed();
  }

  flag() {
    const { item } = this;
    if (item) this.#mark(item, "flag", !item.flagged);
    if (item) this.#say(item.flagged ? "Flagged." : "Not flagged any more.");
  }

  #mark(item, kind, on) {
    const name = kind === "skip" ? "skipped" : "flagged";
    item[name] = on;
    this.#enqueue(async () => {
      try {
        await this.source.mark(item.id, kind, on);
      } catch (error) {
        item[name] = !on;
        this.#failed("marked", error);
        this.#changed();
      }
    });
    this.#changed();
    return true;
  }

  /** Take back the newest decision of this session. */
  undo() {
    const last = this.log.at(-1);
    if (!last) return this.#say("Nothing to undo.");
    const was = this.unsent.get(last.id);
    this.mode = "waiting";
    this.#logged(this.log.slice(0, -1));
    this.#back(last.item, last.at);
    this.#say("Taken back.");
    this.dispatchEvent(new CustomEvent("undone", { detail: last }));
    if (was && was.state !== "sending" && !was.unsure) this.#withdraw(was);
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
    // The server may have it although it did not say so.
    const there = entry.unsure && !entry.decision.revise;
    if (there) this.returning.set(id, this.#enqueue(() => this.#undoThere({ ...entry, at: 0 })));
    else this.#withdraw(entry);
    this.#logged(this.log.filter((past) => past.id !== id));
    // A change that was not taken leaves the decision before it.
    if (entry.decision.revise) {
      this.#say("Taken back.");
      return this.#changed();
    }
    this.mode = "waiting";
    this.#back(entry.item, 0);
    this.dispatchEvent(new CustomEvent("undone", { detail: entry }));
    this.#say("Taken back.");
    return this.#changed();
  }

  async #send(entry) {
    if (entry.state !== "queued") return;
    if (this.gone) {
      Object.assign(entry, { state: "failed", error: UNREACHABLE });
      return this.#changed();
    }
    entry.state = "sending";
    this.#changed();
    try {
      const counts = await this.source.decide(entry.id, entry.decision);
      outbox.forget(entry.id);
      this.unsent.delete(entry.id);
      this.#counted(counts);
      const others = counts.waiting < this.items.length + this.beyond + this.#onTheirWay();
      if ((!this.items.length && this.beyond) || (this.source.run && others)) await this.#refresh();
    } catch (error) {
      if (this.source.run && error.status === 409) {
        // What somebody else decided stands: it is among the decided ones, to be changed.
        this.#withdraw(entry);
        this.#logged(this.log.filter((past) => past.id !== entry.id));
      } else {
        entry.state = "failed";
        entry.error = error.message;
        // Its answer may have been lost, and not the decision.
        entry.unsure ||= this.source.run && error.unreachable;
      }
      this.#failed("saved", error);
    }
    return this.#changed();
  }

  /** The server is gone: ask again until it is back, then send what waits for it. Fires "back". */
  async lost() {
    if (this.gone) return;
    this.gone = true;
    this.#changed();
    await untilItAnswers();
    this.gone = false;
    this.#say("The server is back.");
    this.retry();
    if (this.loaded && this.source.run) this.#enqueue(() => this.#refresh().catch(() => {}));
    this.dispatchEvent(new Event("back"));
  }

  /** How many samples wait on the server only because their decisions have not come there. */
  #onTheirWay() {
    return [...this.unsent.values()].filter((entry) => !entry.decision.revise).length;
  }

  /** Ask again what waits: others decide, too. What a person looks at stays. */
  async #refresh() {
    const found = await this.source.queue();
    const waiting = new Set(found.items.map((item) => item.id));
    this.items = this.items.filter(
      (item) => waiting.has(item.id) || item.id === this.current || this.returning.has(item.id),
    );
    this.#counted(found);
  }

  async #undoThere(last) {
    const failed = this.unsent.get(last.id);
    try {
      if (failed?.state !== "failed" || failed.unsure) this.#counted(await this.source.undo(last.id));
      if (failed?.state === "failed") this.#withdraw(failed);
    } catch (error) {
      this.items = this.items.filter((item) => item.id !== last.id);
      if (this.current === last.id) this.current = this.items[0]?.id ?? null;
      this.#logged([...this.log, last]);
      this.#failed("undone", error);
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
    this.items.push(...more.map(summary));
    if (found.items) this.filter.offer(this.items);
    if (this.mode === "waiting") this.current ??= this.listed[0]?.id ?? null;
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

  #failed(what, error) {
    this.#say(`Not ${what}: ${error.message}`, true);
    if (error.unreachable) this.lost();
  }

  #say(text, wrong = false) {
    this.dispatchEvent(new CustomEvent("said", { detail: { text, wrong } }));
  }
}
