"""`launch.py models`: put published weights into `models/NAME/`, say what is there, and check it.

Nothing that is fetched is ever run or unpickled: safetensors, JSON and text only. Sources are tried in this order: `--from`
(repeatable: a folder or an http(s) address that holds the files, or a folder NAME/ with them), `VP3D_MIRRORS` (the same,
separated by blanks), then the table's own (vp3d/weights.py). A part of a model comes whole from one source or not at all.

Downloads go to `models/.NAME.part/`, checked files to `models/.NAME.new/`, and the finished folder is renamed: a model is
there whole or not at all. Whatever stopped a fetch, the same command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from vp3d.config import expand
from vp3d.console import say
from vp3d.download import Unavailable, copy_file, download_http, download_hub, exists_http, exists_hub
from vp3d.errors import UserError
from vp3d.run_folder import sha256_file, write_json, write_text
from vp3d.weights import (
    FETCH,
    MODELS,
    RECEIPT,
    File,
    Model,
    Part,
    find_model,
    missing_files,
    models_folder,
    read_receipt,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
GB = 1.0e9


@dataclass(frozen=True)
class Origin:
    """One place to take a part from: how to get a file of it, and whether it has one."""

    name: str  # as the user reads it
    get: Callable[[File, Path], str]  # (file, where to) -> the SHA-256 the source promises, "" for none
    has: Callable[[str], bool]


def fetch(name: str, places: list[str]) -> Path:
    """Fetch the model `name` of the table, first from `places`; returns its folder. UserError when no source has it."""
    model, folder = find_model(name), models_folder() / name
    staging, ready = folder.with_name(f".{name}.part"), folder.with_name(f".{name}.new")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where the folder of a model should be: move it away")
    if folder.is_dir():
        bad = damage(name)
        if not bad:
            say(f"{name}: already in {folder}")
            return folder
        say(f"{name}: {bad[0]}; fetching what is damaged or missing anew")
        _keep_sound(folder, model)
        shutil.rmtree(ready, ignore_errors=True)
        folder.rename(ready)
    _check_space(model, ready, staging)
    say(f"{name}: {model.purpose}; licence: {model.licence}")
    for part in model.parts:
        missing = [file for file in part.files if file.path not in read_receipt(ready) or not (ready / file.path).is_file()]
        if missing:
            mirrors = os.environ.get("VP3D_MIRRORS", "").split()
            _fetch_part(name, replace(part, files=tuple(missing)), [*places, *mirrors, *part.sources], staging, ready)
    return finish(name, staging, ready, folder)


def finish(name: str, staging: Path, ready: Path, folder: Path) -> Path:
    """Write the small files of ours, rename `ready` to `folder`, and drop `staging`."""
    for path, content in MODELS[name].written:
        write_text(ready / path, content)
        record(ready, path, "written by VP3D", sha256_file(ready / path))
    ready.rename(folder)
    shutil.rmtree(staging, ignore_errors=True)
    say(f"{name}: whole in {folder}")
    return folder


def record(ready: Path, path: str, source: str, digest: str) -> None:
    """Note in the receipt of `ready` where its file `path` came from, with its size and its SHA-256 `digest`."""
    files = read_receipt(ready)
    files[path] = {"source": source, "size": (ready / path).stat().st_size, "sha256": digest}
    write_json(ready / RECEIPT, {"files": files, "fetched": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _fetch_part(name: str, part: Part, places: list[str], staging: Path, ready: Path) -> None:
    """Get every file of `part` from the first source that has them all, checked, into `ready`."""
    reasons: list[str] = []
    for place in places:
        own = staging / hashlib.sha256(place.encode()).hexdigest()[:12]  # sources do not mix
        try:
            for origin in _origins(place, name):
                try:
                    digests = _take(part, origin, own)
                    break
                except Unavailable as error:
                    reasons.append(f"{origin.name}: {error}")
            else:
                continue
        except OSError as error:
            advice = "free some space or set VP3D_MODELS=FOLDER"
            raise UserError(f"cannot write {own}: {error.strerror or error}; {advice}") from error
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


def _take(part: Part, origin: Origin, folder: Path) -> dict[str, str]:
    """Get the files of `part` from `origin` into `folder`, each checked; returns the SHA-256 of each path.

    Unavailable with the reason when one of them cannot be had.
    """
    digests: dict[str, str] = {}
    for file in part.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            promised = "" if _linked(file, target) else origin.get(file, target)
        except Unavailable as error:
            twin = _pickle_beside(origin, file.at_source) if error.absent else None
            if twin is not None:
                raise Unavailable(f"it has {twin}, a pickle, and no {file.at_source}; pickles are never loaded") from error
            raise
        digests[file.path] = sha256_file(target)
        fault = _fault(file, target, promised, digests[file.path])
        if fault:
            target.unlink()
            raise Unavailable(fault)
    return digests


def _fault(file: File, target: Path, promised: str, digest: str) -> str:
    """What is wrong with a fetched file; "" when its `digest` is what the table (else its source) promises and it can be read."""
    if digest != (file.sha256 or promised or digest):
        return f"{file.at_source} is not the published file (its SHA-256 is another)"
    if file.path.endswith(".safetensors"):
        try:
            with safe_open(target, "pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            return f"{file.at_source} is no safetensors file ({' '.join(str(error).split())[:80]})"
    if file.path.endswith(".json"):
        try:
            json.loads(target.read_text(encoding="utf-8"))
        except ValueError:
            return f"{file.at_source} is no JSON file"
    return ""


def _linked(file: File, target: Path) -> bool:
    """Whether `target` could be taken from another fetched model that holds the very same file."""
    if not file.sha256 or target.exists():
        return False
    for folder in (models_folder() / other for other in MODELS):
        for path, entry in read_receipt(folder).items():
            if entry["sha256"] == file.sha256 and (folder / path).is_file() and not _damaged(folder / path, entry):
                try:
                    os.link(folder / path, target)
                except OSError:  # another file system, or one without links
                    copy_file(folder / path, target)
                return True
    return False


def _pickle_beside(origin: Origin, path: str) -> str | None:
    """The pickle that `origin` has where the safetensors file `path` should be."""
    place = PurePosixPath(path)
    if place.suffix != ".safetensors":
        return None
    names = [place.with_suffix(suffix).name for suffix in PICKLES] + ["pytorch_model.bin", "open_clip_pytorch_model.bin"]
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
                lambda file, target: download_hub(repository, revision or "main", file.at_source, target),
                lambda path: exists_hub(repository, revision or "main", path),
            )
        ]
    if place.startswith(("https://", "http://")):
        bare = place.rstrip("/")
        if place in _table_addresses():
            return [_http_origin(bare, lambda file: [file.at_source])]
        return [_http_origin(base, lambda file: _names(file, name)) for base in (f"{bare}/{name}", bare)]
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
            raise Unavailable(f"it has no {file.path}" if base.is_dir() else "there is no such folder", absent=True)
        copy_file(found, target)
        return ""

    return Origin(str(base), get, lambda path: (base / path).is_file())


def _keep_sound(folder: Path, model: Model) -> None:
    """Remove what is not sound from `folder` and its receipt, so that it is fetched again, whenever this is cut off."""
    receipt, sound = read_receipt(folder), {}
    for file in model.files:
        target, entry = folder / file.path, receipt.get(file.path)
        if target.is_file():
            digest = sha256_file(target)
            expected = file.sha256 or (entry["sha256"] if entry else "")
            if digest == expected:
                source = entry["source"] if entry else "found in place"
                sound[file.path] = {"source": source, "size": target.stat().st_size, "sha256": digest}
            elif expected:
                target.unlink()
    write_json(folder / RECEIPT, {"files": sound})


def _check_space(model: Model, ready: Path, staging: Path) -> None:
    """UserError where what is neither in `ready` nor already on its way in `staging` does not fit on the disk."""
    ready.mkdir(parents=True, exist_ok=True)
    present = read_receipt(ready)
    begun = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    needed = sum(file.size for file in model.files if file.path not in present) - begun
    free = shutil.disk_usage(ready).free
    if needed > free:
        raise UserError(
            f"{models_folder()} has {free / GB:.1f} GB free, {needed / GB:.1f} are needed; free some or set VP3D_MODELS=FOLDER"
        )


def _damaged(path: Path, entry: dict[str, str | int]) -> bool:
    return path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]


def damage(name: str) -> list[str]:
    """What is missing from the fetched model `name` or is not what was fetched and published; empty when it is sound."""
    folder = models_folder() / name
    faults = [f"{path} is missing" for path in missing_files(name, folder)]
    known = {file.path: file.sha256 for file in MODELS[name].files}
    receipt = read_receipt(folder)
    for path in sorted({*known, *receipt}):
        if not (folder / path).is_file():
            continue
        if path in receipt and _damaged(folder / path, receipt[path]):
            faults.append(f"{path} is damaged or was changed")
        elif known.get(path) and known[path] != (receipt[path]["sha256"] if path in receipt else sha256_file(folder / path)):
            faults.append(f"{path} is not the published file")
    return faults


def verify(names: list[str]) -> str:
    """Check fetched models (all, for no names) byte by byte; the findings as text. UserError when one is damaged."""
    chosen = names or [name for name in MODELS if (models_folder() / name).is_dir()]
    faults = {name: damage(name) for name in chosen if find_model(name)}
    broken = [name for name, found in faults.items() if found]
    if broken:
        details = "; ".join(f"{name}: {', '.join(faults[name][:3])}" for name in broken)
        raise UserError(f"{details}. To mend it: {FETCH} {' '.join(broken)}")
    if not chosen:
        return f"nothing is fetched yet in {models_folder()}; `python launch.py models list` shows what there is\n"
    return "".join(_found_sound(name) for name in chosen)


def _found_sound(name: str) -> str:
    """A line on a model without faults: what was checked, and what could not be."""
    receipt = read_receipt(models_folder() / name)
    known = {*receipt, *(file.path for file in MODELS[name].files if file.sha256)}
    unknown = [file.path for file in MODELS[name].files if file.path not in known]
    told = f"; not checked, as nothing says what it should be: {', '.join(unknown)}" if unknown else ""
    return f"{name}: {len(known)} files as published{told}\n"


def listing(names: list[str]) -> str:
    """The table as text, one model a line; with names, each model's files and sources too."""
    lines = [f"in {models_folder()}"]
    width = max(len(name) for name in MODELS)
    for name in names or MODELS:
        model, folder = find_model(name), models_folder() / name
        state = "-" if not folder.is_dir() else "partial" if missing_files(name, folder) else "here"
        lines.append(f"{name:<{width}}  {state:<7}  {model.size / GB:5.2f} GB  {model.purpose}  [{model.licence}]")
        for part in model.parts if names else ():
            lines += [f"    {file.path}  {file.sha256 or 'hash not known'}" for file in part.files]
            lines += [f"    from {source}" for source in part.sources]
            lines += [f"    publisher's pickle, for `models convert`: {part.pickle}"] if part.pickle else []
    return "\n".join(lines) + "\n"
