/* A run's directory, over REST. */

import { ask } from "./api.js";

const path = (id) => `review/items/${encodeURIComponent(id)}`;

export class RunSource {
  /** Whether a decision may name criteria that are wrong. */
  marks = true;

  queue() {
    return ask("GET", "review/queue");
  }

  item(id) {
    return ask("GET", path(id));
  }

  decide(id, decision) {
    return ask("POST", path(id), decision);
  }

  undo(id) {
    return ask("DELETE", path(id));
  }
}
