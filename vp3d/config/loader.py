"""Build a `Config` from layers: defaults, preset, files, then `key=value` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from vp3d.config.paths import locate
from vp3d.config.reader import convert, merge
from vp3d.config.schema import Config, GuidanceConfig, Schedule
from vp3d.config.threestudio import read_layers
from vp3d.errors import UserError

PRESETS: dict[str, dict[str, Any]] = {
    "draft": {
        "visual_prompt": {"candidates": 12, "steps": 10},
        "field": {"resolution": 40},
        "render": {"samples": 40},
        "optim": {"steps": 120, "views": 3},
        "export": {
            "grid": 72,
            "faces": 4000,
            "texture_size": 256,
            "turntable_frames": 24,
            "turntable_size": 128,
        },
    },
    "standard": {},
    "high": {
        "visual_prompt": {"candidates": 16, "steps": 50},
        "field": {"resolution": 64},
        "render": {"samples": 64},
        "optim": {"steps": 1200, "checkpoint_every": 100},
        "export": {
            "grid": 144,
            "faces": 20000,
            "texture_size": 1024,
            "turntable_frames": 96,
            "turntable_size": 256,
        },
    },
}

LEAST_FACES = 4  # triangles that close a surface
ORDERED = (  # pairs of which the first may not be above the second
    ("camera.elevation_min_deg", "camera.elevation_max_deg"),
    ("render.background_min", "render.background_max"),
    ("guidance.lam_gate.full_deg", "guidance.lam_gate.zero_deg"),
    ("rewards.text_image.begin", "rewards.text_image.finish"),
    ("rewards.text_image.gate.full_deg", "rewards.text_image.gate.zero_deg"),
    ("rewards.image_image.begin", "rewards.image_image.finish"),
    ("rewards.image_image.gate.full_deg", "rewards.image_image.gate.zero_deg"),
    ("rewards.aesthetic.begin", "rewards.aesthetic.finish"),
    ("rewards.aesthetic.gate.full_deg", "rewards.aesthetic.gate.zero_deg"),
)


def load_config(
    preset: str | None = None,
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Config:
    """Build a checked `Config`: defaults, then a preset, files, overrides and settings, each over the one before.

    Args:
        preset: "draft", "standard" or "high"; None takes the one that the layers name, else standard.
        files: YAML files of settings, ours or threestudio's (config/threestudio.py); a name such as
            "configs/sds.yaml" is found from any folder.
        overrides: settings as on the command line, "optim.steps=200".
        settings: the same by keyword, groups as mappings: `prompt="a red ball"`, `optim={"steps": 60}`.

    Returns:
        The config; `config.prompt` may still be empty.

    Raises:
        UserError: an unknown key (the message names the nearest), a wrong type, a value out of range.

    Example:
        >>> config = load_config("draft", prompt="a red ball", optim={"steps": 60})
        >>> config.optim.steps, config.optim.views
        (60, 3)
    """
    layers = read_layers([locate(str(file)) for file in files], list(overrides)).layers
    return build_config(preset, [*layers, settings])


def build_config(preset: str | None, layers: list[dict[str, Any]]) -> Config:
    """`load_config` of layers that are read: nested mappings of our keys, the later before the earlier."""
    named = [layer["preset"] for layer in layers if "preset" in layer]
    chosen = convert(
        preset or (named[-1] if named else "standard"), get_type_hints(Config)["preset"], "preset"
    )
    config = Config()
    for layer in (PRESETS[chosen], *layers, {"preset": chosen}):
        merge(config, layer)
    for low, high in ORDERED:
        if get_value(config, low) > get_value(config, high):
            found = (
                f"'{low}' ({get_value(config, low)}) is above '{high}' ({get_value(config, high)})"
            )
            raise UserError(f"config key {found}")
    if 0 < config.export.faces < LEAST_FACES:
        raise UserError(
            f"config key 'export.faces': {config.export.faces} close no surface; take {LEAST_FACES} or more, or 0"
        )
    check_noise_levels(config.guidance.t_min, config.guidance.t_max)
    return config


def idle_settings(config: Config) -> list[str]:
    """A line for each scale of the guidance that was changed and is not read in its mode."""
    other, names = (
        ("split", ("text_scale", "image_scale"))
        if config.guidance.mode == "joint"
        else ("joint", ("guidance_scale",))
    )
    changed = [
        name for name in names if getattr(config.guidance, name) != getattr(GuidanceConfig(), name)
    ]
    return [
        f"guidance.{name} changes nothing here: it is read with guidance.mode={other} alone"
        for name in changed
    ]


def check_noise_levels(low: Schedule, high: Schedule) -> None:
    """Refuse noise levels that cross anywhere in a run; both are linear between the places looked at."""
    corners = [0.0, 1.0, low.from_, low.to, high.from_, high.to]
    for progress in sorted({*corners, *(min(corner + 1.0e-9, 1.0) for corner in corners)}):
        if low.at(progress) > high.at(progress) + 1.0e-6:
            found = (
                f"{low.at(progress):g} is above {high.at(progress):g} at progress {progress:.2g}"
            )
            raise UserError(f"config key 'guidance.t_min' is above 'guidance.t_max': {found}")


def get_value(config: Config, key: str) -> Any:
    """The value of a dotted key, for example `optim.steps`."""
    node: Any = config
    for name in key.split("."):
        node = getattr(node, name)
    return node
