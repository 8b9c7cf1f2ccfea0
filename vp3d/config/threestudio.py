"""Settings from a YAML file of threestudio (`dreamfusion-sd`, `magic3d-coarse-sd` and their like), as far as ours can say them.

`read_layers` knows such a file by its key `system` or `system_type`, so `--config FILE` needs no flag. Of its defaults only
those of its guidance are taken up (one step, the error in latents, `sigma2`, its range of t); every key that is not understood is
named in one line for its group. Written after threestudio 0.2.3.

What differs, and is converted:
* guidance_scale: theirs adds to the text branch, `e(y) + s (e(y) - e(0))`, which is our s + 1; with Perp-Neg it is our s.
* Loss weights: theirs stand beside an SDS loss summed over the latents of one view, ours beside a mean over them. So the
  regularisers' are divided by the number of those latents, which in threestudio is fixed by the guidance (`LATENTS`).
* Schedules: `[start_step, start, end, end_step]` in steps become shares of `trainer.max_steps`.
* Cameras: one distance and one field of view, the middle of their ranges. Ours stand outside the cube [-1, 1]^3: a nearer one
  steps back with a narrower view, so that the object keeps its size in the picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vp3d.config.migrations import migrate
from vp3d.config.reader import convert, parse_words, read_file, read_override
from vp3d.errors import UserError

SYSTEMS = ("dreamfusion-system", "magic3d-system")
OWN_GUIDANCE = "vp3d-guidance"  # of integrations/threestudio
LATENTS = {
    "stable-diffusion-guidance": 4 * 64 * 64,
    "deep-floyd-guidance": 3 * 64 * 64,
    OWN_GUIDANCE: 1,
}
WEIGHTINGS = {"sds": "sigma2", "uniform": "uniform"}
REGULARISERS = {
    "lambda_orient": "orientation",
    "lambda_sparsity": "sparsity",
    "lambda_opaque": "opacity",
}
REWARDS = {
    "lambda_text_image": "text_image",
    "lambda_image_image": "image_image",
    "lambda_aesthetic": "aesthetic",
}
GROUPS = (
    "data",
    "system",
    "trainer",
)  # first words of their keys that may be given as key=value too
TOP = "top level"  # name of the group of keys that stand in none
BERT = {"bert-base-uncased": "bert-base", "google-bert/bert-base-uncased": "bert-base"}
NEAREST, STEEPEST_DEG = 1.8, 89.0  # distance and elevation our cameras are held to
FOV_RANGE = [40.0, 70.0]  # threestudio's own where a file gives a distance and no field of view
REFERENCE = re.compile(r"\$\{\s*([\w.]+)\s*\}")

Layer = dict[str, Any]
Schedule = float | dict[str, float]


@dataclass
class Layers:
    """Settings in the order they apply, and lines that say what of threestudio's files was left out or changed."""

    layers: list[Layer]
    notes: list[str] = field(default_factory=list)


def read_layers(files: list[Path], overrides: list[str]) -> Layers:
    """The settings of YAML files, ours or threestudio's, then of key=value words, all with our keys.

    Words with a key of threestudio's (`system.prompt_processor.prompt=a chair`) change the last of its files.
    """
    trees = [read_file(path) for path in files]
    theirs = [place for place, tree in enumerate(trees) if is_threestudio(tree)]
    own = list(overrides)
    if theirs:
        own = [
            text
            for text in overrides
            if text.partition("=")[0].strip().partition(".")[0] not in GROUPS
        ]
        for text in overrides:
            if text not in own:
                _overlay(trees[theirs[-1]], read_override(text))
    found = Layers([])
    for place, (path, tree) in enumerate(zip(files, trees, strict=True)):
        if place in theirs:
            layers, notes = translate(tree, path.name)
            found.layers += layers
            found.notes += notes
        else:
            found.layers.append(migrate(tree))
    found.layers += [read_override(text) for text in own]
    return found


def is_threestudio(tree: Mapping[str, Any]) -> bool:
    """Whether a YAML file's tree is an experiment of threestudio's."""
    return "system" in tree or "system_type" in tree


