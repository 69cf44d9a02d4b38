/* Finds quoted evidence in a rendered text and marks it, by pure DOM operations. */

import { make } from "./dom.js";

const QUOTES = /[\u2018\u2019\u201A\u201B\u2032\u00B4]|[\u201C\u201D\u201E\u201F\u2033\u00AB\u00BB]/;
const SINGLE = /[\u2018\u2019\u201A\u201B\u2032\u00B4]/;
// What Markdown takes away when it is rendered, and a quote of the source may still have.
const DROPPED = /[*_~#>`|\\\u00AD\u200B]/;

function folded(character) {
  if (QUOTES.test(character)) return SINGLE.test(character) ? "'" : '"';
  const lower = character.toLowerCase();
  return lower.length === 1 ? lower : character;
}

/** Fold a text for comparison: `text`, and for each of its characters the place it had. */
export function fold(source) {
  const characters = [];
  const places = [];
  let space = true;
  for (let at = 0; at < source.length; at += 1) {
    const character = source[at];
    const blank = /\s/.test(character);
    if ((blank && space) || (!blank && DROPPED.test(character))) continue;
    characters.push(blank ? " " : folded(character));
    places.push(at);
    space = blank;
  }
  return { text: characters.join(""), places };
}

/** The pieces of a quote to look for: without ellipses, list marks and link addresses. */
function pieces(quote) {
  const bare = quote
    .replace(/!?\[([^\]]*)\]\([^)\s]*\)/g, "$1")
    .replace(/^[ \t]*(?:[-+*]|\d{1,3}[.)])[ \t]+/gm, "")
    .replace(/^\s*["'\u201C\u2018\u00AB]+|["'\u201D\u2019\u00BB]+\s*$/g, "");
  const parts = bare.split(/\s*(?:\[\u2026\]|\[\.{3}\]|\u2026|\.{3})\s*/);
  return parts.map((part) => fold(part).text.trim()).filter((part) => part.length > 1);
}

/** Where the pieces of a quote stand in a folded text, in order; empty if any is missing. */
function find(text, quote) {
  const found = [];
  let from = 0;
  for (const piece of pieces(quote)) {
    let at = text.indexOf(piece, from);
    if (at < 0) at = text.indexOf(piece);
    if (at < 0) return [];
    found.push([at, at + piece.length]);
    from = at + piece.length;
  }
  return found;
}

/** The text nodes of an element and where each begins in its whole text. */
function nodesOf(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const nodes = [];
  const starts = [];
  const texts = [];
  let length = 0;
  while (walker.nextNode()) {
    nodes.push(walker.currentNode);
    starts.push(length);
    texts.push(walker.currentNode.data);
    length += walker.currentNode.length;
  }
  return { nodes, starts, whole: texts.join("") };
}

/** Stretches that the same quotes cover, in order: [start, end, numbers of the quotes]. */
function stretches(ranges) {
  const cuts = [...new Set(ranges.flatMap(([start, end]) => [start, end]))].sort((a, b) => a - b);
  const covered = [];
  for (let i = 0; i + 1 < cuts.length; i += 1) {
    const over = ranges.filter(([start, end]) => start <= cuts[i] && end >= cuts[i + 1]);
    if (over.length) covered.push([cuts[i], cuts[i + 1], over.map(([, , number]) => number)]);
  }
  return covered;
}

/** Wrap what of a text node lies between two places of the whole text. */
function wrap(node, from, to, numbers) {
  const rest = to < node.length ? node.splitText(to) : null;
  const middle = from > 0 ? node.splitText(from) : node;
  if (middle.data.trim() || !middle.data.includes("\n")) {
    const mark = make("mark", { "data-quotes": numbers.join(" ") });
    middle.replaceWith(mark);
    mark.append(middle);
  }
  return rest;
}

/** Mark every quote in `root`; gives the set of the numbers that were found. */
export function markEvidence(root, quotes) {
  const { nodes, starts, whole } = nodesOf(root);
  const { text, places } = fold(whole);
  const ranges = quotes.flatMap((quote, number) =>
    find(text, quote ?? "").map(([start, end]) => [places[start], places[end - 1] + 1, number]),
  );
  const covered = stretches(ranges);
  // From the end, so that what is still to be split keeps its places.
  for (let i = nodes.length - 1, j = covered.length - 1; i >= 0 && j >= 0; ) {
    const [start, end, numbers] = covered[j];
    const last = starts[i] + nodes[i].length;
    if (start < last && end > starts[i]) {
      const from = Math.max(0, start - starts[i]);
      wrap(nodes[i], from, Math.min(end, last) - starts[i], numbers);
    }
    if (start >= starts[i]) j -= 1;
    else i -= 1;
  }
  return new Set(ranges.map(([, , number]) => number));
}

/** Light up the marks of one quote, or of none. */
export function lightUp(root, number, scroll = false) {
  let first = null;
  for (const mark of root.querySelectorAll("mark")) {
    const on = number !== null && mark.dataset.quotes.split(" ").includes(String(number));
    mark.classList.toggle("on", on);
    if (on) first ??= mark;
  }
  if (first && scroll) first.scrollIntoView({ block: "nearest", behavior: "smooth" });
}
