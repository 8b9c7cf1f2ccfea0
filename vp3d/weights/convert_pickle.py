"""`models convert NAME FILE`: write safetensors from a pickle that the user has downloaded.

ImageReward, HPSv2 and the aesthetic head are published as pickles only. This is the only module
that reads one, only on request, and only with `torch.load(weights_only=True)`: that unpickler
builds tensors and plain containers and refuses everything else, so that nothing in the file can
run.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vp3d.errors import UserError
from vp3d.system.files import atomic_write, sha256_file
from vp3d.weights.fetch import PROBES, fetch, record
from vp3d.weights.locate import FETCH, LIST, find_model, models_folder

WRAPPERS = ("state_dict", "model")  # keys under which training scripts store the tensors
READ_ERRORS = (  # what torch.load raises for files that are no checkpoints
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
)


def convert(name: str, path: Path, sources: list[str]) -> Path:
    """Write the tensors of a pickle as a model of the catalogue, and fetch the model's other files.

    Args:
        name: the name of the model.
        path: the pickle.
        sources: folders or addresses to try first for the other files.

    Returns:
        The folder of the model.

    Raises:
        UserError: if the model needs no conversion or exists, or the file is not its pickle.
    """
    model, folder = find_model(name), models_folder() / name
    part = next((part for part in model.parts if part.pickle), None)
    if part is None:
        raise UserError(
            f"{name} needs no conversion, its publisher offers safetensors: run {FETCH} {name}"
        )
    if folder.is_dir():
        raise UserError(f"{folder} exists already; remove it to convert {path} instead")
    tensors = read_tensors(path)
    if PROBES[name] not in tensors:
        raise UserError(
            f"{path} is not {part.pickle.rpartition(': ')[2]}: it has no tensor {PROBES[name]}"
        )
    ready, file = folder.with_name(f".{name}.new"), part.files[0]
    with atomic_write(ready / file.path) as temporary:
        save_file(tensors, temporary)
    record(ready, file.path, f"converted from {path.name}", sha256_file(ready / file.path))
    return fetch(name, sources)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, without wrappers and `module.` prefixes.

    Raises:
        UserError: for a file that is missing, is no such pickle, or has more than tensors in it.
    """
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"{path} {fault}; give the file of the publisher, which `{LIST} NAME` names"
        )
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} is safetensors already: put it into a folder and run "
            f"`{FETCH} NAME --from FOLDER`"
        )
    state = _load(path)
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise UserError(f"{path} is not a state dict but a {type(state).__name__}")
    found = {
        str(key).removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def _load(path: Path) -> Any:
    """The tensors and plain containers in a pickle; UserError if it has anything else in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or contains more than tensors, so it is not read; "
            "download the file of the publisher again"
        ) from error
    except READ_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is not a torch checkpoint ({reason})") from error
