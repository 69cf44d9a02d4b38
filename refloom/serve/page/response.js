/* The response: rendered, as source, or as what became of the first draft. */

import { lazyDetails, make, plural } from "./dom.js";
import { markEvidence } from "./evidence.js";
import { judged, lineOf, kind, tally } from "./verdicts.js";

const words = (text) => plural(text.match(/\S+/g)?.length ?? 0, "word");

export class ResponseView {
  /** `marked(found)` is told which verdicts have their evidence in what is seen now. */
  constructor(sample, shown, marked) {
    Object.assign(this, { sample, shown, marked });
    this.mode = shown ? "rendered" : "source";
    this.quotes = judged(sample).map(({ verdict }) => verdict.evidence ?? "");
    this.text = make("div", { class: "text", id: "response-text" });
    this.changes = shown?.changes ?? [];
    this.source = this.#toggle("source", "Source", "s");
    this.differences = this.#toggle("changes", "Differences", "d");
    this.differences.disabled = !this.changes.length;
    this.element = make(
      "section",
      { class: "response", "aria-labelledby": "response-title" },
      make(
        "div",
        { class: "bar" },
        make("h3", { id: "response-title", text: "Response" }),
        make("span", { class: "quiet", text: words(sample.response) }),
        make("span", { class: "toggles" }, this.source, this.differences),
      ),
      this.text,
    );
  }

  #toggle(mode, label, key) {
    const props = { type: "button", class: "toggle", "aria-keyshortcuts": key, title: label };
    const button = make("button", props, label, make("kbd", { text: key }));
    button.addEventListener("click", () => this.turn(mode));
    return button;
  }

  /** Show this way, or as usual if it is shown this way already; false if there is nothing. */
  turn(mode) {
    if (mode === "changes" && !this.changes.length) return false;
    const usual = this.shown ? "rendered" : "source";
    this.mode = this.mode === mode ? usual : mode;
    this.draw();
    if (this.mode === "changes") {
      this.text.querySelector("ins, del")?.scrollIntoView({ block: "nearest" });
    }
    return true;
  }

  draw() {
    this.source.setAttribute("aria-pressed", String(this.mode === "source"));
    this.differences.setAttribute("aria-pressed", String(this.mode === "changes"));
    this.text.replaceChildren(this.#content());
    this.marked(this.mode === "changes" ? null : markEvidence(this.text, this.quotes));
  }

  #content() {
    if (this.mode === "rendered") return make("div", { class: "prose", dir: "auto", html: this.shown.response });
    if (this.mode === "source") return make("pre", { class: "plain", dir: "auto", text: this.sample.response });
    const tags = { equal: "span", delete: "del", insert: "ins" };
    const parts = this.changes.map(([tag, text]) => make(tags[tag] ?? "span", { text }));
    return make("div", { class: "changes", dir: "auto" }, ...parts);
  }
}

/** What the model thought before the response, as it wrote it, folded away; null without reasoning. */
export function reasoningOf(sample) {
  if (sample.reasoning == null) return null;
  const summary = [
    make("span", { class: "title", text: "Reasoning" }),
    make("span", { class: "meta", text: words(sample.reasoning) }),
  ];
  return lazyDetails({ class: "attempt", id: "reasoning" }, summary, () => [
    make("pre", { class: "plain", text: sample.reasoning }),
  ]);
}

/** How many bare answers were tried, and what became of them; null if none were. */
export function answersOf(sample) {
  const tried = (sample.answers ?? []).length;
  if (!tried) return null;
  const end = sample.reasoning == null ? "none was taken" : "the last one is the response";
  const props = { class: "quiet", id: "answers-tried" };
  return make("p", { ...props, text: `${plural(tried, "bare answer")} tried: ${end}.` });
}

/** The attempts that did not become the response, each folded away. */
export function attemptsOf(sample, best) {
  const attempts = (sample.attempts ?? []).map((attempt, i) => [attempt, i + 1]);
  const others = attempts.filter(([attempt]) => attempt !== best);
  if (!others.length) return null;
  const title = make("h3", { id: "attempts-title", text: "Other attempts" });
  const list = others.map(([attempt, number]) => attemptOf(sample, attempt, number));
  const props = { class: "attempts", "aria-labelledby": "attempts-title" };
  return make("section", props, title, ...list);
}

function attemptOf(sample, attempt, number) {
  const lines = judged(sample, attempt);
  const summary = [
    make("span", { class: "title", text: `Attempt ${number}` }),
    make("span", { class: "meta", text: attempt.verdicts?.length ? tally(lines) : "not judged" }),
  ];
  return lazyDetails({ class: "attempt" }, summary, () => {
    const poor = attempt.verdicts?.length
      ? lines.filter(({ verdict }) => kind(verdict) !== "pass")
      : [];
    const items = poor.map((line) => make("li", { class: "verdict" }, ...lineOf(line)));
    return [
      make("pre", { class: "plain", text: attempt.response }),
      items.length ? make("ul", {}, ...items) : null,
    ].filter(Boolean);
  });
}
