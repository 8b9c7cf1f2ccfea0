"""Build a `Config` from layers: defaults, preset, files, `key=value` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

from vp3d.config.addresses import check_address
from vp3d.config.paths import locate
from vp3d.config.reader import convert, merge
from vp3d.config.rules import check_rules
from vp3d.config.schema import Config
from vp3d.config.threestudio import read_layers

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


def load_config(
    preset: str | None = None,
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Config:
    """The defaults, changed by a preset, then by base, files, overrides and settings.

    Args:
        preset: a name of PRESETS; None takes the one that the other layers name, else `standard`.
        files: YAML files, later ones over earlier ones. A file may be one of threestudio (see
            vp3d/config/threestudio.py). A name such as "configs/sds.yaml" is found from any
            folder.
        overrides: texts as on the command line, such as `optim.steps=600`.
        base: settings below the files, groups as mappings: `{"optim": {"steps": 600}}`.
        settings: the same by keyword, above all others: `optim={"steps": 600}`.

    Returns:
        A new Config; nothing in it is shared. Its prompt may be empty.

    Raises:
        UserError: for an unknown key, a wrong type, a value out of range or a contradiction.

    Example:
        >>> config = load_config("draft", prompt="a red ball", optim={"steps": 60})
        >>> config.optim.steps, config.optim.views
        (60, 3)
    """
    for file in files:
        check_address(str(file), "config file")
    layers = read_layers([locate(str(file)) for file in files], list(overrides)).layers
    return build_config(preset, [dict(base or {}), *layers, settings])


def build_config(preset: str | None, layers: list[dict[str, Any]]) -> Config:
    """`load_config` for layers that are already read.

    Args:
        preset: as in `load_config`.
        layers: nested mappings of VP3D's keys, later ones over earlier ones.

    Returns:
        A new Config.
    """
    named = [layer["preset"] for layer in layers if "preset" in layer]
    wanted = preset or (named[-1] if named else "standard")
    chosen = convert(wanted, get_type_hints(Config)["preset"], "preset")
    config = Config()
    for layer in (PRESETS[chosen], *layers, {"preset": chosen}):
        merge(config, layer)
    check_rules(config)
    return config


def get_value(config: Config, key: str) -> Any:
    """The value of a dotted key, for example `optim.steps`."""
    return attrgetter(key)(config)
