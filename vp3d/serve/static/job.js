// One job: pictures to choose from, progress with a live 3D view, or the result.
import { call, follow, make, say, seconds, size } from "./api.js";
import { newViewer } from "./viewer.js";

const EVENTS = ["status", "stage", "candidates", "step", "preview", "warning", "artifact", "end"];
const STAGES = { load: "load models", visual_prompt: "draw pictures", coarse: "optimise", refine: "refine", export: "export", views: "check views", report: "report" };
export const FIGURES = {  // figure of a run -> its words, digits and unit
  glb_iou: ["same silhouette (IoU, 1 is best)", 3, ""], glb_psnr: ["same picture (PSNR)", 1, " dB"],
  glb_psnr_object: ["same colours on the object (PSNR)", 1, " dB"],
};
const FRONT = [["front_prompt.png", "the picture"], ["front_render.png", "the front of the asset"], ["front_heat.png", "where they differ"]];
const OVER = ["succeeded", "failed", "cancelled"];

export async function showJob(main, id) {
  let job = await call("GET", "/v1/jobs/" + id);
  const view = { stage: "", curve: [], began: Date.parse(job.started_at) || Date.now() };
  const viewer = await newViewer(job.request.prompt || id);
  const parts = build(main, job, viewer);
  let source = null;

  const update = (next) => { job = next; draw(parts, job, view, viewer, act); };
  async function act(verb, body) {
    try { update(await call("POST", "/v1/jobs/" + id + "/" + verb, body)); listen(); }
    catch (error) { parts.note.textContent = error.message; }
  }
  function listen() {
    if (source) source.close();
    if (OVER.includes(job.status)) return;
    source = follow("/v1/jobs/" + id + "/events", EVENTS, (name, data, event) => {
      if (name === "status") update(data);
      if (name === "end") { say("The job " + data.status + "."); update(data); }
      if (name === "stage" || name === "step") onProgress(parts, data, name, view);
      if (name === "preview") onPreview(parts, `/v1/jobs/${id}/artifacts/preview.${data.kind}?v=e${event}`, data, view, () => { if (!OVER.includes(job.status)) viewer.show(view.url); });
      if (name === "warning") parts.warnings.append(make("li", {}, data.message));
      if (name === "candidates") update({ ...job, candidates: { ...data, pictures: data.scores.map((_, n) => `/v1/jobs/${id}/artifacts/candidate_${n}.png`) } });
    });
  }
  update(job);
  listen();
  if (job.preview.glb && !OVER.includes(job.status)) viewer.show(job.preview.glb);
  const clock = setInterval(() => { if (!OVER.includes(job.status)) parts.elapsed.textContent = seconds((Date.now() - view.began) / 1000) + " since the start"; }, 1000);
  return () => { clearInterval(clock); if (source) source.close(); viewer.close(); };
}

function build(main, job, viewer) {
  const parts = {
    status: make("span", { class: "status", id: "status" }), note: make("p", { role: "alert", class: "bad" }),
    bar: make("progress", { max: "1", value: "0", "aria-label": "Progress of the job" }), percent: make("b"), eta: make("span", { id: "eta" }), elapsed: make("span"),
    stages: make("ol", { class: "stages" }), actions: make("div", { class: "row" }), progress: make("section", { class: "card", "aria-label": "Progress" }),
    candidates: make("section", { "aria-label": "Pictures" }), strip: make("img", { class: "strip", alt: "Four views of the current state", hidden: true }),
    curve: make("div"), more: make("div"), result: make("section", { "aria-label": "Result" }), warnings: make("ul", { class: "faint" }), side: make("div"), modes: make("div", { class: "row", role: "group", "aria-label": "Look" }),
  };
  for (const mode of viewer.modes) {
    const button = make("button", { type: "button", "aria-pressed": String(mode === "textured"), onclick: () => {
      viewer.setMode(mode);
      for (const one of parts.modes.children) one.setAttribute("aria-pressed", String(one === button));
    } }, mode);
    parts.modes.append(button);
  }
  parts.progress.append(make("div", { class: "row" }, parts.percent, parts.eta, parts.elapsed), parts.bar, parts.stages, parts.strip, parts.curve);
  parts.side.append(parts.progress, parts.result, make("details", {}, make("summary", {}, "Messages"), parts.warnings));
  for (const text of job.warnings) parts.warnings.append(make("li", {}, text));
  parts.columns = make("div", { class: "columns" }, make("div", {}, viewer.host, parts.modes), parts.side, parts.more);
  main.append(make("h1", {}, job.request.prompt || job.id),
    make("p", { class: "row" }, parts.status, make("span", { class: "faint" }, [job.kind, job.request.preset, "seed " + (job.request.seed ?? 0), job.id].filter(Boolean).join(" \u00b7 "))),
    parts.note, parts.actions, parts.candidates, parts.columns);
  return parts;
}

