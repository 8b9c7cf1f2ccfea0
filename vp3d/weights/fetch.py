"""`launch.py models fetch`: put published weights into `models/NAME/`.

Nothing that is fetched is ever run or unpickled: safetensors, JSON and text only. Sources are tried in this order: `--from`
(repeatable: a folder or an http(s) address that holds the files, or a folder NAME/ with them), `VP3D_MIRRORS` (the same,
separated by blanks), then the table's own (vp3d/weights/catalogue.py). A part of a model comes whole from one source or not at all.

Downloads go to `models/.NAME.part/`, checked files to `models/.NAME.new/`, and the finished folder is renamed: a model is
there whole or not at all. Where the folder is there already, what is damaged or missing in it comes the same way, and the folder
is touched only once all of that is there and checked; files that no fetch put there are never replaced. Whatever stopped a
fetch, the same command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from vp3d.config.paths import expand
from vp3d.errors import UserError, VP3DError
from vp3d.system.console import say
from vp3d.system.files import sha256_file, write_json, write_text
from vp3d.weights.catalogue import GB, MODELS, File, Part
from vp3d.weights.download import (
    Unavailable,
    copy_file,
    download_http,
    download_hub,
    exists_http,
    exists_hub,
)
from vp3d.weights.locate import FETCH, RECEIPT, find_model, models_folder, read_receipt
from vp3d.weights.verify import damage

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PROBES = {  # a tensor that the right weights have, of the models that are published as pickles: their hashes are not known
    "imagereward": "blip.visual_encoder.cls_token",
    "hpsv2.1": "visual.conv1.weight",
    "aesthetic": "layers.0.weight",
}


@dataclass(frozen=True)
class Origin:
    """One place to take a part from: how to get a file of it, and whether it has one."""

    name: str  # as the user reads it
    get: Callable[
        [File, Path], str
    ]  # (file, where to) -> the SHA-256 the source promises, "" for none
    has: Callable[[str], bool]


def fetch_all(names: list[str], places: list[str]) -> Iterator[Path]:
    """`fetch` each of the models, giving its folder; one that fails stops none, and the end is one UserError with all reasons."""
    chosen = list(dict.fromkeys(names))
    reasons: dict[str, str] = {}
    for name in chosen:
        try:
            yield fetch(name, places)
        except (VP3DError, OSError) as error:  # OSError: one that `fetch` has no better words for
            if len(chosen) == 1:
                raise
            reasons[name] = str(error).removeprefix(f"cannot fetch {name}: ")
            say(f"{name}: not fetched; the reason follows at the end")
    if reasons:
        there = [name for name in chosen if name not in reasons]
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        others = f". The others are there: {', '.join(there)}" if there else ""
        raise UserError(f"cannot fetch {len(reasons)} of {len(chosen)} models. {told}{others}")


def fetch(name: str, places: list[str]) -> Path:
    """Fetch the model `name` of the table, first from `places`; returns its folder. UserError when no source has it."""
    model, folder = find_model(name), models_folder() / name
    staging, ready = folder.with_name(f".{name}.part"), folder.with_name(f".{name}.new")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where the folder of a model should be: move it away")
    faults = damage(name)
    if not faults:
        say(f"{name}: already in {folder}")
        _clear(ready, staging)
        return folder
    mending = folder.is_dir()
    if mending:
        _spare_own(folder, faults)
        path, fault = next(iter(faults.items()))
        say(f"{name}: {path} {fault}; fetching what is damaged or missing anew")
    missing = {file for file in model.files if file.path in faults and not _is_ready(file, ready)}
    _check_space(missing, ready, staging)
    say(f"{name}: {model.purpose}; licence: {model.licence}")
    mirrors = os.environ.get("VP3D_MIRRORS", "").split()
    for part in model.parts:
        files = tuple(file for file in part.files if file in missing)
        if files:
            _fetch_part(
                name, replace(part, files=files), [*places, *mirrors, *part.sources], staging, ready
            )
    _write_ours(name, ready, faults)
    try:
        if mending:
            _mend(name, ready, folder, faults)
        else:
            ready.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    _clear(ready, staging)
    say(f"{name}: whole in {folder}")
    return folder


def _spare_own(folder: Path, faults: Collection[str]) -> None:
    """UserError where one of the files `faults`, which a fetch would replace, was not put there by a fetch."""
    receipt = read_receipt(folder)
    own = [path for path in faults if path not in receipt and (folder / path).exists()]
    if own:
        raise UserError(
            f"{', '.join(str(folder / path) for path in own[:3])}: not the published file, and put there by you (it is not in "
            f"{RECEIPT}), so it stays: move it away, or rename the folder and name that in the config, as prior.path=./FOLDER"
        )


def _is_ready(file: File, ready: Path) -> bool:
    """Whether an earlier fetch, which was stopped, has put `file` into `ready`."""
    entry = read_receipt(ready).get(file.path)
    return (
        entry is not None
        and (ready / file.path).is_file()
        and entry["sha256"] == (file.sha256 or entry["sha256"])
    )


def _write_ours(name: str, ready: Path, paths: Collection[str]) -> None:
    """Write those of the files `paths` that are not fetched."""
    for path, content in MODELS[name].written:
        if path in paths:
            write_text(ready / path, content)
            record(ready, path, "written by VP3D", sha256_file(ready / path))


def _mend(name: str, ready: Path, folder: Path, paths: Collection[str]) -> None:
    """Move the files `paths` from `ready` into `folder`.

    The receipt goes first: when this is cut off, a file that is not moved yet is damaged or missing by it, and still in `ready`.
    """
    model, fresh = MODELS[name], read_receipt(ready)
    listed = [*(file.path for file in model.files), *(path for path, _ in model.written)]
    kept = {path: entry for path, entry in read_receipt(folder).items() if path in listed}
    moved = [path for path in listed if path in paths]
    _write_receipt(folder, kept | {path: fresh[path] for path in moved})
    for path in moved:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            (ready / path).replace(folder / path)
        except OSError:  # the folder is a link to another file system
            copy_file(ready / path, folder / path)


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def record(ready: Path, path: str, source: str, digest: str) -> None:
    """Note in the receipt of `ready` where its file `path` came from, with its size and its SHA-256 `digest`."""
    entry = {"source": source, "size": (ready / path).stat().st_size, "sha256": digest}
    _write_receipt(ready, read_receipt(ready) | {path: entry})


def _write_receipt(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    write_json(folder / RECEIPT, {"files": files, "fetched": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _unwritable(place: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {place}: {error.strerror or error}; free some space or set VP3D_MODELS=FOLDER"
    )


def _fetch_part(name: str, part: Part, places: list[str], staging: Path, ready: Path) -> None:
    """Get every file of `part` from the first source that has them all, checked, into `ready`."""
    reasons: list[str] = []
    probe = PROBES.get(name, "") if part.pickle else ""
    for place in places:
        own = staging / hashlib.sha256(place.encode()).hexdigest()[:12]  # sources do not mix
        try:
            for origin in _origins(place, name):
                try:
                    digests = _take(part, origin, own, probe)
                    break
                except Unavailable as error:
                    if (
                        error.begun
                    ):  # the rest is more likely to come from there than all of it from another
                        raise UserError(f"cannot fetch {name}: {origin.name}: {error}") from error
                    reasons.append(f"{origin.name}: {error}")
            else:
                continue
        except OSError as error:
            raise _unwritable(own, error) from error
        for file in part.files:
            (ready / file.path).parent.mkdir(parents=True, exist_ok=True)
            (own / file.path).replace(ready / file.path)
            record(ready, file.path, place, digests[file.path])
        return
    tried = "; ".join(reasons) or "it has no source"
    raise UserError(f"cannot fetch {name}: {tried}. {_advice(name, part)}")


def _advice(name: str, part: Part) -> str:
    elsewhere = f"give another source with --from FOLDER or --from https://MIRROR: {FETCH} {name} --from PLACE"
    if not part.pickle:
        return elsewhere[0].upper() + elsewhere[1:]
    address, _, file = part.pickle.rpartition(": ")
    convert = f"python launch.py models convert {name} {file}"
    return f"The publisher has only a pickle, {file}: get it from {address} yourself and run `{convert}`, or {elsewhere}"


def _take(part: Part, origin: Origin, folder: Path, probe: str) -> dict[str, str]:
    """Get the files of `part` from `origin` into `folder`, each checked (see `_fault`); returns the SHA-256 of each path.

    Unavailable with the reason when one of them cannot be had.
    """
    digests: dict[str, str] = {}
    for file in part.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            promised = "" if _linked(file, target, folder.parent) else origin.get(file, target)
        except Unavailable as error:
            twin = _pickle_beside(origin, file.at_source) if error.absent else None
            if twin is not None:
                raise Unavailable(
                    f"it has {twin}, a pickle, and no {file.at_source}; pickles are never loaded"
                ) from error
            raise
        digests[file.path] = sha256_file(target)
        fault = _fault(file, target, promised, digests[file.path], probe)
        if fault:
            target.unlink()
            raise Unavailable(fault)
    return digests


def _fault(file: File, target: Path, promised: str, digest: str, probe: str) -> str:
    """What is wrong with a fetched file; "" when its `digest` is what the table (else its source) promises and it can be read.

    probe: a tensor that weights must have, "" for any; it tells them from another model's where no hash is known.
    """
    if digest != (file.sha256 or promised or digest):
        return f"{file.at_source} is not the published file (its SHA-256 is another)"
    if file.path.endswith(".safetensors"):
        try:
            with safe_open(target, "pt") as opened:
                tensors = opened.keys()
        except (SafetensorError, OSError) as error:
            return f"{file.at_source} is no safetensors file ({' '.join(str(error).split())[:80]})"
        if probe and probe not in tensors:
            return f"{file.at_source} is another model's: it has no tensor {probe}"
    if file.path.endswith(".json"):
        try:
            json.loads(target.read_text(encoding="utf-8"))
        except ValueError:
            return f"{file.at_source} is no JSON file"
    return ""


def _linked(file: File, target: Path, staging: Path) -> bool:
    """Whether `target` could be taken from another fetched model that holds the very same file, or from another source's."""
    if not file.sha256 or target.exists():
        return False
    receipts = [
        (models_folder() / other, read_receipt(models_folder() / other)) for other in MODELS
    ]
    noted = [
        folder / path
        for folder, files in receipts
        for path, entry in files.items()
        if entry["sha256"] == file.sha256
    ]
    begun = sorted(
        staging.glob(f"*/{file.path}")
    )  # whole, but another file of that source could not be had
    same = next(
        (path for path in [*begun, *noted] if path.is_file() and sha256_file(path) == file.sha256),
        None,
    )
    if same is None:
        return False
    try:
        os.link(same, target)
    except OSError:  # another file system, or one without links
        copy_file(same, target)
    return True


