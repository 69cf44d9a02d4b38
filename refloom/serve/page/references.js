/* What the sample was made from, beside it. */

import { byId, lazyDetails, make, oneLine } from "./dom.js";

/** Show the references; `html` is what review/shown made of them, if it could. */
export function showReferences(references, html, wide) {
  byId("references").hidden = !references.length;
  const shown = new Map((html ?? []).map((one) => [one.id, one]));
  byId("reference-list").replaceChildren(
    ...references.map((one, i) => detailsOf(one, html?.[i] ?? shown.get(one.id), wide && i === 0)),
  );
}

function detailsOf(reference, html, open) {
  const score = typeof reference.score === "number" ? reference.score.toFixed(2) : null;
  const summary = [
    make("span", { class: "title", dir: "auto", text: oneLine(reference.instruction ?? "") }),
    make("span", { class: "meta", text: [reference.id, score].filter(Boolean).join(" · ") }),
  ];
  return lazyDetails({ class: "reference", open }, summary, () => [
    ...(reference.history ?? []).map(turnOf),
    part("Instruction", html?.instruction, reference.instruction),
    part("Response", html?.response, reference.response),
  ]);
}

function turnOf({ role, content }) {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  return part(`Before it: ${role}`, undefined, text);
}

function part(title, html, text) {
  const body =
    html === undefined
      ? make("pre", { class: "plain", dir: "auto", text: text ?? "" })
      : make("div", { class: "prose small", dir: "auto", html });
  return make("div", { class: "part" }, make("h4", { text: title }), body);
}
