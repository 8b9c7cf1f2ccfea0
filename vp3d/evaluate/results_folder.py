"""A folder of results belongs to one suite with one set of settings and weights.

`suite.json` in the folder records them. Its entry "weights" maps each file that the results depend
on to its SHA-256. Files that a manifest covers are recorded with the manifest's hash, because the
loaders check them against it. Of all other folders every .safetensors file is hashed. A hub id is
recorded by its commit, where that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vp3d.config.paths import ROOT, locate
from vp3d.config.schema import PriorConfig
from vp3d.errors import DamagedFileError, UserError
from vp3d.system.files import JsonError, check_output, plain, read_json_object, write_json
from vp3d.weights.catalogue import MODELS
from vp3d.weights.hashes import is_other, weight_hashes
from vp3d.weights.manifest import read_entries

SUITE_FILE = "suite.json"
RESULT_PATTERNS = ("results/*.json", "runs/*/*/config.yaml", "*/*/config.yaml")
REMEDY = "give another --work or remove the folder"
MAX_NAMED_CHANGES = 3  # in an error message

# A folder, hub id or catalogue name, and the manifest that covers it ("" for none).
WeightSource = tuple[str, str]


def run_weight_sources(
    locations: Iterable[tuple[str, str]], prior: PriorConfig, drawing_prior: PriorConfig
) -> list[WeightSource]:
    """Adds the manifest to each location of weights that a run reads.

    Args:
        locations: (config key, location) pairs, as `weight_locations` returns them.
        prior: the prior of the guidance; its manifest covers the reward models too.
        drawing_prior: the prior that draws the visual prompt.

    Returns:
        A source for each location, in the same order.
    """
    found = []
    for key, location in locations:
        owner = drawing_prior if key.startswith("visual_prompt.") else prior
        found.append((location, "" if key.startswith("guidance.") else owner.manifest))
    return found


def hash_sources(sources: Iterable[WeightSource]) -> dict[str, str]:
    """Path -> SHA-256 of all files in `sources`; paths inside the repository are relative to it."""
    found: dict[str, str] = {}
    for location, manifest in sources:
        found |= _manifest_hashes(location, manifest) or weight_hashes([location])
    return found


def _manifest_hashes(location: str, manifest: str) -> dict[str, str]:
    """The manifest's hashes of the files in `location`; empty if it does not cover that folder."""
    if not manifest or location in MODELS:
        return {}
    folder, root = locate(location).resolve(), locate(manifest).parent.resolve()
    if not folder.is_relative_to(root):
        return {}
    entries = read_entries(locate(manifest))
    files = {root / name: str(entry["sha256"]) for name, entry in entries.items()}
    return {
        relative_to_repository(path): digest
        for path, digest in files.items()
        if path.is_relative_to(folder)
    }


def relative_to_repository(path: Path) -> str:
    """The path relative to the repository if it is inside, otherwise unchanged."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def lock_folder(folder: Path, request: Mapping[str, Any]) -> None:
    """Reserves `folder` for the results of one request.

    Args:
        folder: the folder of results; created if it does not exist.
        request: the suite and its settings, and under "weights" the hashes of `hash_sources`.

    Raises:
        UserError: the folder has results of another request; the message names what differs.
    """
    check_output(folder, "--work FOLDER")
    path, request = folder / SUITE_FILE, plain(dict(request))
    if any(True for pattern in RESULT_PATTERNS for _ in folder.glob(pattern)):
        recorded = _read(path)
        if "weights" not in recorded:
            raise UserError(
                f"{folder} does not say from which weights its results are "
                f"(an older version wrote them); {REMEDY}"
            )
        changes = list_changes(recorded, request)
        if changes:
            old, new = recorded["weights"], request["weights"]
            same = not any(is_other(old.get(name), new.get(name)) for name in {*old, *new})
            kind = "settings" if same else "weights"
            hidden = len(changes) - MAX_NAMED_CHANGES
            more = f" and {hidden} more" if hidden > 0 else ""
            named = ", ".join(changes[:MAX_NAMED_CHANGES])
            raise UserError(f"{folder} holds results of other {kind}: {named}{more}; {REMEDY}")
    write_json(path, request)


def _read(path: Path) -> dict[str, Any]:
    try:
        recorded = read_json_object(path, unique_keys=True)
    except JsonError as error:
        if error.missing:
            return {}
        raise DamagedFileError(f"{path} is damaged ({error.reason}); {REMEDY}") from error
    if not isinstance(recorded.get("weights", {}), dict):
        raise DamagedFileError(f"{path} is damaged (its weights are no object); {REMEDY}")
    return recorded


def list_changes(recorded: Mapping[str, Any], request: Mapping[str, Any]) -> list[str]:
    """What differs, weights first.

    Example:
        ["judge.safetensors changed", "optim.steps was 600 and is 300 now"]
    """
    old, new = recorded["weights"], request["weights"]
    files = [name for name in dict.fromkeys([*old, *new]) if is_other(old.get(name), new.get(name))]
    found = []
    for name in files:
        change = (
            "changed" if name in old and name in new else "is new" if name in new else "is gone"
        )
        found.append(f"{name} {change}")
    before, now = _flatten(recorded), _flatten(request)
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    for key in keys:
        found.append(f"{key} was {before.get(key, 'not set')} and is {now.get(key, 'not set')} now")
    return found


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, without the weights; keys below "config" as on a command line."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if not prefix and key == "weights":
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _flatten(value, "" if name == "config" else f"{name}.")
        else:
            found[name] = value
    return found
