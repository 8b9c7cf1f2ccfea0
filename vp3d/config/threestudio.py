"""Settings from a YAML file of threestudio, such as `dreamfusion-sd` or `magic3d-coarse-sd`.

`read_layers` recognises such a file by its key `system` or `system_type`, so that `--config FILE`
needs no flag. A key that such a file leaves out has threestudio's default (`DEFAULTS`), not that
of VP3D. Every key that is not understood, and every default that is used, is named in one line for
its group. Written for threestudio 0.2.3, defaults after commit 28d9d80 of its repository.

These settings differ and are converted:

* guidance_scale: threestudio adds to the text branch, `e(y) + s (e(y) - e(0))`, which is s + 1
  here; with Perp-Neg it is s in both.
* Loss weights: in threestudio the SDS loss is a sum over the latents of one view, here a mean. The
  weights of the regularisers are therefore divided by the number of those latents, which the
  guidance of threestudio fixes (`LATENTS`).
* Schedules: `[start_step, start, end, end_step]` in steps become shares of `trainer.max_steps`.
* Cameras: one distance and one field of view, the middle of their ranges. Cameras of VP3D are
  outside the cube [-1, 1]^3: a nearer camera is moved back and its view narrowed, so that the
  object keeps its size in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vp3d.config.migrations import migrate
from vp3d.config.paths import locate
from vp3d.config.reader import parse_typed, read_override, read_stack
from vp3d.config.threestudio_file import Layer, ThreestudioFile
from vp3d.errors import UserError

SYSTEMS = ("dreamfusion-system", "magic3d-system")
OWN_GUIDANCE = "vp3d-guidance"  # of integrations/threestudio
LATENTS = {  # guidance -> numbers in the latents of one view
    "stable-diffusion-guidance": 4 * 64 * 64,
    "deep-floyd-guidance": 3 * 64 * 64,
    OWN_GUIDANCE: 1,
}
WEIGHTINGS = {"sds": "sigma2", "uniform": "uniform"}  # threestudio's name -> ours
REGULARISERS = {  # key of system.loss -> key of loss
    "lambda_orient": "orientation",
    "lambda_sparsity": "sparsity",
    "lambda_opaque": "opacity",
}
REWARDS = {  # key of system.loss -> key of rewards
    "lambda_text_image": "text_image",
    "lambda_image_image": "image_image",
    "lambda_aesthetic": "aesthetic",
}
NOISE_LEVELS = {  # key of system.guidance -> (key of guidance, threestudio's default)
    "min_step_percent": ("t_min", 0.02),
    "max_step_percent": ("t_max", 0.98),
}
# The defaults of threestudio for keys that are translated, by the key and value of the file that
# chooses the class they belong to. Keys of system.loss and trainer.max_steps have none: threestudio
# stops without them, and a run without steps has VP3D's number.
DEFAULTS: dict[tuple[str, str], Layer] = {
    ("system.guidance_type", "stable-diffusion-guidance"): {
        "system.guidance.guidance_scale": 100.0,
        "system.guidance.min_step_percent": 0.02,
        "system.guidance.max_step_percent": 0.98,
        "system.guidance.weighting_strategy": "sds",
    },
    ("system.guidance_type", "deep-floyd-guidance"): {
        "system.guidance.guidance_scale": 20.0,
        "system.guidance.min_step_percent": 0.02,
        "system.guidance.max_step_percent": 0.98,
        "system.guidance.weighting_strategy": "sds",
    },
    ("data_type", "random-camera-datamodule"): {
        "data.width": 64,
        "data.height": 64,
        "data.batch_size": 1,
        "data.elevation_range": [-10, 90],
        "data.camera_distance_range": [1, 1.5],
        "data.fovy_range": [40, 70],
    },
    ("system.geometry_type", "implicit-volume"): {"system.geometry.isosurface_resolution": 128},
    ("system.geometry_type", "volume-grid"): {"system.geometry.isosurface_resolution": 128},
    ("system.geometry_type", "implicit-sdf"): {"system.geometry.isosurface_resolution": 128},
}
OVERRIDE_GROUPS = ("data", "system", "trainer")  # groups whose keys may be given as key=value
BERT = {"bert-base-uncased": "bert-base", "google-bert/bert-base-uncased": "bert-base"}
MIN_DISTANCE = 1.8  # smallest distance of a camera in VP3D
MAX_ELEVATION_DEG = 89.0  # largest elevation of a camera in VP3D
# threestudio's default, for a file with a distance but no field of view
DEFAULT_FOV_RANGE = [40.0, 70.0]


@dataclass
class Layers:
    """Settings in the order they apply, and lines on what was ignored or converted."""

    layers: list[Layer]
    notes: list[str] = field(default_factory=list)


def read_layers(files: list[Path], overrides: list[str]) -> Layers:
    """The settings of YAML files, then of key=value overrides, all with the keys of VP3D.

    Args:
        files: files of VP3D, which may extend others, or of threestudio. A pipe will do: each file
            is read once.
        overrides: key=value texts. One with a key of threestudio, for example
            `system.prompt_processor.prompt=a chair`, changes the last file of threestudio.
    """
    stacks = [read_stack(path) for path in files]
    theirs = [stack[-1] for stack in stacks if is_threestudio(stack[-1])]
    own = []
    for text in overrides:
        group = text.partition("=")[0].strip().partition(".")[0]
        if theirs and group in OVERRIDE_GROUPS:
            _overlay(theirs[-1], read_override(text))
        else:
            own.append(text)
    found = Layers([])
    for path, (*below, tree) in zip(files, stacks, strict=True):
        if any(map(is_threestudio, below)):
            raise UserError(f"{path.name} extends a file of threestudio; give both with --config")
        found.layers += map(migrate, below)
        if is_threestudio(tree):
            layers, notes = translate(tree, path.name)
            found.layers += layers
            found.notes += notes
        else:
            found.layers.append(migrate(tree))
    found.layers += [read_override(text) for text in own]
    return found


def is_threestudio(tree: Mapping[str, Any]) -> bool:
    """Whether the tree of a YAML file is an experiment of threestudio."""
    return "system" in tree or "system_type" in tree


def translate(tree: Layer, name: str) -> tuple[list[Layer], list[str]]:
    """The layers of one file of threestudio, and the lines on what was ignored or converted.

    Args:
        tree: the content of the file.
        name: its name, for messages.
    """
    source = ThreestudioFile(tree, name)
    system = source.text("system_type")
    if system not in SYSTEMS:
        raise UserError(
            f"{name} is for threestudio's {system or 'system (no system_type)'}; "
            f"known are {' and '.join(SYSTEMS)}"
        )
    if source.take("system.refinement", bool):
        raise UserError(
            f"{name} refines a mesh (system.refinement), which VP3D does not do; "
            "give the file of the coarse stage"
        )
    _add_defaults(source)
    layers = _own_settings(source)
    layer: Layer = {}
    steps = source.take("trainer.max_steps", int)
    for key, value in (
        ("seed", source.take("seed", int)),
        ("output_dir", source.text("exp_root_dir")),
        ("optim.steps", steps),
        ("export.grid", source.take("system.geometry.isosurface_resolution", int)),
    ):
        _put(layer, key, value)
    _read_prompt(source, layer)
    _read_guidance(source, layer, steps)
    _read_weights(source, layer, steps)
    _read_cameras(source, layer)
    _read_views(source, layer)
    return [*layers, layer], source.lines()


def _add_defaults(source: ThreestudioFile) -> None:
    """Set the keys that the file leaves out to threestudio's defaults; a note says which.

    Both systems take their cameras from `random-camera-datamodule`, so a file with a group `data`
    needs no `data_type`.
    """
    chosen = {key: source.find(key) for key, _ in DEFAULTS}
    if chosen["data_type"] is None and source.find("data"):
        chosen["data_type"] = "random-camera-datamodule"
    for (key, value), defaults in DEFAULTS.items():
        if chosen[key] == value:
            source.add_defaults(defaults)


def _own_settings(source: ThreestudioFile) -> list[Layer]:
    """The settings of `vp3d-guidance` (integrations/threestudio): a file of VP3D, then keys."""
    if source.find("system.guidance_type") != OWN_GUIDANCE:
        return []
    layers = []
    file = source.text("system.guidance.vp3d_file")
    if file:
        layers += read_stack(locate(file))
    key = "system.guidance.vp3d"
    source.read |= {"system.guidance.max_steps", key}
    settings = source.find(key)
    if settings is not None:
        if not isinstance(settings, Mapping):
            raise UserError(f"config key '{key}': {settings!r} is not a group of VP3D's keys")
        layers.append(source.resolved(settings, key))
    return layers


def _read_prompt(source: ThreestudioFile, layer: Layer) -> None:
    """The prompts, Perp-Neg and prompt debiasing."""
    group = "system.prompt_processor"
    prompt = source.text(f"{group}.prompt")
    if prompt is not None and prompt.startswith("lib:"):
        raise UserError(
            f"{source.name}: the prompt '{prompt}' is a name in threestudio's prompt library; "
            "write the prompt out"
        )
    _put(layer, "prompt", prompt)
    _put(layer, "negative_prompt", source.text(f"{group}.negative_prompt"))
    if source.take(f"{group}.use_perp_neg", bool):
        _put(layer, "guidance.perp_neg", 1.0)
    model = source.text(f"{group}.pretrained_model_name_or_path_prompt_debiasing")
    model = model or "bert-base-uncased"
    if source.take(f"{group}.use_prompt_debiasing", bool):
        _put(layer, "guidance.debias", BERT.get(model, model))


def _read_guidance(source: ThreestudioFile, layer: Layer, steps: int | None) -> None:
    """The settings of SDS, unless the guidance is VP3D's own or not known."""
    kind = source.text("system.guidance_type")
    group = "system.guidance"
    model = source.find(f"{group}.pretrained_model_name_or_path")
    if model is not None:
        source.reasons[f"{group}.pretrained_model_name_or_path"] = (
            f"{model}: see prior.path, or add --config configs/sd15.yaml"
        )
    if kind is not None and kind not in LATENTS:
        source.note("system", f"guidance_type {kind} is not known, only {', '.join(LATENTS)}")
    elif kind != OWN_GUIDANCE:
        _read_sds(source, layer, steps, is_named=kind is not None)


