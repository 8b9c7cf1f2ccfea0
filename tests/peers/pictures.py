"""A browser and Blender draw exported files; their pictures are compared with ours.

The browser is headless Chromium with three.js, the library that most viewers on the web use. It
reads GLB, OBJ, PLY, STL and 3MF. Blender reads GLB. Pictures are of an unlit GLB, so that only
geometry, UVs, texture and orientation count, and no renderer's light.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vp3d.export.read import read_mesh
from vp3d.render.camera import camera_position, orbit
from vp3d.render.raster import render_mesh
from vp3d.types import Camera

LARGE, SIDE = 512, 128  # pixels of a side as they are drawn, and as they are compared
BACKGROUND = 1.0  # white
FOV_DEG = 40.0
VIEWS = ((0.0, 5.0), (90.0, 20.0), (205.0, 35.0), (320.0, -10.0))  # azimuth, elevation in degrees
LEAST_PSNR = 30.0  # dB
READ_BY_BROWSER = ("glb", "obj", "ply", "stl", "3mf")
PAGE = """<!doctype html><meta charset="utf-8"><script type="importmap">
{"imports": {"three": "/three/build/three.module.js", "loaders/": "/three/examples/jsm/loaders/"}}
</script><script type="module">
import * as THREE from "three";
const names = { glb: "GLTFLoader", obj: "OBJLoader", ply: "PLYLoader", stl: "STLLoader",
  "3mf": "3MFLoader" };
const load = async (kind) => {
  const found = await import("loaders/" + names[kind] + ".js");
  const maker = found[kind === "3mf" ? "ThreeMFLoader" : names[kind]];
  const loaded = await new maker().loadAsync("/file." + kind);
  if (loaded.isBufferGeometry) return new THREE.Mesh(loaded);
  return loaded.scene || loaded;
};
window.look = async (kind) => {
  const object = await load(kind), box = new THREE.Box3().setFromObject(object, true);
  let faces = 0;
  object.traverse((o) => { if (o.isMesh) {
    const g = o.geometry;
    faces += (g.index ? g.index.count : g.attributes.position.count) / 3; } });
  return { low: box.min.toArray(), high: box.max.toArray(), faces };
};
window.draw = async (views, side, fov, lamp, ground) => {
  const renderer = new THREE.WebGLRenderer({ antialias: false, preserveDrawingBuffer: true });
  renderer.setPixelRatio(1); renderer.setSize(side, side); renderer.setClearColor(ground, 1);
  const scene = new THREE.Scene(); scene.add(await load("glb"));
  if (lamp) {
    const light = new THREE.DirectionalLight(0xffffff, 2.2);
    light.position.set(...lamp); scene.add(light, new THREE.AmbientLight(0xffffff, 1.3));
  }
  const camera = new THREE.PerspectiveCamera(fov, 1, 0.01, 100);
  const pictures = [];
  for (const at of views) {
    camera.position.set(...at); camera.lookAt(0, 0, 0);
    renderer.render(scene, camera);
    pictures.push(renderer.domElement.toDataURL("image/png").split(",")[1]);
  }
  renderer.dispose();
  return pictures;
};
window.ready = true;
</script>"""
BLENDER = """
import bpy, json, sys, numpy
numpy.bool = getattr(numpy, "bool", bool)  # Blender 3.4 with a newer NumPy
from mathutils import Vector
job = json.loads(sys.argv[sys.argv.index("--") + 1])
for source in job["files"]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=source["path"])
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.samples, scene.cycles.pixel_filter_type = "CPU", 16, "BOX"
    scene.cycles.filter_width = 1.0
    scene.cycles.use_denoising = False
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.view_settings.view_transform = "Standard"
    scene.render.resolution_x = scene.render.resolution_y = job["side"]
    scene.render.film_transparent = True
    scene.render.image_settings.color_mode = "RGBA"
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.angle = job["fov"] * 3.14159265358979 / 180
    scene.collection.objects.link(camera)
    scene.camera = camera
    for at, out in zip(job["views"], source["out"]):
        camera.location = at
        camera.rotation_euler = (-Vector(at)).to_track_quat("-Z", "Y").to_euler()
        scene.render.filepath = out
        bpy.ops.render.render(write_still=True)
