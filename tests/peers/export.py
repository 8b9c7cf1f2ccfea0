"""`make peers-export`: other programs read what the export writes, and say what they think of it.

    python -m tests.peers.export MESH_OR_RUN... [--work FOLDER] [--modules NODE_MODULES]

Each mesh (or the model.glb of a run) is exported in every format; then the peers that are
installed check the files: the glTF validator, usd-core's validators, lib3mf in strict mode,
PrusaSlicer, assimp, Blender and a browser (headless Chromium with three.js). A peer that is missing
is skipped. The result is on stdout and a table in results.md of the work folder; the exit status is
1 if a peer found something.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.peers.pictures import READ_BY_BROWSER, Browser, compare_blender, lines_of
from vp3d.config.schema import ExportConfig
from vp3d.errors import UserError
from vp3d.export.draco import has_draco
from vp3d.export.foreign import remade
from vp3d.export.glb import write_glb
from vp3d.export.read import read_mesh
from vp3d.export.style import Style
from vp3d.finish import export_mesh_file, into_cube
from vp3d.runs.events import Watch
from vp3d.types import Asset

FORMATS = ["glb", "obj", "ply", "stl", "usdz", "3mf"]
SIZE_MM = 60.0
KINDS = ", ".join(kind.upper() for kind in READ_BY_BROWSER)
BLENDER = """
import bpy, json, sys, numpy
numpy.bool = getattr(numpy, "bool", bool)  # Blender 3.4 with a newer NumPy
from mathutils import Vector
for path in sys.argv[sys.argv.index("--") + 1:]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    kind = path.rsplit(".", 1)[1]
    if kind == "glb": bpy.ops.import_scene.gltf(filepath=path)
    elif kind == "obj": bpy.ops.wm.obj_import(filepath=path, forward_axis="Y", up_axis="Z")
    elif kind == "ply": bpy.ops.import_mesh.ply(filepath=path)
    elif kind == "stl": bpy.ops.import_mesh.stl(filepath=path)
    meshes = [o for o in bpy.data.objects if o.type == "MESH"]
    points = [o.matrix_world @ v.co for o in meshes for v in o.data.vertices]
    low = [min(p[k] for p in points) for k in range(3)]
    high = [max(p[k] for p in points) for k in range(3)]
    faces = sum(len(o.data.polygons) for o in meshes)
    print("FOUND " + json.dumps({"path": path, "low": low, "high": high, "faces": faces}))
"""
VALIDATOR = """
const v = require("gltf-validator"), fs = require("fs");
(async () => { for (const p of process.argv.slice(2)) {
  const r = await v.validateBytes(new Uint8Array(fs.readFileSync(p)));
  const i = r.issues; console.log("FOUND " + JSON.stringify({path: p,
    counts: [i.numErrors, i.numWarnings, i.numInfos, i.numHints],
    codes: [...new Set(i.messages.map(m => m.code + " " + m.message))].slice(0, 5)})); } })();
"""


def found(text: str) -> list[dict]:
    """The JSON objects of the lines that start with FOUND."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("FOUND ")]


