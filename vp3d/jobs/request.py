"""From a job's request, which anybody may have sent, to the settings of its run.

A request never names a file: profiles are names of recipes that ship with VP3D, pictures are ids of
uploads, and `settings` takes numbers and choices only, of listed groups and below a ceiling. No
torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from vp3d import prompts
from vp3d.config.loader import build_config
from vp3d.config.paths import ROOT
from vp3d.config.reader import read_stack
from vp3d.config.schema import Config
from vp3d.errors import MissingWeightsError, UserError
from vp3d.weights.locate import check_fetched, find_weights, weight_locations

DEFAULT_PROFILE = "toybox"  # the embedded models, without a recipe
MAX_PROMPT = 200  # characters
UPLOAD_ID = re.compile(r"pic_[0-9a-f]{16}")
SETTABLE = (  # groups whose numbers and choices a request may set
    *("guidance", "optim", "export", "loss", "refine"),
    *("rewards.text_image", "rewards.image_image", "rewards.aesthetic"),
    *("visual_prompt.candidates", "visual_prompt.steps", "visual_prompt.guidance_scale"),
    *("visual_prompt.steadiness", "visual_prompt.cutout_tolerance"),
)
EXPORT_ONLY = ("export",)
CEILINGS = {  # key -> largest value without --trust-settings
    "optim.steps": 5000,
    "optim.views": 16,
    "export.grid": 256,
    "export.texture_size": 2048,
    "export.faces": 300_000,
    "export.turntable_frames": 240,
    "export.turntable_size": 512,
    "export.unwrap_deadline_s": 120,
    "visual_prompt.candidates": 16,
    "visual_prompt.steps": 100,
    "guidance.denoise_steps": 20,
    "refine.grid": 256,
    "refine.faces": 20_000,
    "refine.texture_size": 2048,
    "refine.render_size": 512,
    "refine.steps": 1000,
    "refine.views": 8,
    "refine.azimuths": 48,
    "refine.denoise_steps": 20,
}
LONGEST = 8  # the most entries of a list: levels of detail, rounds, rings of cameras
ALL_FACES = "export.faces"  # 0 keeps every triangle, which is above any ceiling


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    trusted: bool = False  # no ceilings
    prompt: int = MAX_PROMPT  # characters


def profiles() -> list[str]:
    """The names of the recipes that a request may name."""
    return [DEFAULT_PROFILE, *sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))]


def profile_layers(profile: str) -> list[dict[str, Any]]:
    """The settings of a profile; UserError with the nearest name for one that is not there."""
    names = profiles()
    if profile not in names:
        near = difflib.get_close_matches(profile, names, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(names)}"
        raise UserError(f"there is no profile {profile[:40]!r}{hint}")
    if profile == DEFAULT_PROFILE:
        return []
    return read_stack(ROOT / "configs" / f"{profile}.yaml")


def missing_weights(profile: str) -> str:
    """Why a profile cannot run on this machine, with the command that helps; "" if it can."""
    try:
        config = build_config(None, profile_layers(profile))
        locations = weight_locations(config)
        check_fetched(locations)
        for key, location in locations:
            find_weights(location, key)
    except MissingWeightsError as error:
        return str(error)
    except UserError as error:
        return str(error)
    return ""


def check_text(text: str, name: str, most: int) -> None:
    """Refuse text that is too long, or has control characters or line breaks."""
    if len(text) > most:
        raise UserError(f"the {name} has {len(text):,} characters; at most {most} are taken")
    prompts.check_text(text, name)


def check_settings(
    settings: Mapping[str, Any], limits: Limits, groups: tuple[str, ...] = SETTABLE
) -> dict[str, Any]:
    """`{"optim.steps": 400}` as a layer of settings.

    Args:
        settings: values by dotted key.
        limits: whether ceilings hold.
        groups: the groups and keys that may be set.

    Raises:
        UserError: for a key that may not be set, with the nearest one that may, and for a value
            above its ceiling.
    """
    known = settable_keys(groups)
    layer: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"the setting {key[:60]!r} cannot be set by a request{hint}")
        if not isinstance(value, bool | int | float | str | list):
            raise UserError(f"the setting '{key}' takes a number or a choice")
        _check_ceiling(key, value, limits)
        node = layer
        *path, last = key.split(".")
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return layer


def _check_ceiling(key: str, value: Any, limits: Limits) -> None:
    if isinstance(value, list) and len(value) > LONGEST:
        raise UserError(f"the setting '{key}' takes at most {LONGEST} entries")
    if limits.trusted or key not in CEILINGS or not isinstance(value, int | float):
        return
    if value > CEILINGS[key] or (key == ALL_FACES and value == 0):
        raise UserError(
            f"the setting '{key}' is limited to {CEILINGS[key]:,} here; the owner of the service "
            "can lift this with --trust-settings"
        )


def settable_keys(groups: tuple[str, ...] = SETTABLE) -> list[str]:
    """The dotted keys below `groups` whose values are numbers, choices or schedules."""

    def below(kind: Any, prefix: str) -> list[str]:
        found = []
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if get_origin(hint) is Annotated:
                hint = get_args(hint)[0]
            key = f"{prefix}{name}"
            if dataclasses.is_dataclass(hint) and not hasattr(hint, "constant"):
                found += below(hint, f"{key}.")
            elif hint is not str:  # text is a path, a name of a model, or words
                found.append(key)
        return found

    keys = below(Config, "")
    return [key for key in keys if any(f"{key}.".startswith(f"{group}.") for group in groups)]


def config_of(request: Mapping[str, Any], data: Path, limits: Limits | None = None) -> Config:
    """The settings of a job's run.

    Args:
        request: prompt, negative_prompt, profile, preset, seed, image, formats and settings.
        data: the data folder, for the picture of an upload.
        limits: what a request may ask for; None for one that was checked when it came.

    Returns:
        The config; its `output_dir` is set by the worker.

    Raises:
        UserError: for anything that is not allowed.
    """
    limits = limits or Limits(trusted=True)
    layers = [
        *profile_layers(str(request.get("profile") or DEFAULT_PROFILE)),
        check_settings(request.get("settings") or {}, limits),
    ]
    own: dict[str, Any] = {"prompt": request["prompt"], "seed": request.get("seed", 0)}
    own["negative_prompt"] = request.get("negative_prompt", "")
    for name in ("prompt", "negative_prompt"):
        check_text(own[name], name.replace("_", " "), limits.prompt)
    if request.get("image"):
        own["image"] = str(upload_file(data, str(request["image"])))
    if request.get("formats"):
        own["export"] = {"formats": list(request["formats"])}
    config = build_config(request.get("preset"), [*layers, own])
    if not config.prompt.strip():
        raise UserError('the prompt is empty; say what to make: "a red mushroom"')
    return config


def upload_file(data: Path, upload_id: str) -> Path:
    """The picture of an upload; UserError if there is none."""
    path = data / "uploads" / f"{upload_id}.png"
    if not UPLOAD_ID.fullmatch(upload_id) or not path.is_file():
        raise UserError(f"there is no upload {upload_id[:40]!r}; send the picture first")
    return path.absolute()


def export_layer(request: Mapping[str, Any], limits: Limits | None = None) -> dict[str, Any]:
    """The `export` settings of a request for another export of a finished run."""
    limits = limits or Limits(trusted=True)
    settings = dict(request.get("settings") or {})
    for name in ("faces", "texture_size", "formats"):
        if request.get(name) is not None:
            settings[f"export.{name}"] = request[name]
    layer = check_settings(settings, limits, EXPORT_ONLY)
    build_config(None, [layer])
    return layer
