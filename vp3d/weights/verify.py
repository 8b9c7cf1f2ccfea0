"""The state of fetched models: a check of every byte, and the catalogue as text.

A file is compared with its published SHA-256 where that is known, and with `SOURCE.json`, the
receipt of the fetch. A file that has neither cannot be checked, and the text says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vp3d.errors import UserError
from vp3d.system.files import sha256_file
from vp3d.weights.catalogue import GB, MODELS, Part, is_pinned
from vp3d.weights.locate import FETCH, LIST, find_model, missing_files, models_folder, read_receipt


def damage(name: str) -> dict[str, str]:
    """Find the files of a model that are missing, changed or not the published ones.

    Returns:
        Path -> what is wrong with it.
    """
    folder = models_folder() / name
    faults = dict.fromkeys(missing_files(name, folder), "is missing")
    published = {file.path: file.sha256 for file in MODELS[name].files}
    receipt = read_receipt(folder)
    for path in sorted({*published, *receipt}):
        if not (folder / path).is_file():
            continue
        if path in receipt and _is_damaged(folder / path, receipt[path]):
            faults[path] = "is damaged or was changed"
        elif published.get(path) and published[path] != (
            receipt[path]["sha256"] if path in receipt else sha256_file(folder / path)
        ):
            faults[path] = "is not the published file"
    return faults


def _is_damaged(path: Path, entry: dict[str, str | int]) -> bool:
    return path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]


def verify(names: list[str]) -> str:
    """Check fetched models byte by byte.

    Args:
        names: names of the catalogue; empty stands for all that are fetched.

    Returns:
        A line on each model.

    Raises:
        UserError: if one is damaged, with the command that repairs it.
    """
    chosen = names or [name for name in MODELS if (models_folder() / name).is_dir()]
    faults = {name: damage(name) for name in chosen if find_model(name)}
    damaged = {
        name: [f"{path} {fault}" for path, fault in found.items()]
        for name, found in faults.items()
        if found
    }
    if damaged:
        details = "; ".join(f"{name}: {', '.join(found[:3])}" for name, found in damaged.items())
        raise UserError(f"{details}. To repair: {FETCH} {' '.join(damaged)}")
    if not chosen:
        return f"no model is fetched in {models_folder()}; `{LIST}` shows them all\n"
    return "".join(_summary(name) for name in chosen)


def _summary(name: str) -> str:
    """A line on a model without faults: which files were checked, against what, and which not."""
    receipt = read_receipt(models_folder() / name)
    published = {file.path for file in MODELS[name].files if file.sha256}
    fetched = receipt.keys() - published
    known = {*published, *fetched}
    unchecked = [file.path for file in MODELS[name].files if file.path not in known]
    line = f"{name}: {len(published)} files as published"
    if fetched:
        line += f", {len(fetched)} as fetched (no published hash is known)"
    if unchecked:
        line += f"; not checked, as no hash of them is known: {', '.join(unchecked)}"
    return f"{line}\n"


def listing(names: list[str]) -> str:
    """The catalogue as text, one model a line; with names, their files and sources too."""
    lines = [f"in {models_folder()}"]
    width = max(len(name) for name in MODELS)
    for name in names or MODELS:
        model = find_model(name)
        lines.append(
            f"{name:<{width}}  {_state(name):<7}  {model.size / GB:5.2f} GB  "
            f"{model.purpose}  [{model.licence}]"
        )
        for part in model.parts if names else ():
            lines += _part_lines(part)
    return "\n".join(lines) + "\n"


def _state(name: str) -> str:
    folder = models_folder() / name
    if not folder.is_dir():
        return "-"
    return "partial" if missing_files(name, folder) else "fetched"


def _part_lines(part: Part) -> Iterator[str]:
    for file in part.files:
        yield f"    {file.path}  {file.sha256 or 'hash not known'}"
    for source in part.sources:
        note = "" if is_pinned(source) else " (a branch: no commit of it is known here)"
        yield f"    from {source}{note}"
    if part.pickle:
        yield f"    publisher's pickle, for `models convert`: {part.pickle}"