def _pickle_beside(origin: Origin, path: str) -> str | None:
    """The pickle that `origin` has where the safetensors file `path` should be."""
    place = PurePosixPath(path)
    if place.suffix != ".safetensors":
        return None
    names = [place.with_suffix(suffix).name for suffix in PICKLES] + [
        "pytorch_model.bin",
        "open_clip_pytorch_model.bin",
    ]
    for name in names:
        try:
            if origin.has(place.with_name(name).as_posix()):
                return name
        except Unavailable:
            return None
    return None


def _origins(place: str, name: str) -> list[Origin]:
    """What a source means: the place itself, and for the user's own places the folder `name` in it first."""
    if place.startswith("hf:"):
        repository, _, revision = place.removeprefix("hf:").partition("@")
        return [
            Origin(
                f"hub {repository}",
                lambda file, target: download_hub(
                    repository, revision or "main", file.at_source, target
                ),
                lambda path: exists_hub(repository, revision or "main", path),
            )
        ]
    if place.startswith(("https://", "http://")):
        bare = place.rstrip("/")
        if place in _table_addresses():
            return [_http_origin(bare, lambda file: [file.at_source])]
        return [
            _http_origin(base, lambda file: _names(file, name)) for base in (f"{bare}/{name}", bare)
        ]
    folder = expand(place)
    bases = [folder / name, folder] if (folder / name).is_dir() else [folder]
    return [_folder_origin(base, lambda file: _names(file, name)) for base in bases]


