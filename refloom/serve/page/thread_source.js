/* A LangGraph server: samples wait in the interrupts of its threads. */

import { ask, Refused } from "./api.js";
import { isObject } from "./dom.js";

const PAGE = 100;
const AT_ONCE = 8;
const DECIDED = "refloom-decided-in-threads";
const sampleOf = (interrupt) => {
  const sample = interrupt?.value?.sample;
  return isObject(sample) && typeof sample.id === "string" ? sample : null;
};
const nameOf = (threadId, sampleId) => `${threadId}/${sampleId}`;
const interruptsOf = (tasks) => (tasks ?? []).flatMap((task) => task.interrupts ?? []);
// A task that has its answer still lists what it asked.
const openOf = (tasks) => interruptsOf((tasks ?? []).filter((task) => !task.result));
// Where an undo goes back to. A state that is a fork already is no place to fork from: the server
// would go on with the answers it has. What it was forked from is.
const askedAt = ({ checkpoint, parent_checkpoint: parent, metadata }) =>
  metadata?.source === "fork" && parent ? parent : checkpoint;

export class ThreadsSource {
  /** A thread's state has no place for marks, and a server no lists of what was decided. */
  run = false;

  constructor() {
    /** Page id -> where and what is asked. */
    this.waiting = new Map();
    /** Page id -> the decision that was taken: what an undo of a neighbour gives again. */
    this.decided = new Map(JSON.parse(sessionStorage.getItem(DECIDED) ?? "[]"));
    this.assistants = new Map();
    /** Page id, or thread id for a graph of one sample -> what the server has of a review. */
    this.kept = new Map();
  }

  async queue() {
    const threads = [];
    for (let found = [PAGE]; found.length && threads.length % PAGE === 0; threads.push(...found)) {
      const page = { status: "interrupted", limit: PAGE, offset: threads.length };
      found = await ask("POST", "threads/search", page);
    }
    this.waiting.clear();
    // A few at once: their samples still come in the order of the threads.
    for (let at = 0; at < threads.length; at += AT_ONCE) {
      const some = threads.slice(at, at + AT_ONCE).map((thread) => this.#read(thread));
      for (const [id, asked, values] of await Promise.all(some)) this.#found(id, asked, values);
    }
    return this.#counts();
  }

  /** What a thread asks. Where several questions were, a search may still name answered ones. */
  async #read(thread) {
    const { thread_id: id, metadata } = thread;
    this.assistants.set(id, metadata?.assistant_id ?? metadata?.graph_id);
    const asked = Object.values(thread.interrupts ?? {}).flat();
    if (asked.length === 1) return [id, asked, thread.values];
    const state = await this.#state(id);
    return [id, openOf(state.tasks), state.values];
  }

  async item(id) {
    const asked = this.waiting.get(id);
    if (!asked) throw new Refused(404, "This sample is not asked about any more.");
    return { sample: asked.sample, references: asked.references };
  }

  async decide(id, decision) {
    const [threadId] = this.#place(id);
    // What the page knows may be old: somebody else may have decided since.
    await this.#refresh(threadId);
    const asked = this.waiting.get(id);
    if (!asked) return this.#settled(id, decision);
    try {
      await this.#run(threadId, { command: { resume: { [asked.interruptId]: decision } } });
    } catch (error) {
      this.waiting.delete(id);
      throw error;
    }
    await this.#refresh(threadId);
    if (this.waiting.has(id)) throw new Refused(409, "The server asks about this sample again.");
    return this.#settled(id, decision);
  }

  /** Whether the decision that the server has is this one: of two at once it takes one. */
  #settled(id, decision) {
    const kept = this.kept.get(id) ?? this.kept.get(this.#place(id)[0]);
    if (!kept) throw new Refused(404, "This sample is not asked about any more.");
    const same = (name) => (kept[name] ?? "") === (decision[name] ?? "").trim();
    if (!same("decision") || !same("reason")) {
      const who = kept.by ? `${kept.by} has` : "Somebody has";
      throw new Refused(409, `${who} decided otherwise meanwhile (${kept.decision}).`);
    }
    this.#took(id, decision);
    return this.#counts();
  }