"""


def cameras_around(low: np.ndarray, high: np.ndarray) -> Camera:
    """The cameras of `VIEWS`, far enough to see a box `[3]`, `[3]` that is around the origin."""
    reach = float(np.linalg.norm(np.maximum(np.abs(low), np.abs(high))))
    distance = reach / np.sin(np.radians(FOV_DEG / 2))
    azimuths, elevations = zip(*VIEWS, strict=True)
    return orbit(list(azimuths), list(elevations), distance, FOV_DEG)


def our_pictures(path: Path) -> tuple[np.ndarray, Camera]:
    """An unlit GLB from the cameras, as we draw it: `[B, SIDE, SIDE, 3]` in [0, 1]."""
    mesh = read_mesh(path)
    cameras = cameras_around(mesh.vertices.min(0), mesh.vertices.max(0))
    rgb, _ = render_mesh(mesh, cameras, LARGE, LARGE, BACKGROUND, supersample=1)
    pooled = torch.nn.functional.avg_pool2d(rgb, LARGE // SIDE)
    return pooled.permute(0, 2, 3, 1).numpy(), cameras


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """PSNR in dB of two pictures in [0, 1]."""
    return float(-10.0 * np.log10(max(np.square(ours - theirs).mean(), 1e-10)))


def pooled(picture: Image.Image) -> np.ndarray:
    """A picture of LARGE pixels over white as `[SIDE, SIDE, 3]` in [0, 1]."""
    over = Image.new("RGBA", picture.size, "white")
    over.alpha_composite(picture.convert("RGBA"))
    values = np.asarray(over.convert("RGB"), np.float64) / 255.0
    step = picture.size[0] // SIDE
    return values.reshape(SIDE, step, SIDE, step, 3).mean((1, 3))


def lines_of(name: str, values: list[float]) -> list[str]:
    """A line if a picture is farther from ours than it may be."""
    return [f"{name}: PSNR {min(values):.1f} dB"] if min(values) < LEAST_PSNR else []


class Browser:
    """Headless Chromium with three.js; nothing leaves the machine.

    Args:
        modules: a node_modules folder with `three`.
    """

    def __init__(self, modules: Path) -> None:
        from playwright.sync_api import sync_playwright

        self.modules = modules
        self.driver = sync_playwright().start()
        self.chromium = self.driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"],
        )

    def close(self) -> None:
        """End the browser."""
        self.chromium.close()
        self.driver.stop()

    def page(self, files: dict[str, Path]) -> Any:
        """A page that finds `files` as /file.KIND."""
        page = self.chromium.new_page()

        def answer(route: Any) -> None:
            at = route.request.url.split("//", 1)[1].partition("/")[2]
            if not at:
                route.fulfill(body=PAGE, content_type="text/html")
            elif at.startswith("file."):
                route.fulfill(body=files[at[5:]].read_bytes())
            elif (self.modules / at).is_file():
                body = (self.modules / at).read_bytes()
                route.fulfill(body=body, content_type="text/javascript")
            else:
                route.fulfill(status=404)

        page.route("**/*", answer)
        page.goto("http://peer.invalid/")
        page.wait_for_function("window.ready === true")
        return page

    def boxes(self, files: dict[str, Path]) -> dict[str, dict]:
        """Box and number of faces of each file that three.js can read."""
        page = self.page(files)
        kinds = [kind for kind in READ_BY_BROWSER if kind in files]
        found = {kind: page.evaluate("kind => window.look(kind)", kind) for kind in kinds}
        page.close()
        return found

    def compare(self, unlit: Path) -> list[float]:
        """PSNR of its pictures of an unlit GLB against ours, dB, one for each of VIEWS."""
        ours, cameras = our_pictures(unlit)
        pictures = self.draw(unlit, cameras)
        return [psnr(a, pooled(b)) for a, b in zip(ours, pictures, strict=True)]

    def draw(
        self,
        path: Path,
        cameras: Camera,
        lamp: tuple[float, ...] | None = None,
        ground: int = 0xFFFFFF,
    ) -> list[Image.Image]:
        """Pictures of a GLB of LARGE pixels over a colour.

        `lamp` is the direction to a lamp in glTF's frame.
        """
        views = camera_position(cameras).numpy()[:, [1, 2, 0]].tolist()
        page = self.page({"glb": path})
        drawn = page.evaluate("all => window.draw(...all)", [views, LARGE, FOV_DEG, lamp, ground])
        page.close()
        return [Image.open(io.BytesIO(base64.b64decode(one))) for one in drawn]


def compare_blender(unlit: list[Path], work: Path) -> list[list[float]]:
    """PSNR of Blender's pictures (Cycles) of unlit GLB files against ours, dB, as `VIEWS`."""
    script, found = work / "blender_draw.py", []
    script.write_text(BLENDER)
    for number, path in enumerate(unlit):
        ours, cameras = our_pictures(path)
        at = camera_position(cameras).numpy()
        views = np.stack([at[:, 1], -at[:, 0], at[:, 2]], -1).tolist()  # our front is Blender's -y
        out = [str((work / f"blender_{number:02d}_{k}.png").resolve()) for k in range(len(views))]
        job = {"views": views, "side": SIDE, "fov": FOV_DEG}
        job["files"] = [{"path": str(path), "out": out}]
        words = ["blender", "-b", "-noaudio", "--python", str(script), "--", json.dumps(job)]
        subprocess.run(words, capture_output=True, timeout=600)
        pictures = [pooled(Image.open(name)) for name in out if Path(name).is_file()]
        pairs = zip(ours, pictures, strict=False)
        found.append([psnr(a, b) for a, b in pairs] if len(pictures) == len(views) else [0.0])
    return found