def _read_sds(source: ThreestudioFile, layer: Layer, steps: int | None, is_named: bool) -> None:
    """The guidance scale, the weighting and the noise levels; plain SDS if the guidance is named.

    Args:
        source: the file.
        layer: the settings so far; changed in place. It has `guidance.perp_neg` if that is used.
        steps: steps of the run; None if the file does not say.
        is_named: whether the file names its guidance, whose defaults then apply.
    """
    group = "system.guidance"
    scale = source.take(f"{group}.guidance_scale", float)
    if scale is not None:
        own_scale = scale + (0.0 if layer.get("guidance", {}).get("perp_neg") else 1.0)
        _put(layer, "guidance.guidance_scale", own_scale)
        source.note(group, f"guidance_scale {scale:g} is {own_scale:g} here")
    weighting = "sigma2" if is_named else None
    if str(source.find(f"{group}.weighting_strategy")) in WEIGHTINGS:
        weighting = WEIGHTINGS[source.text(f"{group}.weighting_strategy") or ""]
    _put(layer, "guidance.weighting", weighting)
    for theirs, (ours, default) in NOISE_LEVELS.items():
        found = source.schedule(f"{group}.{theirs}", steps)
        _put(layer, f"guidance.{ours}", default if found is None and is_named else found)
    if is_named:
        _put(layer, "guidance.denoise_steps", 1)
        _put(layer, "guidance.weight", 1.0)
        _put(layer, "guidance.space", "latents")
        _put(layer, "guidance.estimate_every", 1)


