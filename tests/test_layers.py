"""Imports inside vp3d point one way: a module may import only from layers above its own, or from its own layer.

The order is the one of the design; the first layer is what everybody may use (types, config, errors, files). `toybox` makes and
measures the embedded weights, so it may use the whole product, and nothing of the product may import it. `bench` measures the
product with it, and `cli`, the way in, which nothing imports, stands last: each verb imports what it runs.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vp3d"
FOUNDATION = {
    "types",
    "config",
    "errors",
    "strict",
    "threestudio_config",
    "run_folder",
    "manifest",
    "torch_compat",
}
FOUNDATION |= {"view_gate", "weights", "out_of_memory"}
ORDER = (
    FOUNDATION,
    {"prompts"},
    {"diffusion"},
    {"rewards"},
    {"cutout", "sheet", "visual_prompt"},
    {"guidance"},
    {"fields"},
    {"render"},
    {"train"},
    {"export"},
    {"evaluate"},
    {"console", "pipeline", "batch"},
    {"doctor", "fetch", "fetched", "download", "convert"},
    {"toybox"},
    {"bench"},
    {"cli"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stat().st_size > 0)


def dotted_name(path: Path) -> list[str]:
    """["render", "camera"] for vp3d/render/camera.py."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported_modules(source: str, module: list[str], is_package: bool = False) -> set[str]:
    """What `source` imports from below `vp3d`, dotted ("render.shade.AMBIENT"), wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = ["vp3d", *module][: len(module) + 1 - node.level + is_package] + base
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("vp3d.") for name in names if name.startswith("vp3d.")}
    return {name for name in found if not name.startswith("__")}


def violation(layer: str, target: str) -> str | None:
    """Why a module of `layer` may not import `target` (dotted), or None when it may."""
    top = target.split(".")[0]
    if top == layer or top in FOUNDATION:
        return None
    if layer not in RANK or top not in RANK:
        return f"{layer if layer not in RANK else top} has no place in the order of layers"
    return (
        None
        if RANK[top] <= RANK[layer]
        else f"{layer} may not import {target}, which lies below it"
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(dotted_name(path)) or "vp3d")
def test_imports_point_upward(path: Path) -> None:
    module = dotted_name(path)
    targets = imported_modules(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    own = module[0] if module else "types"
    faults = [fault for target in sorted(targets) if (fault := violation(own, target))]
    assert not faults, f"{path.name}: {'; '.join(faults)}"


def test_one_file_of_the_product_imports_diffusers() -> None:
    """`diffusion/prior.py` loads; `toybox/models.py` builds what is trained. Everything else is handed the networks."""
    users = set()
    for path in MODULES:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        if any(name.split(".")[0] == "diffusers" for name in names):
            users.add(".".join(dotted_name(path)))
    assert users == {"diffusion.prior", "toybox.models"}


def test_there_are_modules_to_check() -> None:
    assert {"types", "config"} <= {dotted_name(path)[0] for path in MODULES if dotted_name(path)}


def test_every_form_of_import_is_seen() -> None:
    source = (
        "import vp3d.train.loop\nfrom vp3d import guidance, __version__\nfrom vp3d.fields.grid import GridField\n"
        "def f():\n    from ..export import surface\n    from . import camera\n    import torch\n"
    )
    expected = {
        "train.loop",
        "guidance",
        "fields.grid.GridField",
        "export.surface",
        "render.camera",
    }
    assert imported_modules(source, ["render", "volume"]) == expected
    assert imported_modules("from .. import evaluate", ["render"], is_package=True) == {"evaluate"}


def test_the_rule_itself() -> None:
    assert violation("render", "fields.grid") is None and violation("render", "types.Rays") is None
    assert violation("fields", "render.camera") and violation("diffusion", "train.loop")
    assert (
        violation("toybox", "types") is None and violation("toybox", "render.shade.AMBIENT") is None
    )
    assert violation("toybox", "pipeline") is None and violation("render", "toybox.scenes")
    assert (
        violation("pipeline", "toybox.train")
        and violation("evaluate", "bench.runner")
        and violation("toybox", "bench.runner")
    )
    assert (
        violation("cli", "bench.command") is None
        and violation("bench", "cli")
        and violation("doctor", "cli")
    )
    assert violation("diffusion", "run_folder.atomic_write") is None and violation(
        "newcomer", "fields.grid"
    )
