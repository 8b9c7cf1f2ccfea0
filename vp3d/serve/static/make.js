// The prompt box: a live check with the vocabulary's help, profile, preset, picture, choice.
import { call, info, make, newKey, say } from "./api.js";

const CHECK_AFTER_MS = 250;

export async function showMake(main) {
  const [about, words] = await Promise.all([info(true), call("GET", "/v1/vocabulary")]);
  const state = { image: "", timer: 0, key: newKey() };
  const prompt = make("textarea", { id: "prompt", rows: "2", maxlength: String(about.limits.prompt_characters), "aria-describedby": "verdict", required: true });
  prompt.value = sessionStorage.getItem("prompt") || "";
  const verdict = make("div", { id: "verdict", role: "status" });
  const fixes = make("div", { class: "chips", id: "fixes" });
  const profile = select("profile", about.profiles.map((one) => [one.name, one.name + (one.available ? "" : " (weights missing)")]), "toybox");
  const preset = select("preset", about.presets.map((name) => [name, name]), "draft");
  const seed = make("input", { type: "number", id: "seed", min: "0", value: "0" });
  const missing = make("p", { class: "faint", id: "missing" });
  const note = make("p", { role: "alert", class: "bad" });
  const picture = make("input", { type: "file", id: "picture", accept: "image/*" });
  const pictureNote = make("span", { class: "faint" });

  async function check() {
    sessionStorage.setItem("prompt", prompt.value);
    if (!prompt.value.trim()) { verdict.textContent = ""; fixes.replaceChildren(); return; }
    const asked = prompt.value;
    const found = await call("POST", "/v1/prompts/check", { prompt: asked, profile: profile.value }).catch(() => null);
    if (!found || asked !== prompt.value) return;
    fixes.replaceChildren(...found.unknown.flatMap((one) => one.nearest.map((near) =>
      make("button", { type: "button", onclick: () => replaceWord(one.word, near) }, one.word + " \u2192 " + near))));
    verdict.className = found.ok ? "good" : "bad";
    if (found.unknown.length) verdict.textContent = "Unknown: " + found.unknown.map((one) => one.word).join(", ");
    else if (!found.ok) verdict.textContent = found.message;
    else verdict.textContent = found.in_grammar ? "Every word is known." : "Every word is known, but the models were trained on simpler sentences.";
    if (found.ok && found.read_as !== asked && found.read_as !== asked.trim()) verdict.textContent += " It is read as: " + found.read_as;
  }

  function replaceWord(word, near) {
    const pattern = new RegExp("(^|[^\\p{L}])" + word.replace(/[^\p{L}\p{N}]/gu, "\\$&") + "(?![\\p{L}])", "iu");
    prompt.value = prompt.value.replace(pattern, "$1" + near);
    check();
    prompt.focus();
  }

  function add(word) {
    prompt.value = (prompt.value.trimEnd() + " " + word).trimStart();
    check();
  }

  async function send(choose, event) {
    event.preventDefault();
    note.textContent = "";
    const body = { prompt: prompt.value, profile: profile.value, preset: preset.value, seed: Number(seed.value) || 0, choose, image: state.image };
    try {
      const job = await call("POST", "/v1/jobs", body, { "Idempotency-Key": state.key });
      state.key = newKey();
      say("The job is queued.");
      location.hash = "#/job/" + job.id;
    } catch (error) {
      state.key = newKey();
      note.textContent = error.message;
    }
  }

  async function upload(file) {
    if (!file) return;
    pictureNote.textContent = "sending ...";
    try {
      const found = await call("POST", "/v1/uploads", file);
      state.image = found.id;
      pictureNote.textContent = file.name + ", " + found.width + " x " + found.height;
    } catch (error) { state.image = ""; pictureNote.textContent = error.message; }
  }

  const showMissing = () => {
    const one = about.profiles.find((item) => item.name === profile.value);
    missing.textContent = one && !one.available ? one.message : "";
  };
  prompt.addEventListener("input", () => { clearTimeout(state.timer); state.timer = setTimeout(check, CHECK_AFTER_MS); });
  profile.addEventListener("change", () => { showMissing(); check(); });
  picture.addEventListener("change", () => upload(picture.files[0]));

  const form = make("form", { class: "card", onsubmit: (event) => send("ask", event) },
    make("label", { for: "prompt" }, "What to make"), prompt, verdict, fixes,
    make("div", { class: "fields" },
      field("Quality", preset), field("Profile", profile), field("Seed", seed),
      field("Picture to follow (optional)", picture)), pictureNote, missing,
    make("div", { class: "row" },
      make("button", { class: "main", id: "draw" }, "Draw pictures, let me choose"),
      make("button", { type: "button", id: "auto", onclick: (event) => send("auto", event) }, "Make 3D, choose for me")), note);
  form.addEventListener("dragover", (event) => event.preventDefault());
  form.addEventListener("drop", (event) => { event.preventDefault(); upload(event.dataTransfer.files[0]); });
  main.append(make("h1", {}, "Text to a textured 3D asset"), form, help(words, (text) => { prompt.value = text; check(); }, add));
  if (prompt.value) check();
  return () => clearTimeout(state.timer);
}

function field(text, input) {
  return make("div", {}, make("label", { for: input.id }, text), input);
}

function select(id, options, value) {
  const node = make("select", { id }, options.map(([name, text]) => make("option", { value: name }, text)));
  node.value = value;
  return node;
}

function help(words, take, add) {
  if (words.open) return make("p", {}, "This profile knows every word.");
  const chips = (title, list) => [make("h2", {}, title), make("div", { class: "chips" }, list.map((word) => make("button", { type: "button", onclick: () => add(word) }, word)))];
  return make("section", { "aria-label": "Words" },
    make("h2", {}, "Examples"), make("div", { class: "chips" }, words.examples.map((text) => make("button", { type: "button", onclick: () => take(text) }, text))),
    chips("Things", words.nouns), chips("Colours", Object.keys(words.colors)),
    chips("Parts and patterns", ["with a", ...new Set([...Object.values(words.parts), ...words.patterns])]), chips("Two things", ["on a", "next to a"]));
}
