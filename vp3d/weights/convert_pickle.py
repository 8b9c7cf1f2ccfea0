"""`launch.py models convert NAME FILE`: a publisher's pickle, which the user has downloaded, becomes safetensors. Once.

ImageReward, HPSv2 and the aesthetic head are published as pickles alone. This is the only place that reads one, only on
request, and only with `torch.load(weights_only=True)`: an unpickler that builds tensors and plain containers and refuses
everything else, so that nothing in the file can run. What it yields is written as safetensors; nothing else reads the pickle.
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
from vp3d.weights.locate import FETCH, find_model, models_folder

WRAPPERS = ("state_dict", "model")  # where training scripts put the tensors


def convert(name: str, path: Path, places: list[str]) -> Path:
    """Write the tensors of the pickle `path` as the model `name`, fetch the rest of it from `places`; returns its folder."""
    model, folder = find_model(name), models_folder() / name
    part = next((part for part in model.parts if part.pickle), None)
    if part is None:
        raise UserError(
            f"{name} needs no conversion, its publisher has safetensors: run {FETCH} {name}"
        )
    if folder.is_dir():
        raise UserError(f"{folder} is there already; remove it to convert {path} instead")
    tensors = read_tensors(path)
    if PROBES[name] not in tensors:
        raise UserError(
            f"{path} is not {part.pickle.rpartition(': ')[2]}: it has no tensor {PROBES[name]}"
        )
    ready, file = folder.with_name(f".{name}.new"), part.files[0]
    with atomic_write(ready / file.path) as temporary:
        save_file(tensors, temporary)
    record(ready, file.path, f"converted from {path.name}", sha256_file(ready / file.path))
    return fetch(name, places)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, wrappers and `module.` prefixes taken off; UserError for anything else in it."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"{path} {fault}; give the publisher's file, see `python launch.py models list NAME`"
        )
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} is safetensors already: put it where `{FETCH} NAME --from FOLDER` finds it"
        )
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors: not read; get the publisher's own file"
        ) from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is not a torch checkpoint ({reason})") from error
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