def translate(tree: Layer, name: str) -> tuple[list[Layer], list[str]]:
    """The layers of one file of threestudio's, and the lines on what was left out or changed; `name` is the file's, for them."""
    source = _Source(tree, name)
    system = source.text("system_type")
    if system not in SYSTEMS:
        raise UserError(
            f"{name} is for threestudio's {system or 'system (no system_type)'}; known are {' and '.join(SYSTEMS)}"
        )
    if source.take("system.refinement", bool):
        raise UserError(
            f"{name} refines a mesh (system.refinement), which VP3D does not do; give the coarse stage's file"
        )
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
    return [*layers, layer], source.lines()


class _Source:
    """The tree of a file: hands out values, resolves `${a.b}`, and remembers what was read and what there is to say."""

    def __init__(self, tree: Layer, name: str) -> None:
        self.tree, self.name = tree, name
        self.read: set[str] = set()
        self.reasons: dict[str, str] = {}  # why a key is ignored, where that needs saying
        self.notes: dict[str, list[str]] = {}  # what else is said of a group

    def look(self, key: str) -> Any:
        """The value of a dotted key; None where there is none, or `???`."""
        value = self._at(key)
        seen = {key}
        while isinstance(value, str) and (match := REFERENCE.fullmatch(value)):
            if match[1] in seen:
                raise UserError(f"{self.name}: '{key}' refers to itself by {value}")
            seen.add(match[1])
            value = self._at(match[1])
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{self.name}: '{key}' is {value}; only whole references like ${{seed}} are read, so write it out"
            )
        return None if value == "???" else value

    def take(self, key: str, kind: Any) -> Any:
        """The value as `kind`, or None; it counts as read. What it must be is checked under threestudio's key."""
        value = self.look(key)
        self.read.add(key)
        return None if value is None else convert(value, kind, key)

    def text(self, key: str) -> str | None:
        """A text."""
        found: str | None = self.take(key, str)
        return found

    def pair(self, key: str) -> list[float] | None:
        """A range `[low, high]`."""
        found: list[float] | None = self.take(key, list[float])
        if found is not None and (len(found) != 2 or found[0] > found[1]):
            raise UserError(f"config key '{key}': {found} is not a range [low, high]")
        return found

    def schedule(self, key: str, steps: int | None) -> Schedule | None:
        """A number, or one of threestudio's lists as a `Schedule`'s fields; None, and a remark, where ours cannot say it."""
        value = self.look(key)
        if value is None:
            return None
        value = parse_words(value, key)
        if not isinstance(value, list):
            return float(self.take(key, float))
        found = read_schedule(value, steps, key)
        if isinstance(found, str):
            self.reasons[key] = f"{value}: {found}"
            return None
        self.read.add(key)
        return found

    def constant(self, key: str, steps: int | None) -> float | None:
        """As `schedule`, for what does not change in a run of ours."""
        found = self.schedule(key, steps)
        if not isinstance(found, dict):
            return found
        self.read.discard(key)
        self.reasons[key] = "a schedule, ours is a number"
        return None

    def note(self, group: str, text: str) -> None:
        """Say `text` in the line of a group."""
        self.notes.setdefault(group, []).append(text)

    def lines(self) -> list[str]:
        """One line for each group of which something was left out or changed."""
        ignored: dict[str, list[str]] = {group: [] for group in self.notes}
        for key in _leaves(self.tree):
            if key in self.read or any(key.startswith(f"{read}.") for read in self.read):
                continue
            group = group_of(key)
            name = key.removeprefix(f"{group}.").partition(".")[0]
            name += f" ({self.reasons[key]})" if key in self.reasons else ""
            names = ignored.setdefault(group, [])
            names += [] if name in names else [name]
        lines = []
        for group, names in ignored.items():
            parts = ([f"ignored {', '.join(names)}"] if names else []) + self.notes.get(group, [])
            lines.append(f"{self.name} (threestudio), {group}: {'; '.join(parts)}")
        return lines

    def _at(self, key: str) -> Any:
        node: Any = self.tree
        for part in key.split("."):
            if node is not None and not isinstance(node, Mapping):
                raise UserError(
                    f"{self.name}: '{key.rpartition('.')[0]}' is {node!r}, not a group of keys"
                )
            node = None if node is None else node.get(part)
        return node


def group_of(key: str) -> str:
    """The group a key is told in: "data", "system.guidance", ..., and "system" for a single key of the system."""
    parts = key.split(".")
    return (
        TOP
        if len(parts) == 1
        else ".".join(parts[:2] if parts[0] == "system" and len(parts) > 2 else parts[:1])
    )