def run(*command: object, cwd: Path | None = None, timeout: float = 600) -> str:
    """stdout and stderr of a command."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, cwd=cwd)
    return done.stdout + done.stderr


def exported(source: Path, work: Path, **settings: object) -> dict[str, Path]:
    """A mesh file exported into `work` with the settings of `export`."""
    work.mkdir(parents=True, exist_ok=True)
    copy = work / f"asset{source.suffix}"
    shutil.copyfile(source, copy)
    light = str(settings.pop("light", "kept"))
    config = ExportConfig(**{"faces": 0, **settings})
    return export_mesh_file(copy, config, Watch(), light)


def variants(source: Path, work: Path) -> Iterator[Path]:
    """A GLB for each combination of light, maps, compression, picture, colours and level."""
    mesh, _, _ = into_cube(read_mesh(source))
    few = max(len(mesh.faces) // 4, 8)
    levels = remade(mesh, ExportConfig(faces=few, texture_size=128, lods=[0.5]))
    colored = replace(levels[0], uv=None, texture=None, maps={}, tangents=None)
    plain = replace(colored, vertex_colors=None)
    shapes = {"level0": levels[0], "level1": levels[1], "colors": colored, "plain": plain}
    compressions = ["none", "quantize", *(["draco"] if has_draco() else [])]
    mapped = ((), ("normal",), ("occlusion",), ("normal", "occlusion"))
    choices = itertools.product((False, True), mapped, compressions, ("png", "webp"), shapes)
    work.mkdir(parents=True, exist_ok=True)
    for unlit, maps, compress, image, shape in choices:
        mesh = shapes[shape]
        if mesh.texture is None and (maps or image == "webp"):
            continue
        mesh = replace(mesh, maps={name: mesh.maps[name] for name in maps})
        light = "unlit" if unlit else "lit"
        path = work / f"{'-'.join((light, *maps, compress, image, shape))}.glb"
        extras = {"prompt": "a test", "seed": 1}
        write_glb(
            Asset("a test", mesh, work),
            path,
            Style(unlit=unlit, compress=compress, image=image, extras=extras),
        )
        yield path


def check_gltf(paths: list[Path], modules: Path) -> list[str]:
    """Issues of the glTF validator, each as a line."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "validate.cjs"
        script.write_text(VALIDATOR)
        (Path(folder) / "node_modules").symlink_to(modules.resolve())
        text = run("node", script, *paths)
    results = found(text)
    if len(results) != len(paths):
        return [f"validator: {text[-300:]}"]
    for r in results:  # the validator does not know Draco, and so not what its buffer view is for
        if "draco" in Path(r["path"]).name and r["counts"] == [0, 0, 2, 0]:
            r["counts"] = [0, 0, 0, 0]
    return [
        f"{Path(r['path']).name}: {r['counts']} {r['codes']}" for r in results if any(r["counts"])
    ]


def check_usdz(path: Path) -> list[str]:
    """Errors of every validator of usd-core."""
    from pxr import Usd, UsdValidation

    stage = Usd.Stage.Open(str(path))
    registry = UsdValidation.ValidationRegistry()
    context = UsdValidation.ValidationContext(registry.GetOrLoadAllValidators())
    return [f"{path.name}: {e.GetName()}: {e.GetMessage()}" for e in context.Validate(stage)]


def check_3mf(path: Path) -> list[str]:
    """Warnings of lib3mf in strict mode, and a mesh that is not manifold and oriented."""
    from lib3mf import get_wrapper

    model = get_wrapper().CreateModel()
    reader = model.QueryReader("3mf")
    reader.SetStrictModeActive(True)
    reader.ReadFromFile(str(path))
    lines = [reader.GetWarning(i)[1] for i in range(reader.GetWarningCount())]
    meshes = model.GetMeshObjects()
    while meshes.MoveNext():
        if not meshes.GetCurrentMeshObject().IsManifoldAndOriented():
            lines.append("not manifold and oriented")
    return [f"{path.name}: {line}" for line in lines]


def check_slicer(path: Path, size_mm: float, work: Path) -> list[str]:
    """PrusaSlicer's info, and whether it slices."""
    text = run("prusa-slicer", "--info", path)
    values = dict(re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE))
    lines = []
    sizes = [float(values.get(f"size_{axis}", "nan")) for axis in "xyz"]
    if not abs(max(sizes) - size_mm) <= 0.05:
        lines.append(f"size {sizes} instead of {size_mm}")
    if values.get("manifold") != "yes" or int(values.get("open_edges", "0")):
        lines.append(f"not manifold: {values}")
    code = work / f"{path.stem}.gcode"
    text = run("prusa-slicer", "--export-gcode", "--center", "100,100", "--output", code, path)
    if not code.is_file() or code.stat().st_size < 1000:
        lines.append(f"not sliced: {text[-200:]}")
    code.unlink(missing_ok=True)
    return [f"{path.parent.name}/{path.name}: {line}" for line in lines]


def compare_box(name: str, low: object, high: object, reference: np.ndarray) -> list[str]:
    """A line if a box differs from `reference [2, 3]` by more than 0.1 % of its longest side."""
    off = np.abs(np.array([low, high], float) - reference).max()
    longest = float((reference[1] - reference[0]).max())
    return [] if off <= 1e-3 * longest else [f"{name}: box off by {off / longest:.2%}"]


def boxes(files: dict[str, Path]) -> dict[str, np.ndarray]:
    """The boxes `[2, 3]` of the files by format, in our frame and the unit of each file."""
    meshes = {kind: read_mesh(path) for kind, path in files.items() if kind in FORMATS}
    return {k: np.stack([m.vertices.min(0), m.vertices.max(0)]) for k, m in meshes.items()}


