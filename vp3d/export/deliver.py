"""From finished meshes to files: light, size, origin, print, and a check of every file.

`prepare` decides what the files have in them; `Delivery.write` writes one and `Delivery.check`
reads it back and compares it with pictures of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vp3d.config.schema import ExportConfig
from vp3d.export.formats import WRITERS
from vp3d.export.frame import DEFAULT_SIZE_MM, Frame, frame_of
from vp3d.export.light import Light, fit_light, with_light, without_light
from vp3d.export.solid import Solid, print_ready
from vp3d.export.style import Style
from vp3d.export.verify import verify_export
from vp3d.types import Asset, Camera, Mesh

PRINTED = ("stl", "3mf")  # formats that a slicer reads
BAKED_WARNING = "the light stays in the colours (export.light=baked): {doubt}"


@dataclass(frozen=True)
class Views:
    """Pictures that files are compared with.

    Attributes:
        cameras: B cameras.
        rgb: `[B, 3, H, W]` in [0, 1].
        opacity: `[B, 1, H, W]` in [0, 1].
        background: Grey behind them, in [0, 1].
    """

    cameras: Camera
    rgb: Tensor
    opacity: Tensor
    background: float


@dataclass(frozen=True)
class Delivery:
    """What the files of one asset have in them.

    Attributes:
        prompt: Names it.
        levels: The mesh and its levels of detail, in world units, with the colours of the files.
        frame: Size, origin and axes.
        style: Names, material, compression.
        light: The light that was taken out; None if the colours are as they were.
        solid: The mesh for slicers, if it was asked for.
    """

    prompt: str
    levels: list[Mesh]
    frame: Frame
    style: Style
    light: Light | None
    solid: tuple[Solid, Frame] | None

    def write(self, kind: str, path: Path, level: int = 0) -> None:
        """Write a level in the format `kind`."""
        if self.solid is not None and kind in PRINTED:
            mesh, style = self.solid[0].mesh, replace(self.style, up="z")
        else:
            mesh, style = self.frame.placed(self.levels[level], kind), self.style
        WRITERS[kind](Asset(self.prompt, mesh, path.parent), path, style)

    def restored(self, mesh: Mesh, kind: str) -> Mesh:
        """A mesh that was read from a file, in world units and with the light it had."""
        if self.solid is not None and kind in PRINTED:
            solid, frame = self.solid
            vertices = mesh.vertices / solid.factor + [0.0, 0.0, solid.lowered]
            mesh = frame.restored(replace(mesh, vertices=vertices), "3mf")
        else:
            mesh = self.frame.restored(mesh, kind)
        return mesh if self.light is None else with_light(mesh, self.light)

    def check(self, kind: str, path: Path, views: Views) -> dict[str, float]:
        """`verify_export` of a file of the format `kind`."""
        return verify_export(
            path,
            views.cameras,
            views.rgb,
            views.opacity,
            views.background,
            restore=lambda mesh: self.restored(mesh, kind),
        )


def prepare(
    prompt: str,
    levels: Sequence[Mesh],
    config: ExportConfig,
    extras: Mapping[str, Any],
    event: Callable[..., None],
    light: str = "",
    frame: Frame | None = None,
) -> Delivery:
    """Decide light, size and origin, and make the mesh for slicers if it was asked for.

    Args:
        prompt: What the object is.
        levels: The mesh and its levels of detail, in world units.
        config: The export settings.
        extras: What the files say about their origin.
        event: Called as event(kind, **data): with "light" and "print" and their figures, and with
            "warning" if the light stays.
        light: "removed", "baked" or "kept" (as baked, but a viewer adds its light); "" as in
            `config`.
        frame: Where the mesh is put; None as in `config`.

    Raises:
        UserError: A package is missing, or the mesh cannot be printed.
    """
    mode = light or config.light
    found = fit_light(levels[0]) if mode == "removed" else None
    if found is not None:
        event("light", **found.figures())
        if found.doubt:
            event("warning", message=BAKED_WARNING.format(doubt=found.doubt))
            mode, found = "baked", None
    meshes = list(levels) if found is None else [without_light(m, found) for m in levels]
    frame = frame or frame_of(meshes[0], config.size_mm, config.size_axis, config.origin, config.up)
    style = Style(
        names=config.names,
        unlit=mode == "baked",
        compress=config.compress,
        image=config.image,
        colors=config.colors,
        up=config.up,
        extras={**extras, "light": mode},
    )
    solid = None
    if config.print:
        solid = printed(meshes[0], config)
        event("print", **solid[0].figures)
    return Delivery(prompt, meshes, frame, style, found, solid)


def printed(mesh: Mesh, config: ExportConfig) -> tuple[Solid, Frame]:
    """The mesh for slicers, and the frame that it was made in."""
    size = config.size_mm or DEFAULT_SIZE_MM
    frame = frame_of(mesh, size, config.size_axis, "bottom", "z")
    placed = frame.placed(mesh, "3mf")
    return print_ready(placed, config.print_base_mm, size, config.size_axis), frame


def level_path(path: Path, level: int) -> Path:
    """The file of a level of detail next to that of the mesh: model.glb -> model_lod1.glb."""
    return path.with_name(f"{path.stem}_lod{level}{path.suffix}") if level else path


def drop_old_levels(path: Path, count: int) -> None:
    """Remove the files of levels of detail above `count`, which an earlier export wrote."""
    for old in path.parent.glob(f"{path.stem}_lod*{path.suffix}"):
        number = old.stem.rpartition("_lod")[2]
        if number.isdecimal() and int(number) > count:
            old.unlink(missing_ok=True)
