"""What is fetched: whether every byte of it is what was fetched and published, and the table as text.

A file of the table is held against its published SHA-256 where that is known, and against `SOURCE.json`, which tells what
a fetch wrote; one that has neither cannot be checked, and the text says so.
"""

from __future__ import annotations

from pathlib import Path

from vp3d.errors import UserError
from vp3d.system.files import sha256_file
from vp3d.weights.catalogue import GB, MODELS
from vp3d.weights.locate import FETCH, find_model, missing_files, models_folder, read_receipt


def damage(name: str) -> dict[str, str]:
    """Path -> what is wrong with it, for files of the model `name` that are missing or not what was fetched or published."""
    folder = models_folder() / name
    faults = dict.fromkeys(missing_files(name, folder), "is missing")
    known = {file.path: file.sha256 for file in MODELS[name].files}
    receipt = read_receipt(folder)
    for path in sorted({*known, *receipt}):
        if not (folder / path).is_file():
            continue
        if path in receipt and _is_damaged(folder / path, receipt[path]):
            faults[path] = "is damaged or was changed"
        elif known.get(path) and known[path] != (
            receipt[path]["sha256"] if path in receipt else sha256_file(folder / path)
        ):
            faults[path] = "is not the published file"
    return faults


def _is_damaged(path: Path, entry: dict[str, str | int]) -> bool:
    return path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]


def verify(names: list[str]) -> str:
    """Check fetched models (all, for no names) byte by byte; the findings as text. UserError when one is damaged."""
    chosen = names or [name for name in MODELS if (models_folder() / name).is_dir()]
    faults = {name: damage(name) for name in chosen if find_model(name)}
    broken = {
        name: [f"{path} {fault}" for path, fault in found.items()]
        for name, found in faults.items()
        if found
    }
    if broken:
        details = "; ".join(f"{name}: {', '.join(found[:3])}" for name, found in broken.items())
        raise UserError(f"{details}. To mend it: {FETCH} {' '.join(broken)}")
    if not chosen:
        return f"nothing is fetched yet in {models_folder()}; `python launch.py models list` shows what there is\n"
    return "".join(_found_sound(name) for name in chosen)


def _found_sound(name: str) -> str:
    """A line on a model without faults: what was checked and against what, and what could not be."""
    receipt = read_receipt(models_folder() / name)
    published = {file.path for file in MODELS[name].files if file.sha256}
    fetched = receipt.keys() - published
    unknown = [file.path for file in MODELS[name].files if file.path not in {*published, *fetched}]
    told = f"{len(published)} files as published"
    told += f", {len(fetched)} as fetched (no published hash is known)" if fetched else ""
    told += (
        f"; not checked, as nothing says what it should be: {', '.join(unknown)}" if unknown else ""
    )
    return f"{name}: {told}\n"


def listing(names: list[str]) -> str:
    """The table as text, one model a line; with names, each model's files and sources too."""
    lines = [f"in {models_folder()}"]
    width = max(len(name) for name in MODELS)
    for name in names or MODELS:
        model, folder = find_model(name), models_folder() / name
        state = "-" if not folder.is_dir() else "partial" if missing_files(name, folder) else "here"
        lines.append(
            f"{name:<{width}}  {state:<7}  {model.size / GB:5.2f} GB  {model.purpose}  [{model.licence}]"
        )
        for part in model.parts if names else ():
            lines += [f"    {file.path}  {file.sha256 or 'hash not known'}" for file in part.files]
            lines += [f"    from {source}" for source in part.sources]
            lines += (
                [f"    publisher's pickle, for `models convert`: {part.pickle}"]
                if part.pickle
                else []
            )
    return "\n".join(lines) + "\n"
