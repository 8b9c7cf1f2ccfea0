// Many jobs: the gallery, the comparison of two to four, and the queue.
import { call, make, seconds } from "./api.js";
import { FIGURES } from "./job.js";
import { newViewer, together } from "./viewer.js";

const MOST = 4;

export async function showGallery(main) {
  const chosen = new Set();
  const search = make("input", { type: "search", id: "search", "aria-label": "Search prompts", placeholder: "Search prompts" });
  const states = ["", "queued", "running", "awaiting_choice", "succeeded", "failed", "cancelled"];
  const state = make("select", { "aria-label": "State" }, states.map((one) => make("option", { value: one }, one.replace("_", " ") || "all states")));
  const compare = make("button", { type: "button", id: "compare", disabled: true, onclick: () => { location.hash = "#/compare/" + [...chosen].join(","); } }, "Compare");
  const list = make("ul", { class: "tiles" });
  const more = make("button", { type: "button", hidden: true }, "More");
  let cursor = "";
  let timer = 0;

  async function load(fresh) {
    const query = new URLSearchParams({ q: search.value, status: state.value, limit: "48", cursor: fresh ? "" : cursor });
    const page = await call("GET", "/v1/jobs?" + query);
    if (fresh) list.replaceChildren();
    list.append(...page.jobs.map(tile));
    if (!list.children.length) list.append(make("li", {}, "Nothing here yet."));
    cursor = page.next_cursor || "";
    more.hidden = !page.next_cursor;
  }
  function tile(job) {
    const box = make("input", { type: "checkbox", "aria-label": "Compare: " + (job.request.prompt || job.id), checked: chosen.has(job.id), onchange: () => {
      if (box.checked) chosen.add(job.id); else chosen.delete(job.id);
      compare.disabled = chosen.size < 2 || chosen.size > MOST;
    } });
    const shown = make("div", { class: "picture" }, thumbnail(job));
    return make("li", { class: "tile" }, make("a", { href: "#/job/" + job.id, "aria-hidden": "true", tabindex: "-1" }, shown), make("div", { class: "text" },
      make("a", { href: "#/job/" + job.id }, job.request.prompt || job.id), make("div", { class: "row" }, make("span", { class: "status" }, job.status.replace("_", " ")), job.origin === "command_line" ? make("span", { class: "faint" }, "command line") : null, job.status === "succeeded" ? make("label", {}, box, " compare") : null)));
  }
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => load(true), 250); });
  state.addEventListener("change", () => load(true));
  more.addEventListener("click", () => load(false));
  main.append(make("h1", {}, "Gallery"), make("div", { class: "fields" }, search, state), make("div", { class: "row" }, compare, make("span", { class: "faint" }, "Mark two to four runs.")), list, more);
  await load(true);
  return () => clearTimeout(timer);
}

// One view of a run: of its contact sheet, of the strip while it is optimised, or its picture.
function thumbnail(job) {
  const { candidates, preview } = job;
  const finished = job.status === "succeeded" ? `/v1/jobs/${job.id}/artifacts/preview.png` : null;
  const url = finished || preview.image || (candidates ? candidates.pictures[job.choice ?? candidates.chosen] : null);
  if (!url) return null;
  const image = make("img", { alt: "", loading: "lazy" });
  image.addEventListener("load", () => image.classList.toggle("sheet", image.naturalWidth > 1000 && image.naturalWidth < 2.5 * image.naturalHeight));
  image.addEventListener("error", () => image.remove());
  image.src = url;
  return image;
}

export async function showCompare(main, ids) {
  const jobs = await Promise.all(ids.slice(0, MOST).map((id) => call("GET", "/v1/jobs/" + id)));
  const viewers = await Promise.all(jobs.map((job) => newViewer(job.request.prompt || job.id)));
  together(viewers);
  main.append(make("h1", {}, "Compare"), make("div", { class: "compare" }, jobs.map((job, n) => make("div", {}, viewers[n].host, make("p", {}, n + 1 + ". ", make("a", { href: "#/job/" + job.id }, job.request.prompt || job.id))))));
  jobs.forEach((job, n) => viewers[n].show(`/v1/jobs/${job.id}/artifacts/model.glb`));
  const figures = (job) => Object.fromEntries(Object.entries(FIGURES).map(([name, [text, digits, unit]]) => [text, typeof (job.figures || {})[name] === "number" ? job.figures[name].toFixed(digits) + unit : undefined]));
  const facts = jobs.map((job) => ({ ...job.request, ...(job.request.settings || {}), ...figures(job), "front view, grade": job.front_view?.grade.toFixed(1), state: job.status }));
  const names = [...new Set(facts.flatMap(Object.keys))].filter((name) => name !== "settings" && new Set(facts.map((one) => JSON.stringify(one[name]))).size > 1);
  const head = jobs.map((job, n) => make("th", { scope: "col" }, String(n + 1)));
  main.append(make("h2", {}, "What differs"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What differs" }, make("table", {}, make("thead", {}, make("tr", {}, make("td"), head)), make("tbody", {}, names.map((name) => make("tr", {}, make("th", { scope: "row" }, name), facts.map((one) => make("td", {}, String(one[name] ?? "")))))))));
  return () => viewers.forEach((one) => one.close());
}

export async function showQueue(main) {
  const pause = make("button", { type: "button", id: "pause" });
  const body = make("tbody");
  let timer = 0;
  async function load() {
    const [queue, ...pages] = await Promise.all([call("GET", "/v1/queue"), ...["running", "cancelling", "awaiting_choice", "queued"].map((state) => call("GET", "/v1/jobs?limit=200&status=" + state))]);
    pause.textContent = queue.paused ? "Let queued jobs start" : "Pause the queue";
    pause.onclick = async () => { await call("POST", "/v1/queue", { paused: !queue.paused }); load(); };
    const jobs = pages.flatMap((page) => page.jobs).sort((a, b) => (a.queue_position ?? -1) - (b.queue_position ?? -1));
    body.replaceChildren(...jobs.map((job) => make("tr", {}, make("td", {}, job.queue_position === null ? "" : String(job.queue_position + 1)), make("td", {}, make("a", { href: "#/job/" + job.id }, job.request.prompt || job.id)), make("td", {}, job.status.replace("_", " ")), make("td", {}, Math.round(100 * job.progress) + " %"), make("td", {}, seconds(job.eta_s)),
      make("td", {}, job.status === "queued" ? make("button", { type: "button", onclick: async () => { await call("POST", `/v1/jobs/${job.id}/priority`, { priority: Math.min(job.priority + 1, 100) }); load(); } }, "Earlier") : ""))));
    if (!jobs.length) body.replaceChildren(make("tr", {}, make("td", { colspan: "6" }, "Nothing waits.")));
  }
  main.append(make("h1", {}, "Queue"), make("div", { class: "row" }, pause), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Jobs" }, make("table", { class: "queue" }, make("thead", {}, make("tr", {}, ["place", "prompt", "state", "done", "left", ""].map((text) => text ? make("th", { scope: "col" }, text) : make("td")))), body)));
  await load();
  timer = setInterval(load, 2500);
  return () => clearInterval(timer);
}