function draw(parts, job, view, viewer, act) {
  const over = OVER.includes(job.status);
  parts.status.textContent = job.status.replace("_", " ") + (job.stopped_early ? ", stopped early" : "") + (job.queue_position !== null ? ", place " + (job.queue_position + 1) : "");
  parts.columns.hidden = ["queued", "awaiting_choice"].includes(job.status) && !job.preview.glb;
  parts.progress.hidden = over || job.status === "queued" || job.status === "awaiting_choice";
  parts.bar.value = job.progress;
  parts.percent.textContent = Math.round(100 * job.progress) + " %";
  if (job.started_at) view.began = Date.parse(job.started_at);
  if (job.stage) showStage(parts, job.stage.name, view);
  parts.note.textContent = job.error ? job.error.detail : "";
  drawActions(parts, job, act);
  drawCandidates(parts, job, act);
  if (over) drawResult(parts, job, viewer);
}

const REPEATED = ["prompt", "negative_prompt", "profile", "preset", "image", "formats", "settings"];

function drawActions(parts, job, act) {
  const button = (id, text, run) => make("button", { type: "button", id, onclick: run }, text);
  async function again(choose) {
    const body = Object.fromEntries(REPEATED.map((name) => [name, job.request[name]]).filter(([, value]) => value !== undefined));
    try {
      const made = await call("POST", "/v1/jobs", { ...body, choose, seed: (job.request.seed || 0) + 1 });
      location.hash = "#/job/" + made.id;
      return true;
    } catch (error) { parts.note.textContent = error.message; return false; }
  }
  const found = [];
  if (job.status === "running") found.push(button("keep", "Stop and keep", () => act("cancel", { keep: true })), button("cancel", "Cancel", () => act("cancel", {})));
  if (["queued", "awaiting_choice"].includes(job.status)) found.push(button("cancel", "Cancel", () => act("cancel", {})));
  if (job.status === "awaiting_choice") found.push(button("again", "Draw others", async () => { if (await again("ask")) act("cancel", {}); }));
  if (job.status === "cancelled" || job.status === "failed" || job.stopped_early) if (job.origin === "service") found.push(button("resume", "Continue", () => act("resume")));
  if (OVER.includes(job.status)) {
    found.push(button("again", "Same settings, other seed", () => again("auto")));
    found.push(button("delete", "Delete", async () => {
      if (!window.confirm("Delete this run and its files?")) return;
      try { await call("DELETE", "/v1/jobs/" + job.id); location.hash = "#/gallery"; }
      catch (error) { parts.note.textContent = error.message; }
    }));
  }
  parts.actions.replaceChildren(...found);
}

function drawCandidates(parts, job, act) {
  const found = job.candidates;
  const asks = job.status === "awaiting_choice";
  if (!found || (OVER.includes(job.status) && found.scores.length < 2)) { parts.candidates.replaceChildren(); return; }
  const chosen = job.choice ?? found.chosen;
  const tiles = found.scores.map((score, n) => {
    const text = (score === null ? "cannot be cut out" : "score " + score.toFixed(3)) + (n === found.chosen ? " \u00b7 ours: the best that is steady" : "") + (n === job.choice ? " \u00b7 your choice" : "");
    const inner = [make("img", { src: found.pictures[n], alt: "Candidate " + (n + 1), loading: "lazy" }), make("div", { class: "text" }, text)];
    return make("li", { class: "tile" + (n === chosen ? " chosen" : "") }, asks && score !== null
      ? make("button", { type: "button", "data-candidate": String(n), onclick: () => act("choose", { candidate: n }) }, inner) : inner);
  });
  const list = make("ul", { class: "tiles candidates" }, tiles);
  const title = asks ? "Choose a picture: it becomes the 3D asset" : "Pictures";
  parts.candidates.replaceChildren(...(asks ? [make("h2", {}, title), list] : [make("details", {}, make("summary", {}, title), list)]));
}

function showStage(parts, name, view) {
  view.stage = name;
  const names = Object.keys(STAGES).filter((one) => one !== "refine" || name === "refine");
  const here = names.indexOf(name);
  parts.stages.replaceChildren(...names.map((one, n) => make("li", { class: n < here ? "done" : n === here ? "now" : "", ...(n === here ? { "aria-current": "step" } : {}) }, STAGES[one])));
}

function onProgress(parts, data, name, view) {
  if (name === "stage") { showStage(parts, data.name, view); say(STAGES[data.name] || data.name); }
  parts.progress.hidden = false;
  parts.bar.value = data.progress;
  parts.percent.textContent = Math.round(100 * data.progress) + " %";
  parts.eta.textContent = "about " + seconds(data.eta_s) + " left" + (name === "step" ? ", step " + data.step + " of " + data.steps : "");
  if (data.reward_text_image !== undefined) {
    view.curve.push(data.reward_text_image);
    parts.curve.replaceChildren(make("p", { class: "faint" }, "text-image reward " + data.reward_text_image.toFixed(3)), curve(view.curve));
  }
}

