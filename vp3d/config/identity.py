"""Which settings a stage's result depends on, and which of two configs differ in them.

A checkpoint stores the settings of its own stage. A setting of another stage, of the export or of
the machine may change between stop and resume; so may the set of keys that VP3D knows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vp3d.config.schema import Config

OF_COARSE = (
    *("prompt", "negative_prompt", "image", "mask", "seed", "prior", "visual_prompt"),
    *("guidance", "rewards", "field", "camera", "render", "loss", "optim"),
)
STAGE_SETTINGS = {  # stage -> the keys of `Config` that its result depends on
    "coarse": OF_COARSE,
    "refine": (*OF_COARSE, "refine"),
}
NOT_HASHED_IN_VERSION_1 = ("export", "output_dir", "preset", "backend", "cuda")


def stage_settings(config: Config, stage: str) -> dict[str, Any]:
    """The settings that `stage` depends on, as nested mappings."""
    tree = dataclasses.asdict(config)
    return {key: tree[key] for key in STAGE_SETTINGS[stage]}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 (first 16 hexadecimal digits) of nested settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def version_1_hash(tree: Mapping[str, Any]) -> str:
    """The hash that checkpoints of config version 1 hold: of the whole config as it was stored.

    Args:
        tree: the content of the run's config.yaml, not migrated.
    """
    return settings_hash(
        {key: value for key, value in tree.items() if key not in NOT_HASHED_IN_VERSION_1}
    )


def changed_settings(
    stored: Mapping[str, Any], current: Mapping[str, Any], default: Mapping[str, Any]
) -> list[str]:
    """The dotted keys whose value in `current` is not the one a checkpoint was made with.

    A key that `stored` lacks was added since: the checkpoint was made with what is now its default.
    A key that `current` lacks was removed since and counts for nothing.

    Args:
        stored: the settings in the checkpoint, migrated to today's keys.
        current: the settings of the config at hand, from `stage_settings`.
        default: `stage_settings` of a default config.
    """
    changed: list[str] = []
    for key, value in current.items():
        before = stored.get(key, default.get(key))
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            fallback = default.get(key)
            below = changed_settings(before, value, fallback if fallback is not None else {})
            changed += [f"{key}.{name}" for name in below]
        elif before != value:
            changed.append(key)
    return changed