def check_blender(files: dict[str, Path], work: Path) -> list[str]:
    """Box and number of faces, as Blender imports each format (it is z up, facing -y)."""
    script = work / "blender_read.py"
    script.write_text(BLENDER)
    kinds = ["glb", "obj", "stl"]  # Debian's has no USD
    text = run("blender", "-b", "-noaudio", "--python", script, "--", *(files[k] for k in kinds))
    results = {Path(r["path"]).suffix[1:]: r for r in found(text)}
    lines, ours = [], boxes(files)
    for kind in kinds:
        if kind not in results:
            lines.append(f"blender {kind}: not read: {text[-200:]}")
            continue
        low, high = ours[kind]
        if kind == "glb":  # our (x, y, z) is Blender's (y, -x, z) after Y up to Z up
            low, high = (low[1], -high[0], low[2]), (high[1], -low[0], high[2])
        r = results[kind]
        lines += compare_box(f"blender {kind}", r["low"], r["high"], np.stack([low, high]))
        if r["faces"] != len(read_mesh(files[kind]).faces):
            lines.append(f"blender {kind}: {r['faces']} faces")
    return lines


def check_assimp(files: dict[str, Path]) -> list[str]:
    """Box and number of faces, as assimp reads each format."""
    lines, ours = [], boxes(files)
    for kind in ("glb", "obj", "ply", "stl"):
        text = run("assimp", "info", files[kind])
        corners = [
            re.search(rf"{name} point\s+\(([^)]*)\)", text, re.I) for name in ("Minimum", "Maximum")
        ]
        faces = re.search(r"^Faces:\s+(\d+)", text, re.M)
        if None in corners or faces is None:
            lines.append(f"assimp {kind}: not read")
            continue
        low, high = ([float(v) for v in corner[1].split()] for corner in corners if corner)
        box = ours[kind][:, [1, 2, 0]] if kind == "glb" else ours[kind]
        lines += compare_box(f"assimp {kind}", low, high, box)
        if int(faces[1]) != len(read_mesh(files[kind]).faces):
            lines.append(f"assimp {kind}: {faces[1]} faces")
    return lines


def check_browser(files: dict[str, Path], browser: Browser) -> list[str]:
    """Box and number of faces, as three.js reads each format in a browser."""
    lines, ours = [], boxes(files)
    for kind, found in browser.boxes(files).items():
        box = ours[kind][:, [1, 2, 0]] if kind == "glb" else ours[kind]
        lines += compare_box(f"browser {kind}", found["low"], found["high"], box)
        if found["faces"] != len(read_mesh(files[kind]).faces):
            lines.append(f"browser {kind}: {found['faces']} faces")
    return lines