function curve(values) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", "0 0 100 1");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", values.map((value, n) => (100 * n / Math.max(values.length - 1, 1)).toFixed(2) + "," + (1 - Math.max(0, Math.min(1, value))).toFixed(4)).join(" "));
  svg.append(line);
  return svg;
}

function onPreview(parts, url, data, view, show) {
  if (data.kind === "png") { parts.strip.src = url; parts.strip.hidden = false; return; }
  view.url = url;
  clearTimeout(view.timer);  // a replay brings many at once: only the newest is fetched
  view.timer = setTimeout(show, 60);
}

async function drawResult(parts, job, viewer) {
  const found = (await call("GET", "/v1/jobs/" + job.id + "/artifacts")).artifacts;
  const by = Object.fromEntries(found.map((one) => [one.name, one]));
  const glb = by["model.glb"];
  if (glb) viewer.show(glb.url + "?sha=" + glb.sha256.slice(0, 12));
  const files = found.filter((one) => /^(model(_lod\d)?|turntable|report|preview|plots)\./.test(one.name) && one.name !== "preview.glb");
  const rows = files.map((one) => make("tr", {}, make("td", {}, make("a", { href: one.url, download: one.name.endsWith(".html") ? false : one.name, ...(one.name.endsWith(".html") ? { target: "_blank", rel: "noopener" } : {}) }, one.name)), make("td", {}, size(one.bytes)), make("td", { class: "sum", title: one.sha256 }, one.sha256.slice(0, 16))));
  const figures = Object.entries(FIGURES).filter(([name]) => typeof (job.figures || {})[name] === "number").map(([name, [text, digits, unit]]) => make("tr", {}, make("th", { scope: "row" }, text), make("td", {}, job.figures[name].toFixed(digits) + unit)));
  const video = found.find((one) => one.name === "turntable.mp4");
  const blocks = [], more = [];
  if (rows.length) blocks.push(make("h2", {}, "Files"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Files" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "file"), make("th", { scope: "col" }, "size"), make("th", { scope: "col" }, "SHA-256"))), make("tbody", {}, rows))));
  if (figures.length) blocks.push(make("h2", {}, "The file against what was optimised"), make("table", {}, make("tbody", {}, figures)));
  const front = FRONT.filter(([name]) => by[name]);
  if (job.front_view && front.length) blocks.push(make("h2", {}, "Front view against the picture"), make("p", {}, job.front_view.words), make("ul", { class: "tiles front" }, front.map(([name, text]) => make("li", { class: "tile" }, make("img", { src: by[name].url + "?sha=" + by[name].sha256.slice(0, 12), alt: text }), make("div", { class: "text" }, text)))));
  if (video) blocks.push(make("h2", {}, "Turntable"), make("video", { src: video.url, controls: true, loop: true, muted: true, playsinline: true, "aria-label": "Turntable" }));
  if (found.some((one) => /^model\./.test(one.name))) more.push(exportForm(job, parts));
  parts.result.replaceChildren(...blocks);
  parts.more.replaceChildren(...more);
}

function exportForm(job, parts) {
  const faces = make("input", { type: "number", id: "faces", min: "4", value: "2000" });
  const texture = make("input", { type: "number", id: "texture", min: "16", max: "2048", value: "512" });
  const height = make("input", { type: "number", id: "millimetres", min: "1", max: "10000", placeholder: "as it is" });
  const box = (id, text) => make("label", {}, make("input", { type: "checkbox", id }), " " + text);
  const more = [box("print", "ready to print"), box("levels", "levels of detail")];
  const formats = ["glb", "obj", "ply", "stl", "usdz", "3mf"].map((name) => make("label", {}, make("input", { type: "checkbox", value: name, checked: name === "glb" }), " " + name));
  return make("form", { class: "card", id: "export", onsubmit: async (event) => {
    event.preventDefault();
    const chosen = formats.map((one) => one.querySelector("input")).filter((one) => one.checked).map((one) => one.value);
    const [print, levels] = more.map((one) => one.querySelector("input").checked);
    const settings = { ...(height.value && { "export.size_mm": Number(height.value) }), ...(print && { "export.print": true }), ...(levels && { "export.lods": [1, 0.5, 0.25, 0.1] }) };
    try {
      const made = await call("POST", "/v1/jobs/" + job.id + "/exports", { faces: Number(faces.value), texture_size: Number(texture.value), formats: chosen, settings });
      location.hash = "#/job/" + made.id;
    } catch (error) { parts.note.textContent = error.message; }
  } }, make("h2", {}, "Export again"), make("div", { class: "fields" }, make("div", {}, make("label", { for: "faces" }, "Triangles"), faces), make("div", {}, make("label", { for: "texture" }, "Texture, pixels"), texture), make("div", {}, make("label", { for: "millimetres" }, "Longest side, mm"), height)),
  make("fieldset", {}, make("legend", {}, "Formats"), make("div", { class: "row" }, formats)), make("div", { class: "row" }, more), make("button", {}, "Export"));
}
