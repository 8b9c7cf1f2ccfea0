// A viewer of GLB files on the three.js that trimesh carries (a global THREE, release 140), or
// model-viewer where it was fetched. The camera stays when the model changes.
// Drag, arrow keys: turn. Wheel, + and -: nearer and farther.
import { info } from "./api.js";
import { ModelViewer } from "./model_viewer.js";

// A viewer in a new element; ask again after a token was given.
export async function newViewer(label) {
  const { viewer } = await info();
  return new (viewer.startsWith("model-viewer") ? ModelViewer : Viewer)(document.createElement("div"), label);
}

let loading = null;

export function loadThree() {
  loading = loading || new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = "/static/three.js";
    script.onload = () => resolve(Boolean(window.THREE && window.THREE.GLTFLoader));
    script.onerror = () => resolve(false);
    document.head.append(script);
  });
  return loading;
}

export class Viewer {
  modes = ["textured", "clay", "normals", "wire"];

  constructor(host, label) {
    this.host = host;
    host.classList.add("viewer");
    host.innerHTML = "<p>No model yet: a rough one appears while it is optimised.</p>";
    this.message = host.firstChild;
    this.label = label;
    this.camera = { azimuth: 0.5, elevation: 0.3, distance: 3.4 };
    this.mode = "textured";
    this.listeners = [];
    this.shown = "";
    this.changes = 0;
    this.ready = this.start();
  }

  async start() {
    if (!(await loadThree())) {
      this.message.textContent = "three.js is missing here: download model.glb and open it in a 3D program.";
      return false;
    }
    const T = window.THREE;
    try {
      this.renderer = new T.WebGLRenderer({ antialias: true, alpha: true });
    } catch (error) {
      this.message.textContent = "This browser has no WebGL: download model.glb and open it in a 3D program.";
      return false;
    }
    this.renderer.outputEncoding = T.sRGBEncoding;
    this.scene = new T.Scene();
    this.view = new T.PerspectiveCamera(36, 1, 0.05, 50);
    this.sun = new T.DirectionalLight(0xffffff, 0.35);
    this.scene.add(this.sun, new T.AmbientLight(0xffffff, 0.75));
    const canvas = this.renderer.domElement;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", this.label + ": drag or use the arrow keys to turn, plus and minus to zoom");
    this.host.append(canvas);
    this.listen(canvas);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.host);
    this.resize();
    return true;
  }

  listen(canvas) {
    let last = null;
    canvas.addEventListener("pointerdown", (e) => { last = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointermove", (e) => {
      if (!last) return;
      this.turn((last[0] - e.clientX) * 0.01, (e.clientY - last[1]) * 0.01);
      last = [e.clientX, e.clientY];
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
    canvas.addEventListener("wheel", (e) => { e.preventDefault(); this.zoom(e.deltaY > 0 ? 1.08 : 0.93); }, { passive: false });
    const keys = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.12], ArrowDown: [0, -0.12] };
    canvas.addEventListener("keydown", (e) => {
      if (keys[e.key]) { this.turn(...keys[e.key]); e.preventDefault(); }
      if (e.key === "+" || e.key === "=") this.zoom(0.9);
      if (e.key === "-") this.zoom(1.1);
    });
  }

  turn(azimuth, elevation) {
    const c = this.camera;
    this.moveTo({ ...c, azimuth: c.azimuth + azimuth, elevation: Math.max(-1.5, Math.min(1.5, c.elevation + elevation)) });
    this.report();
  }

  zoom(factor) {
    this.moveTo({ ...this.camera, distance: Math.max(1.2, Math.min(12, this.camera.distance * factor)) });
    this.report();
  }

  report() { for (const hear of this.listeners) hear(this.camera); }

  moveTo(camera) { this.camera = { ...camera }; this.draw(); }

  resize() {
    if (!this.renderer) return;
    const { clientWidth: width, clientHeight: height } = this.host;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.view.aspect = width / height;
    this.view.updateProjectionMatrix();
    this.draw();
  }

  draw() {
    if (!this.renderer) return;
    const { azimuth, elevation, distance } = this.camera;
    const level = Math.cos(elevation);
    this.view.position.set(distance * level * Math.sin(azimuth), distance * Math.sin(elevation), distance * level * Math.cos(azimuth));
    this.view.lookAt(0, 0, 0);
    this.sun.position.copy(this.view.position);
    this.renderer.render(this.scene, this.view);
  }

  async show(url) {
    if (!url || url === this.shown || !(await this.ready)) return;
    const reply = await fetch(url);
    if (!reply.ok) return;
    const data = await reply.arrayBuffer();
    const model = await new Promise((resolve, reject) => new window.THREE.GLTFLoader().parse(data, "", resolve, reject));
    if (this.model) { this.scene.remove(this.model); this.free(this.model); }
    this.model = model.scene;
    this.shown = url;
    this.fit(this.model);
    this.scene.add(this.model);
    this.message.hidden = true;
    this.setMode(this.mode);
    this.changes += 1;
    Object.assign(this.host.dataset, { changes: this.changes, shown: url, shownAt: Date.now() });
  }

  // A model in its real size, in metres, or with its origin at its foot, is brought before the
  // camera; others stay as they are, so that a live view does not jump.
  fit(model) {
    const T = window.THREE, box = new T.Box3().setFromObject(model);
    const radius = box.getSize(new T.Vector3()).length() / 2, centre = box.getCenter(new T.Vector3());
    const scale = radius > 0 && (radius < 0.4 || radius > 2.2) ? 1.2 / radius : 1;
    model.scale.setScalar(scale);
    if (scale !== 1 || centre.length() > 0.4 * radius) model.position.copy(centre.multiplyScalar(-scale));
  }

  setMode(mode) {
    this.mode = mode;
    const T = window.THREE;
    if (!this.model || !T) return;
    this.model.traverse((part) => {
      if (!part.isMesh) return;
      part.userData.own = part.userData.own || part.material;
      const own = part.userData.own;
      if (!own.map) { own.metalness = 0; own.roughness = 1; }  // glTF without a material is a metal
      if (mode === "textured") part.material = own;
      if (mode === "clay") part.material = new T.MeshStandardMaterial({ color: 0xc9c2b8, roughness: 1 });
      if (mode === "normals") part.material = new T.MeshNormalMaterial();
      if (mode === "wire") part.material = new T.MeshBasicMaterial({ color: 0x5b7f70, wireframe: true });
    });
    this.draw();
  }

  free(model) {
    model.traverse((part) => {
      if (!part.isMesh) return;
      part.geometry.dispose();
      if (part.material.map) part.material.map.dispose();
      part.material.dispose();
    });
  }

  close() {
    if (this.observer) this.observer.disconnect();
    if (this.model) this.free(this.model);
    if (this.renderer) { this.renderer.dispose(); this.renderer.forceContextLoss(); }
  }
}

// Cameras of several viewers move together.
export function together(viewers) {
  for (const one of viewers) {
    one.listeners.push((camera) => { for (const other of viewers) if (other !== one) other.moveTo(camera); });
  }
}
