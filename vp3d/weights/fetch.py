"""`models fetch`: download published weights into `models/NAME/`.

Nothing that is fetched is ever run or unpickled: it is safetensors, JSON or text. Sources are tried
in this order: `--from` (repeatable: a folder or an http(s) address with the files, or with a folder
NAME/ that contains them), `VP3D_MIRRORS` (the same, separated by spaces), then the sources of the
catalogue (vp3d/weights/catalogue.py). All files of a part come from one source.

Downloads go to `models/.NAME.part/`, checked files to `models/.NAME.new/`, and at the end that
folder is renamed, so that `models/NAME/` is complete or does not exist. If it exists, damaged and
missing files are fetched in the same way and moved into it once all of them are checked; files that
no fetch wrote are never replaced. After any interruption the same command resumes the fetch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vp3d.config.paths import program
from vp3d.errors import UserError, VP3DError, in_one_line
from vp3d.system.console import say
from vp3d.system.files import JsonError, read_json, sha256_file, write_json, write_text
from vp3d.weights.catalogue import GB, MODELS, File, Part
from vp3d.weights.download import Received, Unavailable, copy_file
from vp3d.weights.locate import FETCH, RECEIPT, find_model, models_folder, read_receipt
from vp3d.weights.sources import Origin, origins_of, pickle_in_its_place
from vp3d.weights.verify import damage

# Model -> a tensor that its weights must have. These models are published as pickles, so the hashes
# of their safetensors are not known.
PROBES = {
    "imagereward": "blip.visual_encoder.cls_token",
    "hpsv2.1": "visual.conv1.weight",
    "aesthetic": "layers.0.weight",
}


def fetch_all(names: list[str], sources: list[str]) -> Iterator[Path]:
    """Fetch several models; a failure does not stop the others.

    Args:
        names: names of the catalogue.
        sources: folders or addresses of the user, tried first.

    Yields:
        The folder of each model, as soon as it is complete.

    Raises:
        UserError: at the end, with the reasons of all failures.
    """
    chosen = list(dict.fromkeys(names))
    reasons: dict[str, str] = {}
    for name in chosen:
        try:
            yield fetch(name, sources)
        except (VP3DError, OSError) as error:  # OSError: one that `fetch` does not explain better
            if len(chosen) == 1:
                raise
            reasons[name] = str(error).removeprefix(f"cannot fetch {name}: ")
            say(f"{name}: not fetched; the reason is given at the end")
    if reasons:
        complete = [name for name in chosen if name not in reasons]
        failures = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        others = f". Fetched: {', '.join(complete)}" if complete else ""
        raise UserError(f"cannot fetch {len(reasons)} of {len(chosen)} models. {failures}{others}")


def fetch(name: str, sources: list[str]) -> Path:
    """Fetch one model; nothing is done if it is complete and undamaged.

    Args:
        name: a name of the catalogue.
        sources: folders or addresses of the user, tried first.

    Returns:
        The folder of the model.

    Raises:
        UserError: if no source has the files, or they cannot be written.
    """
    model, folder = find_model(name), models_folder() / name
    staging, ready = folder.with_name(f".{name}.part"), folder.with_name(f".{name}.new")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where the folder of a model should be: move it away")
    faults = damage(name)
    if not faults:
        say(f"{name}: already in {folder}")
        _clear(ready, staging)
        return folder
    is_repair = folder.is_dir()
    if is_repair:
        _refuse_own_files(folder, faults)
        path, fault = next(iter(faults.items()))
        say(f"{name}: {path} {fault}; fetching the damaged or missing files")
    missing = {file for file in model.files if file.path in faults and not _is_ready(file, ready)}
    _check_space(missing, ready, staging)
    say(f"{name}: {model.purpose}; licence: {model.licence}")
    mirrors = os.environ.get("VP3D_MIRRORS", "").split()
    for part in model.parts:
        files = tuple(file for file in part.files if file in missing)
        if files:
            tried = [*sources, *mirrors, *part.sources]
            _fetch_part(name, replace(part, files=files), tried, staging, ready)
    _write_own(name, ready, faults)
    try:
        if is_repair:
            _repair(name, ready, folder, faults)
        else:
            ready.rename(folder)
    except OSError as error:
        raise _write_error(folder, error) from error
    _clear(ready, staging)
    say(f"{name}: complete in {folder}")
    return folder


def _refuse_own_files(folder: Path, faults: Collection[str]) -> None:
    """UserError if one of the files to replace was not written by a fetch."""
    receipt = read_receipt(folder)
    own = [path for path in faults if path not in receipt and (folder / path).exists()]
    if own:
        raise UserError(
            f"{', '.join(str(folder / path) for path in own[:3])}: not the published file, and not "
            f"written by a fetch (it is not in {RECEIPT}), so it is kept: move it away, or rename "
            "the folder and name that in the config, for example prior.path=./FOLDER"
        )


def _is_ready(file: File, ready: Path) -> bool:
    """Whether an earlier fetch, which was interrupted, has put `file` into `ready`."""
    entry = read_receipt(ready).get(file.path)
    return (
        entry is not None
        and (ready / file.path).is_file()
        and entry["sha256"] == (file.sha256 or entry["sha256"])
    )


def _write_own(name: str, ready: Path, paths: Collection[str]) -> None:
    """Write those of the files `paths` that VP3D writes itself."""
    for path, content in MODELS[name].written:
        if path in paths:
            write_text(ready / path, content)
            record(ready, path, "written by VP3D", sha256_file(ready / path))


def _repair(name: str, ready: Path, folder: Path, paths: Collection[str]) -> None:
    """Move the files `paths` from `ready` into `folder`.

    The receipt is written first. After an interruption, a file that is not moved yet is damaged or
    missing according to the receipt, and still in `ready`.
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


