/* The verdicts on a response, failed ones first; each lights up its evidence. */

import { byId, make } from "./dom.js";
import { lightUp } from "./evidence.js";

const SIGNS = { pass: "✓", fail: "✕", unknown: "?", not_applicable: "–" };
const WORDS = { pass: "pass", fail: "fail", unknown: "unknown", not_applicable: "does not apply" };
const ORDER = ["fail", "unknown", "pass", "not_applicable"];

/** The attempt whose response the sample has: the best one, not always the last, or a bare answer. */
export function bestOf(sample) {
  if (sample.reasoning != null && sample.answers?.length) return sample.answers.at(-1);
  const attempts = sample.attempts ?? [];
  return attempts.findLast((one) => one.response === sample.response) ?? attempts.at(-1) ?? null;
}

/** Each criterion with its verdict, in the order they are shown; of another attempt, what it has. */
export function judged(sample, attempt = null) {
  const { verdicts } = attempt ?? bestOf(sample) ?? {};
  return linesOf(sample.criteria, verdicts, attempt === null);
}

/** The same for the instruction; none in a run that did not screen. */
export function judgedOfInstruction(sample) {
  return linesOf(sample.instruction_criteria, sample.instruction_verdicts, false);
}

function linesOf(criteria, judgements, all) {
  const verdicts = new Map((judgements ?? []).map((one) => [one.criterion_id, one]));
  const known = new Map((criteria ?? []).map((one) => [one.id, one]));
  const lines = [...new Set([...(all ? known.keys() : []), ...verdicts.keys()])].map((id) => ({
    criterion: known.get(id) ?? { id, text: `meets ${id}`, must: true },
    verdict: verdicts.get(id) ?? { verdict: "unknown", reason: "It was not judged." },
  }));
  const rank = ({ verdict, criterion }) =>
    ORDER.indexOf(kind(verdict)) * 2 + (criterion.must ? 0 : 1);
  return lines.sort((a, b) => rank(a) - rank(b));
}

export const kind = (verdict) => (verdict.verdict in SIGNS ? verdict.verdict : "unknown");

export function tally(lines) {
  const count = (word) => lines.filter(({ verdict }) => kind(verdict) === word).length;
  const parts = [
    [count("fail"), "failed"],
    [count("unknown"), "unknown"],
    [count("pass"), "passed"],
  ];
  return parts.flatMap(([n, word]) => (n ? [`${n} ${word}`] : [])).join(", ");
}

/** The words of one verdict, as elements. */
export function lineOf({ criterion, verdict }) {
  const word = kind(verdict);
  const from = criterion.reference_id ? `from reference ${criterion.reference_id}` : null;
  const by = criterion.judged_by === "rule" ? "by rule" : null;
  const score = typeof verdict.score === "number" ? `score ${verdict.score.toFixed(2)}` : null;
  const jurors = (verdict.jurors ?? []).map((one) => `${one.model} ${WORDS[kind(one)]}`).join(", ");
  const facts = [criterion.must ? "must" : "should", WORDS[word], by, from, score, jurors];
  return [
    make("span", { class: `sign ${word}`, "aria-hidden": "true", text: SIGNS[word] }),
    make(
      "span",
      { class: "said" },
      make("span", { class: "criterion", text: criterion.text }),
      make("span", { class: "meta", text: facts.filter(Boolean).join(" · ") }),
      verdict.reason ? make("span", { class: "why", text: verdict.reason }) : null,
    ),
  ];
}

/** A button that marks a line's criterion as wrong; none where `marks` is null. */
export function markOf({ criterion }, marks) {
  if (!marks) return null;
  const button = make("button", { type: "button", class: "wrong", "aria-label": `This criterion is wrong: ${criterion.text}` });
  const draw = () => {
    const marked = marks.has(criterion.id);
    button.setAttribute("aria-pressed", String(marked));
    button.textContent = marked ? "marked as wrong" : "this criterion is wrong";
  };
  button.addEventListener("click", () => {
    if (!marks.delete(criterion.id)) marks.add(criterion.id);
    draw();
  });
  draw();
  return button;
}

/** Show the verdicts; `found` has the numbers of those whose evidence is in what is seen, or is null. */
export function showVerdicts(lines, root, found, marks) {
  byId("verdicts").hidden = !lines.length;
  byId("tally").textContent = tally(lines);
  const pinned = { number: null };
  byId("verdict-list").replaceChildren(
    ...lines.map((line, number) =>
      make("li", {}, cardOf(line, number, root, found, pinned), markOf(line, marks)),
    ),
  );
}

function cardOf(line, number, root, found, pinned) {
  const evidence = (line.verdict.evidence ?? "").trim();
  const content = lineOf(line);
  if (evidence) content[1].append(make("q", { class: "evidence", text: evidence }));
  if (evidence && found && !found.has(number)) {
    content[1].append(make("span", { class: "meta", text: "not found in the response" }));
  }
  const tone = `verdict ${kind(line.verdict)}`;
  if (!found?.has(number)) return make("div", { class: tone }, ...content);
  const card = make("button", { type: "button", class: tone, "aria-pressed": "false" }, ...content);
  const rest = () => lightUp(root, pinned.number);
  card.addEventListener("pointerenter", () => lightUp(root, number));
  card.addEventListener("pointerleave", rest);
  card.addEventListener("focus", () => lightUp(root, number, card.matches(":focus-visible")));
  card.addEventListener("blur", rest);
  card.addEventListener("click", () => {
    pinned.number = pinned.number === number ? null : number;
    for (const other of byId("verdict-list").querySelectorAll("button.verdict")) {
      other.setAttribute("aria-pressed", String(other === card && pinned.number === number));
    }
    lightUp(root, pinned.number, true);
  });
  return card;
}
