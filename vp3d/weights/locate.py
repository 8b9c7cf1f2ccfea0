"""From the location of weights in a config to the folder that contains them.

A location is a name of the catalogue, a folder, or a hub id such as `owner/name`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vp3d.config.paths import data_home, expand, locate, program
from vp3d.config.schema import Config, RewardsConfig
from vp3d.errors import MissingWeightsError, UserError
from vp3d.system.files import JsonError, is_inside, read_json_object
from vp3d.weights.catalogue import MODELS, Model
from vp3d.weights.lora_files import lora_file, parse_loras
from vp3d.weights.model_settings import check_model_settings, offline

PRIOR_LOCATIONS = ("path", "vae", "ip_adapter")  # fields of PriorConfig that name weights
JUDGE_LOCATIONS = (  # fields of RewardsConfig that name weights
    "clip",
    "imagereward",
    "hpsv2",
    "pickscore",
    "dinov2",
    "aesthetic_model",
)
RECEIPT = "SOURCE.json"
CONFIG_OPTIONS = ("subfolder", "local_files_only", "trust_remote_code")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
REMOVED = re.compile(r"runwayml/.*|stabilityai/stable-diffusion-2.*")  # by their owners
FETCH = f"{program()} models fetch"
LIST = f"{program()} models list"


def judge_locations(config: RewardsConfig) -> list[str]:
    """The locations of the reward models that are used, each once."""
    text_models = {
        "clip": config.clip,
        "imagereward": config.imagereward,
        "hpsv2": config.hpsv2,
        "pickscore": config.pickscore,
    }
    image_models = {"clip": config.clip, "dinov2": config.dinov2}
    used = [text_models[config.text_model], image_models[config.image_model]]
    if config.aesthetic.weight > 0.0:
        used.append(config.aesthetic_model)
    return list(dict.fromkeys(used))


def weight_locations(config: Config) -> list[tuple[str, str]]:
    """(config key, location) of all weights that a run reads.

    They are those of its prior, of the prior that draws if one does, of its reward models and of
    prompt debiasing.
    """
    priors = {"prior": config.prior}
    if config.visual_prompt.prior.path and not config.image:
        priors["visual_prompt.prior"] = config.visual_prompt.prior
    found = [
        (f"{name}.{key}", str(getattr(prior, key)))
        for name, prior in priors.items()
        for key in PRIOR_LOCATIONS
    ]
    found += [
        (f"{name}.loras", str(lora_file(locate(path))))
        for name, prior in priors.items()
        for path, _ in parse_loras(prior.loras)
    ]
    found += [("rewards", location) for location in judge_locations(config.rewards)]
    found.append(("guidance.debias", config.guidance.debias))
    return [(key, location) for key, location in found if location]


def models_folder() -> Path:
    """The folder of fetched models: `VP3D_MODELS`, else `models/` in the user's data folder.

    In a checkout, that is `models/` of the checkout.
    """
    named = os.environ.get("VP3D_MODELS", "")
    return expand(named) if named else data_home() / "models"


def licence_of(location: str, manifest: str = "") -> str:
    """The licence of a prior's weights: that of the catalogue, else of their manifest, else "".

    What is trained from weights, such as a LoRA, is usually bound by it. `manifest` is the path of
    the manifest, or "" if there is none.
    """
    folder = locate(location).absolute()
    named = next((name for name in MODELS if folder == models_folder() / name), location)
    if named in MODELS:
        return MODELS[named].licence
    try:
        return str(read_json_object(locate(manifest)).get("licence", "")) if manifest else ""
    except JsonError:
        return ""


def find_model(name: str) -> Model:
    """The entry of the catalogue; UserError with the most similar name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no model called '{name}'; {hint}`{LIST}` shows them all")
    return MODELS[name]


