/* A run's directory, over REST. */

import { ask } from "./api.js";

const path = (id) => `review/items/${encodeURIComponent(id)}`;

export class RunSource {
  /** A run's directory has lists, marks, reasons and figures. */
  run = true;

  queue() {
    return ask("GET", "review/queue");
  }

  async decided() {
    return (await ask("GET", "review/decided")).items;
  }

  async search(text) {
    return new Set((await ask("GET", `review/search?text=${encodeURIComponent(text)}`)).ids);
  }

  figures() {
    return ask("GET", "review/figures");
  }

  /** A sample with its references; its decision, if it has one, stands in `sample.decided`. */
  async item(id) {
    const { sample, references, decision } = await ask("GET", path(id));
    return { sample: { ...sample, decided: decision ?? null }, references };
  }

  decide(id, decision) {
    return ask("POST", path(id), decision);
  }

  /** Refused with 422 if a decision could not be applied. */
  check(id, decision) {
    return ask("POST", `${path(id)}/check`, decision);
  }

  mark(id, kind, on) {
    return ask("POST", `${path(id)}/marks`, { kind, on });
  }

  undo(id) {
    return ask("DELETE", path(id));
  }
}
