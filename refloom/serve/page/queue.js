/* The list of what waits, progress, and what could not be sent. */

import { UNREACHABLE } from "./api.js";
import { byId, make, oneLine, plural } from "./dom.js";
import { outcome } from "./sample.js";

const lines = new Map();
let marked = null;
let shown = { key: null, lines: [] };
/** Without the marks of emphasis and code. */
const bare = (text) => text.replace(/\*{1,2}([^*]+)\*{1,2}|`([^`]+)`/g, "$1$2");
const WORDS = { accept: "accepted", edit: "edited", reject: "rejected" };

export function showQueue(store) {
  const list = byId("queue");
  const { listed } = store;
  const wanted = listed.map((item) => lineOf(item, store));
  showCounts(store, listed.length);
  const key = keyOf(store, store.current);
  // Only what differs is touched: a list of thousands stays quick.
  if (key === shown.key && wanted.length === shown.lines.length && wanted.every((line, i) => line === shown.lines[i])) return;
  const keep = new Set(wanted);
  for (const line of shown.lines) if (!keep.has(line)) line.remove();
  let at = list.firstElementChild;
  for (const line of wanted) {
    if (line === at) at = at.nextElementSibling;
    else list.insertBefore(line, at);
  }
  shown = { key, lines: wanted };
  // A line that left the list keeps its attributes, and may come back.
  marked?.removeAttribute("aria-current");
  marked = lines.get(key)?.firstElementChild ?? null;
  marked?.setAttribute("aria-current", "true");
  if (marked?.isConnected) intoView(list, marked);
}

function showCounts(store, shown) {
  const decided = store.mode === "decided";
  byId("list-title").textContent = decided ? "Decided" : "Waiting";
  byId("tab-waiting").setAttribute("aria-pressed", String(!decided));
  byId("tab-decided").setAttribute("aria-pressed", String(decided));
  const all = store.all.length;
  const more = !decided && store.beyond ? `, ${store.beyond} more to come` : "";
  byId("list-count").textContent = shown === all ? `${plural(all, "sample")}${more}` : `${shown} of ${plural(all, "sample")}${more}`;
}

/** Scroll the list alone, never the page. */
function intoView(pane, line) {
  const [outer, inner] = [pane.getBoundingClientRect(), line.getBoundingClientRect()];
  if (inner.top < outer.top) pane.scrollTop -= outer.top - inner.top + 8;
  if (inner.bottom > outer.bottom) pane.scrollTop += inner.bottom - outer.bottom + 8;
}

const keyOf = (store, id) => `${store.mode} ${id}`;

function lineOf(item, store) {
  const key = keyOf(store, item.id);
  const signature = [item.number, item.flagged, item.skipped, item.decision, item.by].join();
  const old = lines.get(key);
  if (old?.dataset.signature === signature) return old;
  const tone = item.status === "accepted" ? "good" : "poor";
  const notes = [
    item.decision ? `${WORDS[item.decision]}${item.by ? ` by ${item.by}` : ""}` : null,
    item.flagged ? "flagged" : null,
    item.skipped ? "skipped" : null,
  ].filter(Boolean);
  const title = make("span", { class: "title", dir: "auto", text: bare(item.instruction) || "(no instruction)" });
  const button = make(
    "button",
    { type: "button", on: { click: () => store.select(item.id) } },
    make("span", { class: "number", text: item.number ? String(item.number) : "" }),
    make("span", {}, title, notes.length ? make("span", { class: "meta", text: notes.join(" · ") }) : null),
    make("span", { class: `dot ${tone}`, role: "img", "aria-label": `machine: ${outcome(item)}` }),
  );
  const line = make("li", { "data-signature": signature, class: item.flagged ? "flagged" : null }, button);
  lines.set(key, line);
  return line;
}

export function showProgress(store) {
  const bar = byId("bar");
  bar.max = Math.max(1, store.total);
  bar.value = store.decided;
  byId("count").textContent = `${store.decided} of ${store.total} decided`;
  const { listed } = store;
  const at = listed.findIndex((item) => item.id === store.current);
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at < 0 || at >= listed.length - 1;
  byId("skip").firstChild.data = store.mode === "decided" ? "Put back " : "Skip ";
  byId("flag").firstChild.data = store.item?.flagged ? "Flagged " : "Flag ";
  byId("flag").setAttribute("aria-pressed", String(Boolean(store.item?.flagged)));
  byId("undo").disabled = !store.log.length;
  document.title = `${store.items.length ? `(${store.items.length}) ` : ""}Review · refloom`;
}

export function showUnsent(store) {
  const failed = [...store.unsent.values()].filter((entry) => entry.state === "failed");
  const section = byId("unsent");
  section.hidden = !failed.length && !store.gone;
  if (section.hidden) return section.replaceChildren();
  if (store.gone) return section.replaceChildren(make("strong", { text: goneText(failed.length) }));
  const text = `${plural(failed.length, "decision")} not saved. Nothing is lost: it is kept in this browser.`;
  const retry = { type: "button", text: "Try again", on: { click: () => store.retry() } };
  return section.replaceChildren(
    make("div", { class: "head" }, make("strong", { text }), make("button", retry)),
    make("ul", {}, ...failed.map((entry) => failedLine(entry, store))),
  );
}

function goneText(unsent) {
  const start = `${UNREACHABLE} It is asked again every two seconds.`;
  if (!unsent) return start;
  return `${start} ${plural(unsent, "decision")} not saved, kept in this browser and sent when it is back.`;
}

function failedLine(entry, store) {
  const name = `${entry.decision.decision}: ${oneLine(entry.item.instruction, 70)}`;
  const take = { click: () => store.takeBack(entry.id) };
  return make(
    "li",
    {},
    make("span", { text: name }),
    make("span", { class: "quiet", text: entry.error }),
    make("button", { type: "button", class: "plain", text: "Take it back", on: take }),
  );
}