def find_weights(location: str, key: str) -> tuple[str, bool]:
    """Where the loaders find the weights of a location.

    Args:
        location: the value of the config key.
        key: the config key, for messages.

    Returns:
        A folder and True, or a hub id and False. Nothing is fetched for a name of the catalogue.

    Raises:
        UserError: for a model that is not fetched, with the command that fetches it, and for a
            location that is none.
    """
    if location in MODELS:
        check_fetched([(key, location)])
        return str(models_folder() / location), True
    folder = locate(location)
    if folder.is_dir() or (folder.is_file() and key.endswith(".loras")):
        return str(folder), True
    if REMOVED.fullmatch(location):
        raise UserError(
            f"{key}: {location} was removed from the hub; use another model, for example "
            f"{key}=sd15 ({FETCH} sd15)"
        )
    if folder.is_file():
        raise UserError(
            f"{key}: {location} is a single file, and folders are read; convert it: "
            "docs/how_to/use_stable_diffusion.md, Use your own weights"
        )
    if HUB_ID.fullmatch(location):
        return location, False
    raise UserError(
        f"{key} {location} is not a folder: give a folder, a hub id such as owner/name, or a name "
        f"of `{LIST}`"
    )


def check_fetched(locations: Iterable[tuple[str, str]]) -> None:
    """Check that every name of the catalogue among the locations is fetched.

    Args:
        locations: pairs (config key, location); other locations than names are skipped.

    Raises:
        MissingWeightsError: with one command that fetches all models that lack files.
    """
    faults: dict[str, str] = {}
    for key, location in locations:
        if location in MODELS and location not in faults and (fault := _missing(location)):
            faults[location] = f"{key}: the model '{location}' {fault}"
    if faults:
        raise MissingWeightsError(f"{'; '.join(faults.values())}; run: {FETCH} {' '.join(faults)}")


def _missing(name: str) -> str:
    """What is missing of a model of the catalogue; "" if every file exists."""
    folder = models_folder() / name
    missing = missing_files(name, folder)
    if not missing:
        return ""
    return f"lacks {missing[0]}" if folder.is_dir() else "is not fetched"


def local_weights(location: str, key: str) -> Path:
    """`find_weights` for loaders that read folders only; UserError for a hub id."""
    found, is_local = find_weights(location, key)
    if not is_local:
        raise UserError(f"{key} {location} must be a folder or a name of `{LIST}`, not a hub id")
    return Path(found)


def read_whole(kind: Any, folder: str | Path, **options: Any) -> Any:
    """Load a model of transformers from safetensors; every tensor must be in the file.

    transformers itself would fill a missing tensor with random numbers.

    Args:
        kind: the class of the model.
        folder: a folder or hub id.
        options: as for its `from_pretrained`.

    Returns:
        The model.

    Raises:
        ValueError: for a tensor that is missing or has another shape.
    """
    options |= {
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with offline(bool(options.get("local_files_only"))):
        _check_settings(folder, {name: options[name] for name in CONFIG_OPTIONS if name in options})
        model, info = kind.from_pretrained(folder, **options)
    mismatched = (name for name, *_ in info["mismatched_keys"])
    wrong = sorted([*info["missing_keys"], *mismatched])  # both are sets
    if wrong:
        raise ValueError(
            f"its weights are those of another model: {wrong[0]} is missing or has another shape"
        )
    return model


def _check_settings(folder: str | Path, options: dict[str, Any]) -> None:
    """ValueError for a `config.json` that no published model has."""
    from transformers import PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(folder, **options)
    check_model_settings(settings)


def missing_files(name: str, folder: Path) -> list[str]:
    """The paths of a model of the catalogue that are not in `folder`."""
    model = MODELS[name]
    listed = [file.path for file in model.files] + [path for path, _ in model.written]
    return [path for path in listed if not (folder / path).is_file()]


def read_receipt(folder: Path) -> dict[str, dict[str, Any]]:
    """The `files` in the receipt of a fetched model: path -> {"source", "size", "sha256"}.

    Empty if there is no receipt or it is damaged.
    """
    try:
        files = read_json_object(folder / RECEIPT, unique_keys=True).get("files")
    except JsonError:
        return {}
    if not isinstance(files, dict) or not all(map(is_inside, files)):
        return {}
    return files if all(map(_is_entry, files.values())) else {}


def _is_entry(entry: object) -> bool:
    kinds = {"source": str, "size": int, "sha256": str}
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), kind) for key, kind in kinds.items()
    )