def _read_weights(source: ThreestudioFile, layer: Layer, steps: int | None) -> None:
    """The weights of the guidance, the regularisers and the rewards."""
    group = "system.loss"
    _put(layer, "guidance.weight", source.constant(f"{group}.lambda_sds", steps))
    kind = source.text("system.guidance_type") or ""
    latents = LATENTS.get(kind, LATENTS["stable-diffusion-guidance"])
    scaled = []
    for theirs, ours in REGULARISERS.items():
        weight = source.schedule(f"{group}.{theirs}", steps)
        if isinstance(weight, dict):
            weight |= {end: weight[end] / latents for end in ("start", "end")}
        elif weight is not None:
            weight /= latents
        if weight is not None and latents != 1:
            scaled.append(theirs)
        _put(layer, f"loss.{ours}", weight)
    _put(layer, "loss.fog", 0.0)  # threestudio has no such term
    if scaled:
        names = ", ".join(scaled)
        source.note(
            group, f"{names} divided by {latents}: the SDS loss is a mean here, a sum there"
        )
    for theirs, ours in REWARDS.items():
        _put(layer, f"rewards.{ours}.weight", source.constant(f"{group}.{theirs}", steps))


def _read_cameras(source: ThreestudioFile, layer: Layer) -> None:
    """Elevations, distance and field of view."""
    elevation = source.pair("data.elevation_range")
    if elevation is not None:
        limited = [min(max(angle, -MAX_ELEVATION_DEG), MAX_ELEVATION_DEG) for angle in elevation]
        if limited != elevation:
            source.note(
                "data", f"elevation_range limited to {limited[0]:g} to {limited[1]:g} degrees"
            )
        _put(layer, "camera.elevation_min_deg", limited[0])
        _put(layer, "camera.elevation_max_deg", limited[1])
    fov, distance = source.pair("data.fovy_range"), source.pair("data.camera_distance_range")
    if distance is not None:
        middle, angle = sum(distance) / 2.0, sum(fov or DEFAULT_FOV_RANGE) / 2.0
        moved = max(middle, MIN_DISTANCE)
        half = math.atan(middle * math.tan(math.radians(angle) / 2.0) / moved)
        narrowed = math.degrees(2.0 * half)
        _put(layer, "camera.distance", moved)
        _put(layer, "camera.fov_deg", narrowed)
        source.note(
            "data",
            f"every camera at distance {moved:g} with a field of view of {narrowed:.3g} degrees",
        )
    elif fov is not None:
        _put(layer, "camera.fov_deg", sum(fov) / 2.0)
        source.note("data", f"every camera with a field of view of {sum(fov) / 2.0:.3g} degrees")


def _read_views(source: ThreestudioFile, layer: Layer) -> None:
    """The size and the number of the views; a size that is not square or changes is ignored."""
    width, height, views = (
        parse_typed(source.find(key), key)
        for key in ("data.width", "data.height", "data.batch_size")
    )
    if width == height and not isinstance(width, list):
        _put(layer, "render.resolution", source.take("data.width", int))
        source.take("data.height", int)
    else:
        source.note("data", "width and height are not used: a run has one square resolution")
    if not isinstance(views, list):
        _put(layer, "optim.views", source.take("data.batch_size", int))


def _put(layer: Layer, key: str, value: Any) -> None:
    """Set a dotted key; a value of None sets nothing."""
    if value is None:
        return
    *groups, name = key.split(".")
    for group in groups:
        layer = layer.setdefault(group, {})
    layer[name] = value


def _overlay(tree: Layer, changes: Mapping[str, Any]) -> None:
    """Change `tree` in place by the nested `changes`."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(name), Mapping):
            _overlay(tree[name], value)
        else:
            tree[name] = value
