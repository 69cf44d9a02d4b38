/* What the review came to, and how to go on. */

import { make, plural } from "./dom.js";

const percent = (part, n) => `${Math.round((100 * part) / n)} %`;

/** The figures of a run's review, as elements. */
export function figuresOf(figures) {
  const { decided, waiting, accepted, edited, rejected, instructions_edited: changed } = figures;
  const { n, agree } = figures.agreement;
  const pace = figures.median_seconds;
  const edits = changed ? `${edited} (the instruction of ${changed})` : String(edited);
  const facts = [
    ["Decided", `${decided} of ${decided + waiting}`],
    ["Accepted", String(accepted)],
    ["Edited", edits],
    ["Rejected", String(rejected)],
    ["Median time a sample", pace === null ? "not known yet" : pace < 1 ? "under 1 s" : `${Math.round(pace)} s`],
    ["As the machine proposed (not edited)", n ? `${agree} of ${n} (${percent(agree, n)})` : "no sample yet"],
  ];
  const people = figures.reviewers.filter((one) => one.by !== null);
  return [
    make("dl", { class: "facts-list" }, ...facts.map(([term, text]) => make("div", {}, make("dt", { text: term }), make("dd", { text })))),
    people.length > 1 ? make("p", { class: "quiet", text: people.map((one) => `${one.by}: ${one.decided}`).join(" · ") }) : null,
    criteriaOf(figures.criteria),
    make("h3", { text: "What next" }),
    make("ul", { class: "steps" }, ...figures.steps.map(stepOf)),
  ].filter(Boolean);
}

function criteriaOf(rows) {
  if (!rows.length) return null;
  const head = ["Criterion", "Verdicts", "Failed", "Agreed with", "Criterion wrong"];
  const line = (row) => [
    row.text,
    String(row.n),
    String(row.failed),
    row.n ? `${row.n - row.wrong_verdicts} (${percent(row.n - row.wrong_verdicts, row.n)})` : "–",
    String(row.wrong),
  ];
  const table = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", text })))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...line(row).map((text) => make("td", { text }))))),
  );
  return make(
    "section",
    { class: "by-criterion", "aria-labelledby": "by-criterion-title" },
    make("h3", { id: "by-criterion-title", text: "By criterion" }),
    make("p", { class: "quiet", text: "A verdict that you did not mark as wrong counts as agreed with." }),
    make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `${plural(rows.length, "criterion").replace("criterions", "criteria")}` }, table),
  );
}

function stepOf({ what, command }) {
  const code = make("code", { text: command });
  const copy = make("button", { type: "button", class: "plain", text: "Copy", "aria-label": `Copy: ${command}` });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      copy.textContent = "Copied";
    } catch {
      // Without a secure address there is no clipboard: it is marked to be copied by hand.
      getSelection().selectAllChildren(code);
      copy.textContent = "Marked";
    }
  });
  return make("li", {}, make("span", { text: what }), make("span", { class: "command" }, code, copy));
}
