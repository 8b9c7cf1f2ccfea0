// The page: an address decides what is shown (#/, #/job/ID, #/gallery, #/compare/ID,ID, #/queue).
import { call, info, make } from "./api.js";
import { showMake } from "./make.js";
import { showJob } from "./job.js";
import { showCompare, showGallery, showQueue } from "./lists.js";

const main = document.getElementById("main");
let close = () => {};
let shown = 0;

const pages = [
  [/^#\/job\/([\w-]+)$/, (match) => showJob(main, match[1])],
  [/^#\/gallery/, () => showGallery(main)],
  [/^#\/compare\/([\w,-]+)$/, (match) => showCompare(main, match[1].split(","))],
  [/^#\/queue$/, () => showQueue(main)],
  [/.*/, () => showMake(main)],
];

async function show() {
  const token = location.hash.match(/^#token=(.+)$/);
  if (token) {
    await call("POST", "/v1/session", { token: decodeURIComponent(token[1]) }).catch(() => null);
    history.replaceState(null, "", "#/");
  }
  close();
  close = () => {};
  const mine = ++shown;
  const hash = location.hash || "#/";
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === hash.split("?")[0];
    if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  const [pattern, open] = pages.find(([pattern]) => pattern.test(hash));
  main.replaceChildren();
  try {
    const found = (await open(hash.match(pattern))) || (() => {});
    if (mine === shown) close = found; else found();
    info().then(about, () => {});
  } catch (error) {
    if (mine === shown && error.status !== 401) main.replaceChildren(make("h1", {}, "This did not work"), make("p", { role: "alert" }, error.message), make("p", {}, make("a", { href: "#/gallery" }, "All runs are in the gallery.")));
  }
}

function about({ version, workers, viewer }) {
  const count = workers === 1 ? "1 worker" : workers + " workers";
  document.getElementById("about").textContent = `VP3D ${version} \u00b7 ${count} \u00b7 3D view: ${viewer || "none"}`;
}

function askToken() {
  close();
  const input = make("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const note = make("p", { role: "alert", class: "bad" });
  const form = make("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await call("POST", "/v1/session", { token: input.value });
      await show();
    } catch (error) { note.textContent = error.message; input.focus(); }
  } }, make("h1", {}, "A token is needed"), make("p", {}, "The service printed it when it started; it is also in the file token of its data folder."),
  make("label", { for: "token" }, "Token"), input, make("div", { class: "row" }, make("button", { class: "main" }, "Continue")), note);
  main.replaceChildren(form);
  input.focus();
}

let asking = false;
window.addEventListener("token-needed", () => {
  if (document.getElementById("token") || asking) return;
  asking = true;
  setTimeout(() => { asking = false; askToken(); });
});
window.addEventListener("hashchange", show);
show();
