/* Elements are made of text and attributes; markup comes from review/shown alone. */

export const byId = (id) => document.getElementById(id);

/** Make an element. `props`: text, html (only of review/shown), on: {event: listener}, attributes. */
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "html") element.innerHTML = value;
    else if (name === "on") listen(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function listen(element, listeners) {
  for (const [event, listener] of Object.entries(listeners)) {
    element.addEventListener(event, listener);
  }
}

/** Details whose body is made when they are first opened. */
export function lazyDetails(props, summary, body) {
  const details = make("details", props, make("summary", {}, ...summary));
  const fill = () => {
    if (details.open && details.childElementCount === 1) details.append(...body());
  };
  details.addEventListener("toggle", fill);
  if (props.open) fill();
  return details;
}

/** A text on one line, cut where a list has no room anyway. */
export function oneLine(text, most = 140) {
  const line = text.slice(0, most * 4).replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1).trimEnd()}…` : line;
}

export const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

export const isObject = (value) => value !== null && typeof value === "object";
