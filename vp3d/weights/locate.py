"""From a name in a config to the folder that holds the weights."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vp3d.config.paths import ROOT, data_home, expand, locate
from vp3d.config.schema import Config, RewardsConfig
from vp3d.errors import MissingWeightsError, UserError
from vp3d.weights.catalogue import MODELS, Model

PRIOR_LOCATIONS = ("path", "vae", "ip_adapter")  # fields of PriorConfig that name weights
JUDGE_LOCATIONS = (
    "clip",
    "imagereward",
    "hpsv2",
    "pickscore",
    "dinov2",
    "aesthetic_model",
)  # and of RewardsConfig


def judge_locations(config: RewardsConfig) -> list[str]:
    """The reward models that are used, each once, as configured."""
    named = {
        "clip": config.clip,
        "imagereward": config.imagereward,
        "hpsv2": config.hpsv2,
        "pickscore": config.pickscore,
    }
    places = [
        named[config.text_model],
        config.clip if config.image_model == "clip" else config.dinov2,
    ]
    return list(
        dict.fromkeys(places + ([config.aesthetic_model] if config.aesthetic.weight > 0.0 else []))
    )


def weight_locations(config: Config) -> list[tuple[str, str]]:
    """(config key, place) of all weights a run reads: its prior, the one that draws if it draws, judges, debiasing."""
    priors = {"prior": config.prior}
    if config.visual_prompt.prior.path and not config.image:
        priors["visual_prompt.prior"] = config.visual_prompt.prior
    places = [
        (f"{name}.{key}", str(getattr(prior, key)))
        for name, prior in priors.items()
        for key in PRIOR_LOCATIONS
    ]
    places += [("rewards", place) for place in judge_locations(config.rewards)] + [
        ("guidance.debias", config.guidance.debias)
    ]
    return [(key, place) for key, place in places if place]


RECEIPT = "SOURCE.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GONE = re.compile(
    r"runwayml/.*|stabilityai/stable-diffusion-2.*"
)  # taken off the hub by their owners
FETCH = "python launch.py models fetch"


def models_folder() -> Path:
    """Where fetched models lie: `VP3D_MODELS`, else `models/` in the repository."""
    named = os.environ.get("VP3D_MODELS", "")
    return expand(named) if named else data_home() / "models"


def find_model(name: str) -> Model:
    """The table's entry; UserError with the nearest name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise UserError(
            f"there is no model called '{name}'{hint} `python launch.py models list` shows them all"
        )
    return MODELS[name]


def find_weights(place: str, key: str) -> tuple[str, bool]:
    """Where to load `place`, the value of config key `key`, from; and whether that is a folder of this machine.

    A name of the table is its fetched folder, or a UserError with the command that fetches it. Then nothing is ever fetched.
    """
    if place in MODELS:
        check_fetched([(key, place)])
        return str(models_folder() / place), True
    folder = locate(place)
    if folder.is_dir():
        return str(folder), True
    if GONE.fullmatch(place):
        raise UserError(
            f"{key}: {place} is gone from the hub; use another, for example {key}=sd15 ({FETCH} sd15)"
        )
    if HUB_ID.fullmatch(place):
        return place, False
    raise UserError(
        f"{key} {place} is not a folder: give a folder, a hub id such as owner/name, or a name of `launch.py models list`"
    )


def check_fetched(places: Iterable[tuple[str, str]]) -> None:
    """UserError with one command that fetches every name of the table among the `places` (config key, place) that lacks files."""
    lacking: dict[str, tuple[str, str]] = {}
    for key, place in places:
        if place in MODELS and place not in lacking and (what := _lack(place)):
            lacking[place] = key, what
    if lacking:
        told = "; ".join(
            f"{key}: the model '{place}' {what}" for place, (key, what) in lacking.items()
        )
        raise MissingWeightsError(f"{told}; run: {FETCH} {' '.join(lacking)}")


def _lack(name: str) -> str:
    """What is wrong with the folder of a model of the table; "" where every file is there."""
    folder = models_folder() / name
    missing = missing_files(name, folder)
    return "" if not missing else f"lacks {missing[0]}" if folder.is_dir() else "is not fetched"


def pin_locations(config: Config) -> None:
    """Make each folder or file of models that is found below the current folder absolute: a run is resumed from anywhere.

    Names of the table stay, and so does what is found in the repository, whose folder may move.
    """
    if Path.cwd() == ROOT:
        return
    priors = [
        (prior, (*PRIOR_LOCATIONS, "manifest", "vocabulary"))
        for prior in (config.prior, config.visual_prompt.prior)
    ]
    for node, names in [*priors, (config.rewards, JUDGE_LOCATIONS), (config.guidance, ("debias",))]:
        for name in names:
            place = getattr(node, name)
            if place and place not in MODELS and expand(place).exists():
                setattr(node, name, str(expand(place).absolute()))


def local_weights(place: str, key: str) -> Path:
    """`find_weights` for loaders that read folders only; UserError for a hub id."""
    found, is_local = find_weights(place, key)
    if not is_local:
        raise UserError(
            f"{key} {place} must be a folder or a name of `launch.py models list`, not a hub id"
        )
    return Path(found)


def read_whole(kind: Any, folder: str | Path, **options: Any) -> Any:
    """A model of transformers' class `kind`, from safetensors; `options` as its `from_pretrained` has them.

    ValueError for a tensor that the file lacks, or has in another shape: transformers would make it up at random.
    """
    options |= {
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    model, notes = kind.from_pretrained(folder, **options)
    wrong = sorted(
        [*notes["missing_keys"], *(name for name, *_ in notes["mismatched_keys"])]
    )  # it gives sets
    if wrong:
        raise ValueError(
            f"its weights are another model's: {wrong[0]} is missing or has another shape"
        )
    return model


def missing_files(name: str, folder: Path) -> list[str]:
    """Paths of a table model that are not in `folder`."""
    model = MODELS[name]
    wanted = [file.path for file in model.files] + [path for path, _ in model.written]
    return [path for path in wanted if not (folder / path).is_file()]


def read_receipt(folder: Path) -> dict[str, dict[str, Any]]:
    """The `files` of a fetched model: path -> {"source", "size", "sha256"}; empty where there is none or it is damaged."""
    try:
        files = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
        whole = all({"source", "size", "sha256"} <= entry.keys() for entry in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return files if whole else {}