def record(folder: Path, path: str, source: str, digest: str, revision: str = "") -> None:
    """Add a file to the receipt of `folder`.

    Args:
        folder: the folder of the receipt.
        path: the path of the file in the folder.
        source: where it came from, in words.
        digest: its SHA-256.
        revision: the commit of the source that it is of; "" if that is not known.
    """
    entry = {"source": source, "size": (folder / path).stat().st_size, "sha256": digest}
    entry |= {"revision": revision} if revision else {}
    _write_receipt(folder, read_receipt(folder) | {path: entry})


def _write_receipt(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    write_json(folder / RECEIPT, {"files": files, "fetched": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _write_error(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot write {path}: {reason}; free some space or set VP3D_MODELS=FOLDER")


def _fetch_part(name: str, part: Part, sources: list[str], staging: Path, ready: Path) -> None:
    """Get every file of `part` from the first source that has them all.

    Args:
        name: the name of the model.
        part: the part, with the files to fetch.
        sources: all sources to try, in their order.
        staging: the folder of downloads; each source has a folder of its own in it.
        ready: the folder of checked files.
    """
    reasons: list[str] = []
    for source in sources:
        downloads = staging / hashlib.sha256(source.encode()).hexdigest()[:12]
        try:
            received = _try_source(name, part, source, downloads, reasons)
        except OSError as error:
            raise _write_error(downloads, error) from error
        if received is None:
            continue
        for file in part.files:
            (ready / file.path).parent.mkdir(parents=True, exist_ok=True)
            (downloads / file.path).replace(ready / file.path)
            found = received[file.path]
            record(ready, file.path, source, found.sha256, found.revision)
        return
    raise UserError(
        f"cannot fetch {name}: {'; '.join(reasons) or 'it has no source'}. {_advice(name, part)}"
    )


def _try_source(
    name: str, part: Part, source: str, downloads: Path, reasons: list[str]
) -> dict[str, Received] | None:
    """Get the files of `part` from one source.

    Args:
        name: the name of the model.
        part: the part, with the files to fetch.
        source: the source.
        downloads: the folder of its downloads.
        reasons: gets a line for each origin in the source that fails.

    Returns:
        The SHA-256 and the commit of each path; None if the source does not have them all.

    Raises:
        UserError: if the source was interrupted: resuming it later needs less than another source.
    """
    probe = PROBES.get(name, "") if part.pickle else ""
    for origin in origins_of(source, name):
        try:
            return _take(part, origin, downloads, probe)
        except Unavailable as error:
            if error.started:
                raise UserError(f"cannot fetch {name}: {origin.name}: {error}") from error
            reasons.append(f"{origin.name}: {error}")
    return None


def _advice(name: str, part: Part) -> str:
    """What the user can do when no source has the files."""
    other = f"{FETCH} {name} --from FOLDER (or --from https://MIRROR)"
    if not part.pickle:
        return f"Give another source: {other}"
    address, _, file = part.pickle.rpartition(": ")
    convert = f"{program()} models convert {name} {file}"
    return (
        f"The publisher offers only a pickle, {file}: download it from {address} and run "
        f"`{convert}`, or give another source: {other}"
    )


def _take(part: Part, origin: Origin, folder: Path, probe: str) -> dict[str, Received]:
    """Get the files of `part` from `origin` into `folder` and check each (see `_fault`).

    Returns:
        The SHA-256 and the commit of each path.

    Raises:
        Unavailable: with the reason, when one of them cannot be had.
    """
    taken: dict[str, Received] = {}
    for file in part.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            is_linked = _link_same(file, target, folder.parent)
            received = Received() if is_linked else origin.get(file, target)
        except Unavailable as error:
            twin = pickle_in_its_place(origin, file.at_source) if error.absent else None
            if twin is not None:
                raise Unavailable(
                    f"it has {twin}, a pickle, and no {file.at_source}; pickles are never loaded"
                ) from error
            raise
        digest = sha256_file(target)
        taken[file.path] = Received(digest, received.revision)
        fault = _fault(file, target, received.sha256, digest, probe)
        if fault:
            target.unlink()
            raise Unavailable(fault)
    return taken


def _fault(file: File, target: Path, promised: str, digest: str, probe: str) -> str:
    """What is wrong with a fetched file; "" if nothing is.

    Args:
        file: its entry in the catalogue.
        target: the fetched file.
        promised: the SHA-256 that the source promises; "" for none. The catalogue's comes first.
        digest: the SHA-256 of the fetched file.
        probe: a tensor that weights must have, "" for any. It separates them from those of another
            model where no hash is known.
    """
    if digest != (file.sha256 or promised or digest):
        return f"{file.at_source} is not the published file (its SHA-256 differs)"
    if file.path.endswith(".safetensors"):
        try:
            with safe_open(target, "pt") as opened:
                tensors = opened.keys()
        except (SafetensorError, OSError) as error:
            reason = in_one_line(error, 80)
            return f"{file.at_source} is no safetensors file ({reason})"
        if probe and probe not in tensors:
            return f"{file.at_source} is of another model: it has no tensor {probe}"
    if file.path.endswith(".json"):
        try:
            read_json(target, allow_nan=True)
        except JsonError as error:
            return f"{file.at_source} is no JSON file ({error.reason})"
    return ""


def _link_same(file: File, target: Path, staging: Path) -> bool:
    """Link `target` to a file with the same SHA-256, if one is known.

    It may be in another fetched model, or among the downloads of another source.

    Returns:
        Whether `target` exists now; False also if it existed before.
    """
    if not file.sha256 or target.exists():
        return False
    same = _find_same(file, staging)
    if same is None:
        return False
    try:
        os.link(same, target)
    except OSError:  # another file system, or one without links
        copy_file(same, target)
    return True


def _find_same(file: File, staging: Path) -> Path | None:
    """A file on this machine with the SHA-256 of `file`, which is known."""
    folders = [models_folder() / other for other in MODELS]
    fetched = [
        folder / path
        for folder in folders
        for path, entry in read_receipt(folder).items()
        if entry["sha256"] == file.sha256
    ]
    downloaded = sorted(staging.glob(f"*/{file.path}"))  # complete; a later file was not available
    for path in [*downloaded, *fetched]:
        if path.is_file() and sha256_file(path) == file.sha256:
            return path
    return None


def _check_space(missing: Collection[File], ready: Path, staging: Path) -> None:
    """UserError if the `missing` files, less what `staging` has of them, do not fit on the disk."""
    ready.mkdir(parents=True, exist_ok=True)
    sources = staging.iterdir() if staging.is_dir() else ()
    stored = max(
        (sum(path.stat().st_size for path in own.rglob("*") if path.is_file()) for own in sources),
        default=0,
    )
    needed = sum(file.size for file in missing) - stored
    free = shutil.disk_usage(ready).free
    if needed > free:
        raise UserError(
            f"{models_folder()} has {free / GB:.1f} GB free, {needed / GB:.1f} are needed; "
            "free some or set VP3D_MODELS=FOLDER"
        )
