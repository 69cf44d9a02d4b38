/* Which samples the list shows, and in what order. */

import { byId, make, oneLine } from "./dom.js";

const MACHINE = [["", "Accepted or rejected"], ["accepted", "Machine: accepted"], ["rejected", "Machine: rejected"]];
const SORTS = {
  order: ["In the order made", () => 0],
  failed: ["Most failed first", (a, b) => count(b) - count(a)],
  passed: ["Fewest failed first", (a, b) => count(a) - count(b)],
  short: ["Shortest first", (a, b) => a.length - b.length],
  long: ["Longest first", (a, b) => b.length - a.length],
};
// Criteria in the choice, those that failed most first.
const MOST = 50;
const count = (item) => item.failed?.length ?? 0;
const option = (value, text) => make("option", { value, text });

/** The controls above the list. `changed()` is called when other samples are to be shown. */
export class Filter {
  constructor(search, changed) {
    /** The ids that a search found; null without one. */
    this.found = null;
    this.search = search;
    this.changed = changed;
    this.fields = Object.fromEntries(
      ["search", "filter-machine", "filter-failed", "filter-flagged", "sort"].map((id) => [id, byId(id)]),
    );
    const { sort } = this.fields;
    this.fields["filter-machine"].replaceChildren(...MACHINE.map(([value, text]) => option(value, text)));
    sort.replaceChildren(...Object.entries(SORTS).map(([value, [text]]) => option(value, text)));
    for (const [id, field] of Object.entries(this.fields)) {
      if (id !== "search") field.addEventListener("change", changed);
    }
    let waiting = 0;
    this.fields.search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.#find(), 150);
    });
    this.offer([]);
  }

  async #find() {
    const text = this.fields.search.value.trim();
    try {
      const found = text ? await this.search(text) : null;
      // An answer that was overtaken by more typing does not count.
      if (text !== this.fields.search.value.trim()) return;
      this.found = found;
    } catch (error) {
      byId("alert").textContent = `Not searched: ${error.message}`;
    }
    this.changed();
  }

  /** Offer the criteria that failed in some items. */
  offer(items) {
    const field = this.fields["filter-failed"];
    const counts = new Map();
    for (const text of items.flatMap((item) => [...new Set(item.failed ?? [])])) {
      counts.set(text, (counts.get(text) ?? 0) + 1);
    }
    const wanted = field.value;
    const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MOST);
    if (wanted && !most.some(([text]) => text === wanted)) most.push([wanted, counts.get(wanted) ?? 0]);
    const signature = JSON.stringify(most);
    if (signature === this.offered) return;
    this.offered = signature;
    field.replaceChildren(
      option("", "Any criterion"),
      ...most.map(([text, n]) => option(text, `${n} × not passed: ${oneLine(text, 90)}`)),
    );
    field.value = wanted;
  }

  get active() {
    const { sort, ...others } = this.fields;
    return this.found !== null || Object.values(others).some((field) => field.type === "checkbox" ? field.checked : field.value);
  }

  clear() {
    for (const [id, field] of Object.entries(this.fields)) {
      if (field.type === "checkbox") field.checked = false;
      else if (id !== "sort") field.value = "";
    }
    this.found = null;
    this.changed();
  }

  /** The items that fit, sorted; skipped ones last. */
  apply(items) {
    const { "filter-machine": machine, "filter-failed": failed, "filter-flagged": flagged, sort } = this.fields;
    const fits = (item) =>
      (!machine.value || item.status === machine.value) &&
      (!failed.value || item.failed?.includes(failed.value)) &&
      (!flagged.checked || item.flagged) &&
      (this.found === null || this.found.has(item.id));
    const skipped = (item) => (item.skipped ? 1 : 0);
    const compare = SORTS[sort.value]?.[1] ?? SORTS.order[1];
    return items.filter(fits).sort((a, b) => skipped(a) - skipped(b) || compare(a, b));
  }
}