def read_schedule(value: list[Any], steps: int | None, key: str) -> Schedule | str:
    """One of threestudio's lists as a number or the fields of a `Schedule`; a text says why it cannot be.

    `[start, end, end_step]`, `[start_step, start, end, end_step]`, or that with more `value, step` pairs behind it.
    """
    numbers = [
        float(number) for number in value if type(number) in (int, float) and math.isfinite(number)
    ]
    whole = [0, *value] if len(value) == 3 else value
    if len(numbers) != len(value) or len(whole) < 4 or len(whole) % 2:
        raise UserError(
            f"config key '{key}': {value} is not a number or [start_step, start, end, end_step]"
        )
    ends = whole[3::2]
    if any(type(end) is float for end in ends):
        return "a step with a decimal point counts epochs, of which there is one"
    points = [(float(whole[0]), float(whole[1]))]
    points += [(float(step), float(level)) for level, step in zip(whole[2::2], ends, strict=True)]
    if any(later[0] <= earlier[0] for earlier, later in zip(points, points[1:], strict=False)):
        raise UserError(f"config key '{key}': the steps of {value} do not grow")
    while len(points) > 1 and points[0][1] == points[1][1]:
        points.pop(0)
    while len(points) > 1 and points[-1][1] == points[-2][1]:
        points.pop()
    if len(points) == 1:
        return points[0][1]
    if len(points) > 2:
        return "more than one slope"
    if not steps:
        return "in steps, and the file has no trainer.max_steps"
    (first, start), (last, end) = points
    if first < 0:
        return "begins before the run"
    if first >= steps:
        return start
    if last > steps:
        last, end = steps, start + (end - start) * (steps - first) / (last - first)
    return {"start": start, "end": end, "from_": first / steps, "to": last / steps}


def _own_settings(source: _Source) -> list[Layer]:
    """What our own guidance for threestudio holds (`integrations/threestudio`): a file of ours, and our keys over it."""
    if source.look("system.guidance_type") != OWN_GUIDANCE:
        return []
    layers = []
    place = source.text("system.guidance.vp3d_file")
    if place:
        from vp3d.config.paths import locate  # config imports this module

        layers.append(read_file(locate(place)))
    source.read |= {"system.guidance.max_steps", "system.guidance.vp3d"}
    settings = source.look("system.guidance.vp3d")
    if settings is not None:
        if not isinstance(settings, Mapping):
            raise UserError(
                f"config key 'system.guidance.vp3d': {settings!r} is not a group of VP3D's keys"
            )
        layers.append(_resolved(source, settings, "system.guidance.vp3d"))
    return layers


def _resolved(source: _Source, node: Mapping[str, Any], prefix: str) -> Layer:
    """A group without `${...}` and `???`."""
    found = {}
    for name in node:
        value = source.look(f"{prefix}.{name}")
        if value is not None:
            found[name] = (
                _resolved(source, value, f"{prefix}.{name}")
                if isinstance(value, Mapping)
                else value
            )
    return found


def _read_prompt(source: _Source, layer: Layer) -> None:
    prompt = source.text("system.prompt_processor.prompt")
    if prompt is not None and prompt.startswith("lib:"):
        raise UserError(
            f"{source.name}: the prompt '{prompt}' is a look-up in threestudio's library; write the prompt out"
        )
    _put(layer, "prompt", prompt)
    _put(layer, "negative_prompt", source.text("system.prompt_processor.negative_prompt"))
    if source.take("system.prompt_processor.use_perp_neg", bool):
        _put(layer, "guidance.perp_neg", 1.0)
    model = (
        source.text("system.prompt_processor.pretrained_model_name_or_path_prompt_debiasing")
        or "bert-base-uncased"
    )
    if source.take("system.prompt_processor.use_prompt_debiasing", bool):
        _put(layer, "guidance.debias", BERT.get(model, model))


