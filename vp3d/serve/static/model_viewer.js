// The viewer where `make vendor` has fetched model-viewer: the same calls as Viewer of viewer.js.

const FILE = "/static/model-viewer.min.js";
const NOWHERE = "/static/no-decoder/";  // its defaults are addresses of other sites

let loading = null;

function load() {
  if (!loading) {
    self.ModelViewerElement = { dracoDecoderLocation: NOWHERE, ktx2TranscoderLocation: NOWHERE, lottieLoaderLocation: NOWHERE };
    loading = import(FILE).then(() => true, () => false);
  }
  return loading;
}

export class ModelViewer {
  modes = ["textured", "clay"];

  constructor(host, label) {
    this.host = host;
    host.classList.add("viewer");
    this.message = document.createElement("p");
    this.message.textContent = "No model yet: a rough one appears while it is optimised.";
    host.append(this.message);
    this.element = document.createElement("model-viewer");
    for (const [name, value] of Object.entries({ alt: label, "camera-controls": "", "disable-pan": "", "environment-image": "neutral", "interaction-prompt": "none", "camera-orbit": "28deg 73deg auto", "min-camera-orbit": "auto 5deg auto", "max-camera-orbit": "auto 175deg auto" })) this.element.setAttribute(name, value);
    this.mode = "textured";
    this.listeners = [];
    this.shown = "";
    this.changes = 0;
    this.element.addEventListener("load", () => this.loaded());
    this.element.addEventListener("camera-change", (event) => {
      if (event.detail.source === "user-interaction") for (const hear of this.listeners) hear(this.element.getCameraOrbit());
    });
    this.ready = load().then((there) => {
      if (there) this.host.append(this.element);
      else this.message.textContent = "model-viewer could not be loaded: download model.glb and open it in a 3D program.";
      return there;
    });
  }

  async show(url) {
    if (!url || url === this.shown || !(await this.ready)) return;
    this.shown = url;
    this.element.setAttribute("src", url);
  }

  loaded() {
    const model = this.element.model;
    if (!model) return;  // the event is late: the next model is being loaded already
    this.message.hidden = true;
    this.maps = model.materials.map((one) => one.pbrMetallicRoughness.baseColorTexture.texture);
    this.setMode(this.mode);
    this.changes += 1;
    Object.assign(this.host.dataset, { changes: this.changes, shown: this.shown, shownAt: Date.now() });
  }

  setMode(mode) {
    this.mode = mode;
    const clay = mode === "clay";
    (this.element.model ? this.element.model.materials : []).forEach((one, n) => {
      const look = one.pbrMetallicRoughness;
      look.baseColorTexture.setTexture(clay ? null : this.maps[n]);
      look.setBaseColorFactor(clay ? [0.58, 0.54, 0.48, 1] : [1, 1, 1, 1]);
    });
  }

  moveTo({ theta, phi }) {  // the distance depends on the size of each model
    this.element.setAttribute("camera-orbit", `${theta}rad ${phi}rad auto`);
    this.element.jumpCameraToGoal();
  }

  close() { this.element.remove(); }
}