  /** Go back to where the sample was asked about, and give its neighbours' decisions again. */
  async undo(id) {
    const [threadId, sampleId] = this.#place(id);
    const history = await ask("POST", `threads/${threadId}/history`, { limit: 20 });
    const holds = (interrupt) => sampleOf(interrupt)?.id === sampleId;
    const state = history.find((past) => interruptsOf(past.tasks).some(holds));
    if (!state) throw new Refused(404, "The thread's history no longer holds this question.");
    await this.#refresh(threadId);
    const decided = new Map(this.decided);
    await this.#run(threadId, { input: null, checkpoint: askedAt(state) });
    this.decided.delete(id);
    decided.delete(id);
    for (let round = 0; round < 20 && (await this.#again(threadId, decided)); round += 1);
    if (!this.waiting.has(id)) throw new Refused(409, "The server did not ask again.");
    this.#took(id, null);
    return this.#counts();
  }

  /** Give what was decided to the questions that are asked once more; false when none is. */
  async #again(threadId, decided) {
    await this.#refresh(threadId);
    const resume = {};
    for (const [id, asked] of this.waiting) {
      if (asked.threadId === threadId && decided.has(id)) {
        resume[asked.interruptId] = decided.get(id);
      }
    }
    if (!Object.keys(resume).length) return false;
    await this.#run(threadId, { command: { resume } });
    return true;
  }

  async #run(threadId, given) {
    const assistant = { assistant_id: await this.#assistant(threadId) };
    const answer = await ask("POST", `threads/${threadId}/runs/wait`, { ...assistant, ...given });
    const error = answer?.__error__;
    if (error) throw new Refused(500, error.message ?? error.error ?? "The thread's run failed.");
  }

  /** Who runs a thread: its own word, since a state says it on some servers only. */
  async #assistant(threadId) {
    if (!this.assistants.get(threadId)) {
      const { metadata } = await ask("GET", `threads/${threadId}`);
      this.assistants.set(threadId, metadata?.assistant_id ?? metadata?.graph_id);
    }
    return this.assistants.get(threadId);
  }

  async #state(threadId) {
    return (await ask("GET", `threads/${threadId}/state`)) ?? {};
  }

  async #refresh(threadId) {
    const state = await this.#state(threadId);
    for (const [id, asked] of this.waiting) {
      if (asked.threadId === threadId) this.waiting.delete(id);
    }
    this.#found(threadId, openOf(state.tasks), state.values);
  }

  #found(threadId, interrupts, values) {
    for (const interrupt of interrupts) {
      const sample = sampleOf(interrupt);
      if (!sample) continue;
      const references = interrupt.value.references ?? [];
      const asked = { threadId, interruptId: interrupt.id, sample, references };
      this.waiting.set(nameOf(threadId, sample.id), asked);
    }
    if (values?.review?.decision) this.kept.set(threadId, values.review);
    for (const sample of values?.samples ?? []) {
      const id = nameOf(threadId, sample?.id);
      if (sample?.review?.decision) this.kept.set(id, sample.review);
      else this.kept.delete(id);
      if (!isObject(sample?.review) || this.waiting.has(id) || this.decided.has(id)) continue;
      const edited = sample.review.decision === "edit" ? { response: sample.response } : {};
      this.decided.set(id, { ...sample.review, ...edited });
    }
  }

  #took(id, decision) {
    if (decision) this.decided.set(id, decision);
    try {
      sessionStorage.setItem(DECIDED, JSON.stringify([...this.decided]));
    } catch {
      // Too much for the session's store: the page still knows it until it is closed.
    }
  }

  #counts() {
    const items = [...this.waiting].map(([id, { sample }]) => ({
      id,
      instruction: sample.instruction,
      status: sample.status,
      reason: sample.reason,
    }));
    const decided = [...this.decided.keys()].filter((id) => !this.waiting.has(id)).length;
    return { waiting: items.length, decided, items };
  }

  #place(id) {
    const slash = id.indexOf("/");
    return [id.slice(0, slash), id.slice(slash + 1)];
  }
}
