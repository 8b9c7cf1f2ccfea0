// Calls of the service, and small helpers for the DOM. Text is always set as text, never as HTML.

export class Refused extends Error {
  constructor(status, problem) { super(problem.detail || "the service answered " + status); this.status = status; this.problem = problem; }
}

export async function call(method, path, body, headers = {}) {
  const raw = body instanceof Blob;
  const options = { method, headers: { ...headers } };
  if (body !== undefined) {
    options.body = raw ? body : JSON.stringify(body);
    options.headers["Content-Type"] = raw ? body.type || "application/octet-stream" : "application/json";
  }
  const reply = await fetch(path, options);
  if (!reply.ok) {
    const problem = await reply.json().catch(() => ({}));
    if (reply.status === 401) window.dispatchEvent(new Event("token-needed"));
    throw new Refused(reply.status, problem);
  }
  return reply.status === 204 ? null : reply.json();
}

// What the service is: asked once, after a refusal, and `again` where weights may have been fetched.
let known = null;
export function info(again = false) {
  if (again || !known) known = call("GET", "/v1/info").catch((error) => { known = null; throw error; });
  return known;
}

export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && typeof value !== "string") node[name] = value;
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function seconds(value) {
  if (value === null || value === undefined) return "";
  const whole = Math.round(value);
  return whole < 60 ? whole + " s" : Math.floor(whole / 60) + " min " + String(whole % 60).padStart(2, "0") + " s";
}

export const size = (bytes) => bytes < 1e6 ? Math.ceil(bytes / 1e3) + " kB" : (bytes / 1e6).toFixed(1) + " MB";

export function say(text) { document.getElementById("live").textContent = text; }

// A stream that the browser opens again after a break, from the last event on.
export function follow(path, names, hear) {
  const source = new EventSource(path);
  for (const name of names) source.addEventListener(name, (event) => hear(name, JSON.parse(event.data), event.lastEventId));
  source.addEventListener("end", () => source.close());
  return source;
}
