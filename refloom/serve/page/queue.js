/* The list of what waits, progress, and what could not be sent. */

import { byId, make, oneLine, plural } from "./dom.js";
import { outcome } from "./sample.js";

const lines = new Map();
/** Without the marks of emphasis and code. */
const bare = (text) => text.replace(/\*{1,2}([^*]+)\*{1,2}|`([^`]+)`/g, "$1$2");

export function showQueue(store) {
  const list = byId("queue");
  const wanted = store.items.map((item) => lineOf(item, store));
  // Only what differs is touched: a list of thousands stays quick.
  const keep = new Set(wanted);
  for (const child of [...list.children]) if (!keep.has(child)) child.remove();
  wanted.forEach((line, i) => {
    if (list.children[i] !== line) list.insertBefore(line, list.children[i] ?? null);
  });
  list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const current = lines.get(store.current)?.firstElementChild;
  current?.setAttribute("aria-current", "true");
  if (current) intoView(list.parentElement, current);
}

/** Scroll the list alone, never the page. */
function intoView(pane, line) {
  const [outer, inner] = [pane.getBoundingClientRect(), line.getBoundingClientRect()];
  if (inner.top < outer.top + 40) pane.scrollTop -= outer.top + 40 - inner.top;
  if (inner.bottom > outer.bottom) pane.scrollTop += inner.bottom - outer.bottom + 8;
}

function lineOf(item, store) {
  if (!lines.has(item.id)) {
    const tone = item.status === "accepted" ? "good" : "poor";
    const button = make(
      "button",
      { type: "button", on: { click: () => store.select(item.id) } },
      make("span", { class: "number", text: String(item.number) }),
      make("span", { class: "title", text: bare(item.instruction) || "(no instruction)" }),
      make("span", { class: `dot ${tone}`, role: "img", "aria-label": outcome(item) }),
    );
    lines.set(item.id, make("li", {}, button));
  }
  return lines.get(item.id);
}

export function showProgress(store) {
  const bar = byId("bar");
  bar.max = Math.max(1, store.total);
  bar.value = store.decided;
  byId("count").textContent = `${store.decided} of ${store.total} decided`;
  const at = store.items.findIndex((item) => item.id === store.current);
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at < 0 || at >= store.items.length - 1;
  byId("undo").disabled = !store.log.length;
  document.title = `${store.items.length ? `(${store.items.length}) ` : ""}Review · refloom`;
}

export function showUnsent(store) {
  const failed = [...store.unsent.values()].filter((entry) => entry.state === "failed");
  const section = byId("unsent");
  section.hidden = !failed.length;
  if (!failed.length) return section.replaceChildren();
  const text = `${plural(failed.length, "decision")} not saved. Nothing is lost: it is kept in this browser.`;
  const retry = { type: "button", text: "Try again", on: { click: () => store.retry() } };
  return section.replaceChildren(
    make("div", { class: "head" }, make("strong", { text }), make("button", retry)),
    make("ul", {}, ...failed.map((entry) => failedLine(entry, store))),
  );
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
