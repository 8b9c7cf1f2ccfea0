"""The 3D viewer of the report: the stand-alone page that trimesh brings (three.js inside), told how to show our assets.

Nothing of it lies in this repository: the page is taken from the installed package when a report is written. It needs no
network. A second script, ours, sets sRGB output, light, ground, a slow turn until the viewer is touched, and a plain
sentence where the browser has no WebGL.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from trimesh.viewer.notebook import scene_to_html

DISTANCE, FOV_DEG = 3.3, 40.0  # of the first view, front left from above
AZIMUTH_DEG, ELEVATION_DEG = 30.0, 18.0

SCRIPT = """<script>
(function () {
  if (typeof renderer === "undefined" || !renderer) {
    document.body.innerHTML = "<p style='font:15px system-ui;color:#888;margin:2em'>" +
      "This browser has no WebGL; the file model.glb opens in any 3D program.</p>";
    return;
  }
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  function ground() { scene.background = new THREE.Color(dark.matches ? 0x24272b : 0xededed); }
  ground();
  dark.addEventListener("change", function () { ground(); render(); });
  renderer.outputEncoding = THREE.sRGBEncoding;
  tracklight.intensity = 0.28;
  scene.add(new THREE.AmbientLight(0xffffff, 0.78));
  var up = new THREE.Vector3(0, 1, 0), touched = still;
  ["pointerdown", "wheel", "keydown"].forEach(function (kind) {
    window.addEventListener(kind, function () { touched = true; }, true);
  });
  window.addEventListener("pointerdown", function () { if (controls) controls.noZoom = false; });
  document.addEventListener("mouseleave", function () { if (controls) controls.noZoom = true; });
  var ready = false, last = 0;
  (function turn(now) {
    requestAnimationFrame(turn);
    if (!controls || !camera) return;
    if (!ready) { ready = true; controls.noPan = true; controls.noZoom = true; controls.rotateSpeed = 2.5; render(); }
    if (!touched && last) camera.position.applyAxisAngle(up, Math.min(now - last, 100) * 0.0004);
    last = now;
  })(0);
})();
</script>"""


def viewer_page(glb: Path) -> str:
    """A whole HTML page, without any reference to the network, that shows the file `glb` and lets one turn it."""
    scene = trimesh.load_scene(glb)
    scene.camera = trimesh.scene.Camera(name="first", resolution=(800, 800), fov=(FOV_DEG, FOV_DEG))
    scene.camera_transform = first_view()
    page = scene_to_html(scene)
    return page.replace("</body>", SCRIPT + "</body>") if "</body>" in page else page + SCRIPT


def first_view() -> np.ndarray:
    """Camera-to-world matrix [4, 4] in glTF's frame (Y up, the asset faces +Z): looks at the origin along its own -z."""
    azimuth, elevation = np.deg2rad(AZIMUTH_DEG), np.deg2rad(ELEVATION_DEG)
    back = np.array(
        [
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
            np.cos(elevation) * np.cos(azimuth),
        ]
    )
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = (
        right,
        np.cross(back, right),
        back,
        DISTANCE * back,
    )
    return pose
