"""A folder of results keeps to one question: `suite.json` says which settings and which weights its results come from.

`weights` there is path -> SHA-256 of every file that results depend on. What a manifest covers is taken as the manifest lists
it, for loaders check it against that; of anything else every .safetensors file is hashed, and a hub id stands for itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vp3d.config.paths import ROOT, locate
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.system.files import check_output, plain, write_json
from vp3d.weights.catalogue import MODELS
from vp3d.weights.hashes import weight_hashes
from vp3d.weights.locate import weight_locations
from vp3d.weights.manifest import read_entries

SUITE = "suite.json"
RESULTS = (
    "results/*.json",
    "runs/*/*/config.yaml",
    "*/*/config.yaml",
)  # what lies in a folder that was used
ELSE = "give another --work or remove the folder"
TOLD = 3  # of the changes, how many are named

Location = tuple[
    str, str
]  # a folder, hub id or name of the table, and the manifest that covers it ("" for none)


def run_locations(config: Config) -> list[Location]:
    """The places of all weights that a run of `config` reads."""
    found = []
    for key, place in weight_locations(config):
        prior = config.visual_prompt.prior if key.startswith("visual_prompt.") else config.prior
        found.append((place, "" if key.startswith("guidance.") else prior.manifest))
    return found


def weights_of(places: Iterable[Location]) -> dict[str, str]:
    """path -> SHA-256 of the files in these places; paths in the repository are told from its top."""
    found: dict[str, str] = {}
    for place, manifest in places:
        found |= _listed(place, manifest) or weight_hashes([place])
    return found


def _listed(place: str, manifest: str) -> dict[str, str]:
    if not manifest or place in MODELS:
        return {}
    folder, root = locate(place).resolve(), locate(manifest).parent.resolve()
    if not folder.is_relative_to(root):
        return {}
    files = {
        root / name: str(entry["sha256"]) for name, entry in read_entries(locate(manifest)).items()
    }
    return {
        in_repository(path): digest for path, digest in files.items() if path.is_relative_to(folder)
    }


def in_repository(path: Path) -> str:
    """A path as it is told: from the repository's top where it lies in it."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def keep_to(folder: Path, asked: Mapping[str, Any]) -> None:
    """Take `folder` for results of what is `asked` (with its "weights"); UserError, with what changed, if others lie there."""
    check_output(folder, "--work FOLDER")
    path, asked = folder / SUITE, plain(dict(asked))
    if any(True for pattern in RESULTS for _ in folder.glob(pattern)):
        kept = _read(path)
        if "weights" not in kept:
            raise UserError(
                f"{folder} does not say from which weights its results are (an older version made them); {ELSE}"
            )
        changes = changed(kept, asked)
        if changes:
            of = "weights" if kept["weights"] != asked["weights"] else "settings"
            more = f" and {len(changes) - TOLD} more" if len(changes) > TOLD else ""
            raise UserError(
                f"{folder} holds results of other {of}: {', '.join(changes[:TOLD])}{more}; {ELSE}"
            )
    write_json(path, asked)


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); {ELSE}") from error
    if not isinstance(kept, dict):
        raise UserError(f"{path} is damaged (it is not a JSON object); {ELSE}")
    return kept


def changed(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs, weights first: "judge.safetensors changed", "optim.steps was 600 and is 300 now"."""
    old, new = kept["weights"], asked["weights"]
    files = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    found = [
        f"{name} {'changed' if name in old and name in new else 'is new' if name in new else 'is gone'}"
        for name in files
    ]
    before, now = _leaves(kept), _leaves(asked)
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    return found + [
        f"{key} was {before.get(key, 'not set')} and is {now.get(key, 'not set')} now"
        for key in keys
    ]


def _leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """dotted key -> value of everything but the weights; what is below "config" is named as on a command line."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if not above and key == "weights":
            continue
        name = f"{above}{key}"
        found |= (
            _leaves(value, "" if name == "config" else f"{name}.")
            if isinstance(value, dict)
            else {name: value}
        )
    return found