def check_sphere(work: Path) -> list[str]:
    """A sphere of 50 mm comes back within 0.3 % in every format."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.7)
    source = work / "ball.stl"
    source.parent.mkdir(parents=True, exist_ok=True)
    ball.export(source)
    files = exported(source, work / "sphere", formats=FORMATS, size_mm=50.0)
    lines = []
    for kind, path in files.items():
        unit = 1000.0 if kind in ("glb", "usdz") else 1.0
        sides = np.ptp(read_mesh(path).vertices, axis=0) * unit
        if np.abs(sides - 50.0).max() > 0.15:
            lines.append(f"sphere {kind}: {sides.tolist()} mm")
    return lines


@dataclass
class Finding:
    """What a peer said.

    Attributes:
        peer: Its name and what was given to it.
        lines: What it did not like.
        figure: A figure of the whole, for the table.
    """

    peer: str
    lines: list[str]
    figure: str = ""


@dataclass(frozen=True)
class Exports:
    """One mesh as it was exported.

    Attributes:
        folder: Its folder.
        plain: The files by format, without light.
        unlit: A GLB that keeps its colours and says that it is unlit.
        solid: The files for slicers, by format.
    """

    folder: Path
    plain: dict[str, Path]
    unlit: Path
    solid: dict[str, Path]


def export_all(meshes: list[Path], work: Path) -> list[Exports]:
    """Every mesh in every format, each in a folder of its own."""
    sets = []
    for number, mesh in enumerate(meshes):
        folder = work / f"{number:02d}"
        plain = exported(mesh, folder / "all", formats=FORMATS, light="removed")
        unlit = exported(mesh, folder / "unlit", formats=["glb"], light="baked")["glb"]
        settings = {"formats": ["stl", "3mf"], "print": True, "size_mm": SIZE_MM}
        sets.append(Exports(folder, plain, unlit, exported(mesh, folder / "print", **settings)))
    return sets


def installed(name: str) -> bool:
    """Whether a Python package is there."""
    return importlib.util.find_spec(name) is not None


def file_checks(sets: list[Exports], variants: list[Path], modules: Path) -> Iterator[Finding]:
    """Validators and the slicer."""
    if shutil.which("node") and (modules / "gltf-validator").is_dir():
        glbs = [*variants, *(s.plain["glb"] for s in sets), *(s.unlit for s in sets)]
        yield Finding(f"glTF validator, {len(glbs)} GLB", check_gltf(glbs, modules))
    if installed("pxr"):
        lines = sum((check_usdz(s.plain["usdz"]) for s in sets), [])
        yield Finding(f"usd-core, all validators, {len(sets)} USDZ", lines)
    if installed("lib3mf"):
        lines = sum((check_3mf(s.plain["3mf"]) + check_3mf(s.solid["3mf"]) for s in sets), [])
        yield Finding(f"lib3mf, strict, {2 * len(sets)} 3MF", lines)
    if shutil.which("prusa-slicer"):
        pairs = [(s.solid[kind], s.folder) for s in sets for kind in ("stl", "3mf")]
        lines = sum((check_slicer(path, SIZE_MM, folder) for path, folder in pairs), [])
        yield Finding(f"PrusaSlicer, {len(sets)} STL and {len(sets)} 3MF, {SIZE_MM:g} mm", lines)


def reader_checks(sets: list[Exports], work: Path, modules: Path) -> Iterator[Finding]:
    """Programs that read the files: box, faces and pictures."""
    if shutil.which("assimp"):
        lines = sum((check_assimp(s.plain) for s in sets), [])
        yield Finding(f"assimp, {len(sets)} each of GLB, OBJ, PLY, STL", lines)
    if shutil.which("blender"):
        lines = sum((check_blender(s.plain, s.folder) for s in sets), [])
        yield Finding(f"Blender, {len(sets)} each of GLB, OBJ, STL", lines)
        values = compare_blender([s.unlit for s in sets], work)
        lines = sum((lines_of(s.folder.name, v) for s, v in zip(sets, values, strict=True)), [])
        yield Finding(f"Blender, pictures of {len(sets)} GLB", lines, figure_of(values))
    if installed("playwright") and (modules / "three").is_dir():
        browser = Browser(modules)
        try:
            lines = sum((check_browser(s.plain, browser) for s in sets), [])
            yield Finding(f"Chromium with three.js, {len(sets)} each of {KINDS}", lines)
            values = [browser.compare(s.unlit) for s in sets]
        finally:
            browser.close()
        lines = sum((lines_of(s.folder.name, v) for s, v in zip(sets, values, strict=True)), [])
        yield Finding(f"Chromium, pictures of {len(sets)} GLB", lines, figure_of(values))


def figure_of(values: list[list[float]]) -> str:
    """The lowest and the median PSNR of all pictures."""
    every = np.concatenate([np.asarray(one) for one in values])
    return f"PSNR at least {every.min():.1f} dB, median {np.median(every):.1f} dB"


def table(findings: list[Finding]) -> str:
    """The findings as a Markdown table."""
    rows = [
        f"| {f.peer} | {f'{len(f.lines)}: {f.lines[0]}' if f.lines else 'none'} | {f.figure} |"
        for f in findings
    ]
    return "\n".join(["| peer, files | findings | figure |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Run every peer that is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("meshes", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--modules", type=Path, default=Path("node_modules"))
    options = parser.parse_args()
    meshes = [m / "model.glb" if m.is_dir() else m for m in options.meshes]
    work, modules = options.work.resolve(), options.modules.resolve()
    first = Finding("our reader, a sphere of 50 mm, 6 formats", check_sphere(work))
    sets = export_all(meshes, work)
    glbs = list(variants(meshes[0], work / "variants"))
    checks = (file_checks(sets, glbs, modules), reader_checks(sets, work, modules))
    findings: list[Finding] = []
    for finding in itertools.chain([first], *checks):
        findings.append(finding)
        state = f"{len(finding.lines)} findings" if finding.lines else "ok"
        sys.stdout.write(f"{finding.peer}: {state} {finding.figure}\n")
        sys.stdout.writelines(f"    {line}\n" for line in finding.lines[:10])
        sys.stdout.flush()
    (work / "results.md").write_text(table(findings))
    return int(any(finding.lines for finding in findings))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"peers: {error}")