def _names(file: File, name: str) -> list[str]:
    """The paths of a `file` of the model `name` in a place of the user's, laid out as its source or as our folders are.

    The source's comes first: beside the half precision of SDXL lies, under our name, the single. But not where it is the name of
    another file of ours, as that of the aesthetic head is.
    """
    names = [file.at_source, file.path]
    if any(other.path == file.at_source for other in MODELS[name].files):
        names.reverse()
    return list(dict.fromkeys(names))


def _table_addresses() -> set[str]:
    return {source for model in MODELS.values() for part in model.parts for source in part.sources}


def _http_origin(base: str, names: Callable[[File], list[str]]) -> Origin:
    def get(file: File, target: Path) -> str:
        *first, last = names(file)
        for path in first:
            try:
                return download_http(f"{base}/{path}", target)
            except Unavailable as error:
                if not error.absent:
                    raise
        return download_http(f"{base}/{last}", target)

    return Origin(base, get, lambda path: exists_http(f"{base}/{path}"))


def _folder_origin(base: Path, names: Callable[[File], list[str]]) -> Origin:
    def get(file: File, target: Path) -> str:
        found = next((base / path for path in names(file) if (base / path).is_file()), None)
        if found is None:
            raise Unavailable(
                f"it has no {file.path}" if base.is_dir() else "there is no such folder",
                absent=True,
            )
        copy_file(found, target)
        return ""

    return Origin(str(base), get, lambda path: (base / path).is_file())


def _check_space(missing: Collection[File], ready: Path, staging: Path) -> None:
    """UserError where what is `missing` and not already on its way in `staging` does not fit on the disk."""
    ready.mkdir(parents=True, exist_ok=True)
    sources = staging.iterdir() if staging.is_dir() else ()
    begun = max(
        (sum(path.stat().st_size for path in own.rglob("*") if path.is_file()) for own in sources),
        default=0,
    )
    needed = sum(file.size for file in missing) - begun
    free = shutil.disk_usage(ready).free
    if needed > free:
        raise UserError(
            f"{models_folder()} has {free / GB:.1f} GB free, {needed / GB:.1f} are needed; free some or set VP3D_MODELS=FOLDER"
        )
