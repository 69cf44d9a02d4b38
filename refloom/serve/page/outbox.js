/* Decisions on their way: in the browser's store until the server has taken them. */

let place = `refloom-unsent:${location.pathname}:`;
let logPlace = `refloom-decisions:${location.pathname}`;

/** Keep the decisions of one run apart: another one's page may have had this address. */
export function openFor(run) {
  place = `refloom-unsent:${run}:`;
  logPlace = `refloom-decisions:${run}`;
}

/** Keep a decision; one entry a sample, so that two tabs do not overwrite each other. */
export function keep(entry) {
  const { id, decision, item } = entry;
  try {
    localStorage.setItem(place + id, JSON.stringify({ id, decision, item }));
    return true;
  } catch {
    return false;
  }
}

export function forget(id) {
  localStorage.removeItem(place + id);
}

/** What an earlier visit could not send. */
export function kept() {
  const entries = [];
  for (const name of Object.keys(localStorage)) {
    if (!name.startsWith(place)) continue;
    try {
      const entry = JSON.parse(localStorage.getItem(name));
      if (typeof entry?.id === "string" && entry.decision && entry.item) entries.push(entry);
    } catch {
      localStorage.removeItem(name);
    }
  }
  return entries;
}

/** This session's decisions, oldest first, also after the page was loaded again. */
export function readLog() {
  try {
    const log = JSON.parse(sessionStorage.getItem(logPlace) ?? "[]");
    return Array.isArray(log) ? log : [];
  } catch {
    return [];
  }
}

export function writeLog(log) {
  try {
    sessionStorage.setItem(logPlace, JSON.stringify(log));
  } catch {
    // Only its memory of what can be undone after a reload is lost.
  }
}
