/* Requests to the server; a key, if it wants one, lives in this tab's session only. */

/** What is said of a server that does not answer. */
export const UNREACHABLE = "The server cannot be reached.";

const ASK_AGAIN_MS = 2000;
const KEY = "refloom-api-key";
let askPerson = async () => null;
let asking = null;

/** What a server or the way to it said no with; `status` is 0 when it could not be reached. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  /** Whether nobody was there to say no: the server is gone, or a proxy cannot reach it. */
  get unreachable() {
    return [0, 502, 504].includes(this.status);
  }
}

/** Tell how a person is asked for a key: `ask(refused)` gives one, or null. */
export function onKeyNeeded(ask) {
  askPerson = ask;
}

/** Send a request and read its JSON; a 401 asks for the key and sends it again. */
export async function ask(method, path, body) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const reply = await send(method, path, body, key);
    if (reply.status !== 401 || !(await otherKey(key))) return read(reply);
  }
}

/** Ask every two seconds until the server answers. */
export async function untilItAnswers() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
    try {
      return await ask("GET", "review/config");
    } catch (error) {
      if (!error.unreachable) return null;
    }
  }
}

async function send(method, path, body, key) {
  const headers = { accept: "application/json" };
  if (key) headers["x-api-key"] = key;
  if (body !== undefined) headers["content-type"] = "application/json";
  const content = body === undefined ? undefined : JSON.stringify(body);
  try {
    return await fetch(path, { method, headers, body: content, cache: "no-store" });
  } catch {
    throw new Refused(0, UNREACHABLE);
  }
}

/** Is there another key than the one that was refused? Requests refused together ask once. */
async function otherKey(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return true;
  asking ??= askPerson(refused !== null).finally(() => (asking = null));
  const given = await asking;
  if (given) sessionStorage.setItem(KEY, given);
  return Boolean(given);
}

async function read(reply) {
  const text = await reply.text().catch(() => "");
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    if (reply.ok) throw new Refused(reply.status, "The server's answer cannot be read.");
  }
  if (!reply.ok) throw new Refused(reply.status, detailOf(data, reply.status));
  return data;
}

function detailOf(data, status) {
  if (status === 502 || status === 504) return UNREACHABLE;
  const detail = data?.detail ?? data?.message;
  if (typeof detail === "string" && detail) return detail;
  return status === 401 ? "The server needs a key." : `The server answered ${status}.`;
}