def _read_guidance(source: _Source, layer: Layer, steps: int | None) -> None:
    kind = source.text("system.guidance_type")
    place = "system.guidance"
    model = source.look(f"{place}.pretrained_model_name_or_path")
    if model is not None:
        source.reasons[f"{place}.pretrained_model_name_or_path"] = (
            f"{model}: see prior.path, or add --config configs/sd15.yaml"
        )
    if kind is not None and kind not in LATENTS:
        source.note("system", f"guidance_type {kind} is not known, only {', '.join(LATENTS)}")
    elif kind != OWN_GUIDANCE:
        scale = source.take(f"{place}.guidance_scale", float)
        if scale is not None:
            ours = scale + (0.0 if layer.get("guidance", {}).get("perp_neg") else 1.0)
            _put(layer, "guidance.guidance_scale", ours)
            source.note(place, f"guidance_scale {scale:g} is {ours:g} here")
        weighting = source.look(f"{place}.weighting_strategy")
        if weighting in WEIGHTINGS:
            _put(
                layer,
                "guidance.weighting",
                WEIGHTINGS[source.text(f"{place}.weighting_strategy") or ""],
            )
        for theirs, mine, usual in (
            ("min_step_percent", "t_min", 0.02),
            ("max_step_percent", "t_max", 0.98),
        ):
            found = source.schedule(f"{place}.{theirs}", steps)
            _put(layer, f"guidance.{mine}", usual if found is None and kind else found)
        if kind:
            _put(layer, "guidance.denoise_steps", 1)
            _put(layer, "guidance.weight", 1.0)
            _put(layer, "guidance.space", "latents")
            _put(layer, "guidance.estimate_every", 1)
            _put(layer, "guidance.weighting", layer.get("guidance", {}).get("weighting", "sigma2"))


def _read_weights(source: _Source, layer: Layer, steps: int | None) -> None:
    place = "system.loss"
    _put(layer, "guidance.weight", source.constant(f"{place}.lambda_sds", steps))
    elements = LATENTS.get(
        source.text("system.guidance_type") or "", LATENTS["stable-diffusion-guidance"]
    )
    scaled = []
    for theirs, mine in REGULARISERS.items():
        weight = source.schedule(f"{place}.{theirs}", steps)
        if isinstance(weight, dict):
            weight |= {end: weight[end] / elements for end in ("start", "end")}
        elif weight is not None:
            weight /= elements
        if weight is not None and elements != 1:
            scaled.append(theirs)
        _put(layer, f"loss.{mine}", weight)
    if scaled:
        source.note(
            place,
            f"{', '.join(scaled)} divided by {elements}: the SDS loss is a mean here, there a sum",
        )
    for theirs, mine in REWARDS.items():
        _put(layer, f"rewards.{mine}.weight", source.constant(f"{place}.{theirs}", steps))


def _read_cameras(source: _Source, layer: Layer) -> None:
    elevation = source.pair("data.elevation_range")
    if elevation is not None:
        held = [min(max(angle, -STEEPEST_DEG), STEEPEST_DEG) for angle in elevation]
        if held != elevation:
            source.note("data", f"elevation_range held to {held[0]:g} to {held[1]:g} degrees")
        layer.setdefault("camera", {}).update(elevation_min_deg=held[0], elevation_max_deg=held[1])
    fov, distance = source.pair("data.fovy_range"), source.pair("data.camera_distance_range")
    if distance is not None:
        middle, angle = sum(distance) / 2.0, sum(fov or FOV_RANGE) / 2.0
        placed = max(middle, NEAREST)
        narrowed = math.degrees(
            2.0 * math.atan(middle * math.tan(math.radians(angle) / 2.0) / placed)
        )
        layer.setdefault("camera", {}).update(distance=placed, fov_deg=narrowed)
        source.note(
            "data",
            f"every camera at distance {placed:g} with a field of view of {narrowed:.3g} degrees",
        )
    elif fov is not None:
        layer.setdefault("camera", {})["fov_deg"] = sum(fov) / 2.0
        source.note("data", f"every camera with a field of view of {sum(fov) / 2.0:.3g} degrees")
    sizes = {
        side: parse_words(source.look(f"data.{side}"), f"data.{side}")
        for side in ("width", "height")
    }
    if sizes["width"] == sizes["height"] and not isinstance(sizes["width"], list):
        _put(layer, "render.resolution", source.take("data.width", int))
        source.take("data.height", int)
    else:
        source.note("data", "width and height stay ours: one square resolution in a run")
    if not isinstance(parse_words(source.look("data.batch_size"), "data.batch_size"), list):
        _put(layer, "optim.views", source.take("data.batch_size", int))


def _put(layer: Layer, key: str, value: Any) -> None:
    """Set a dotted key, unless there is no value for it."""
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


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of all values that are no groups."""
    found = []
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        found += _leaves(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return found
