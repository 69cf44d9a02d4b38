/* One sample on the page: its facts, instruction, response, verdicts and references. */

import { byId, lazyDetails, make } from "./dom.js";
import { showReferences } from "./references.js";
import { answersOf, attemptsOf, reasoningOf, ResponseView } from "./response.js";
import { bestOf, judged, judgedOfInstruction, kind, lineOf, markOf, showVerdicts, tally } from "./verdicts.js";

const REASONS = {
  criteria: "criteria failed",
  no_progress: "it stopped getting better",
  copied: "copied from a reference",
  contaminated: "holds a benchmark's prompt",
};
const WIDE = matchMedia("(min-width: 800px)");

/** What the machine decided, in words. */
export function outcome({ status, reason }) {
  if (status === "accepted") return "accepted";
  return reason ? `rejected, ${REASONS[reason] ?? reason}` : String(status ?? "");
}

/** The heading and what is known of an item before it has come. */
export function showHeading(item, total) {
  document.body.classList.toggle("empty", !item);
  byId("heading").textContent = item ? `Sample ${item.number} of ${Math.max(total, item.number)}` : "";
  byId("facts").replaceChildren(...(item ? [chip(item)] : []));
}

function chip(item) {
  const tone = item.status === "accepted" ? "good" : "poor";
  return make("span", { class: `chip ${tone}`, text: `machine: ${outcome(item)}` });
}

/** Show a sample that has come; gives its response's view. `marks` has the criteria marked as wrong. */
export function showSample({ sample, references, shown }, marks) {
  const lines = judged(sample);
  const best = bestOf(sample);
  const view = new ResponseView(sample, shown, (found) =>
    showVerdicts(lines, view.text, found, marks),
  );
  byId("facts").replaceChildren(chip(sample), ...factsOf(sample));
  byId("sample").replaceChildren(
    instructionOf(sample, shown, marks),
    view.element,
    ...[reasoningOf(sample), answersOf(sample)].filter(Boolean),
    ...[attemptsOf(sample, best)].filter(Boolean),
  );
  view.draw();
  showReferences(references, shown?.references, WIDE.matches);
  return view;
}

function factsOf(sample) {
  const models = [
    sample.model ? `by ${sample.model}` : null,
    sample.judge_model && sample.judge_model !== sample.model ? `judged by ${sample.judge_model}` : null,
  ].filter(Boolean);
  const code = make("code", { text: sample.id });
  return [code, ...models.map((text) => make("span", { text }))];
}

function instructionOf(sample, shown, marks) {
  const body = shown
    ? make("div", { class: "prose", html: shown.instruction })
    : make("pre", { class: "plain", text: sample.instruction });
  const props = { class: "instruction", "aria-labelledby": "instruction-title" };
  const title = make("h3", { id: "instruction-title", text: "Instruction" });
  return make("section", props, title, body, screeningOf(sample, marks));
}

/** The verdicts on the instruction: open if one of them is no pass. */
function screeningOf(sample, marks) {
  const lines = judgedOfInstruction(sample);
  if (!lines.length) return null;
  const open = lines.some(({ verdict }) => ["fail", "unknown"].includes(kind(verdict)));
  const summary = [
    make("span", { class: "title", text: "Its verdicts: the instruction …" }),
    make("span", { class: "meta", text: tally(lines) }),
  ];
  return lazyDetails({ class: "screening", id: "screening", open }, summary, () => [
    make("ul", {}, ...lines.map((line) => screeningLine(line, marks))),
  ]);
}

function screeningLine(line, marks) {
  const content = lineOf(line);
  const evidence = (line.verdict.evidence ?? "").trim();
  if (evidence) content[1].append(make("q", { class: "evidence", text: evidence }));
  return make("li", {}, make("div", { class: `verdict ${kind(line.verdict)}` }, ...content), markOf(line, marks));
}

export function showLoading() {
  byId("verdicts").hidden = byId("references").hidden = true;
  const lines = [1, 2, 3, 4].map(() => make("span", { class: "line" }));
  byId("sample").replaceChildren(make("div", { class: "loading", "aria-hidden": "true" }, ...lines));
}

/** Say something where the sample would be, with one button. */
export function showMessage(title, text, label, action) {
  byId("verdicts").hidden = byId("references").hidden = true;
  byId("heading").textContent = title;
  byId("facts").replaceChildren();
  const button = make("button", { type: "button", text: label, on: { click: action } });
  byId("sample").replaceChildren(make("div", { class: "message" }, make("p", { text }), button));
}
