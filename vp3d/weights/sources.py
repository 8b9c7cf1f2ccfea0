"""Sources of published files: a folder, an http(s) address, or a hub repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vp3d.config.paths import expand
from vp3d.weights.catalogue import MODELS, File
from vp3d.weights.download import (
    Received,
    Unavailable,
    copy_file,
    download_http,
    download_hub,
    exists_http,
    exists_hub,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_NAMES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Origin:
    """One folder, address or repository that may have the files of a part."""

    name: str  # as the user reads it
    get: Callable[[File, Path], Received]  # writes a file to a target
    has: Callable[[str], bool]  # whether it has a path


def origins_of(source: str, name: str) -> list[Origin]:
    """Where the files of a model may be in a source, in the order to try.

    Args:
        source: as in the catalogue, or a folder or address of the user.
        name: the name of the model. In a source of the user, the folder of that name comes first.
    """
    if source.startswith("hf:"):
        repository, _, revision = source.removeprefix("hf:").partition("@")
        return [_hub_origin(repository, revision or "main")]
    if source.startswith(("https://", "http://")):
        address = source.rstrip("/")
        if source in _catalogue_sources():
            return [_http_origin(address, lambda file: [file.at_source])]
        bases = (f"{address}/{name}", address)
        return [_http_origin(base, lambda file: _possible_paths(file, name)) for base in bases]
    folder = expand(source)
    folders = [folder / name, folder] if (folder / name).is_dir() else [folder]
    return [_folder_origin(base, lambda file: _possible_paths(file, name)) for base in folders]


def pickle_in_its_place(origin: Origin, path: str) -> str | None:
    """The name of a pickle that `origin` has where the safetensors file `path` should be."""
    wanted = PurePosixPath(path)
    if wanted.suffix != ".safetensors":
        return None
    names = [wanted.with_suffix(suffix).name for suffix in PICKLES]
    for name in (*names, *PICKLE_NAMES):
        try:
            if origin.has(wanted.with_name(name).as_posix()):
                return name
        except Unavailable:
            return None
    return None


def _possible_paths(file: File, name: str) -> list[str]:
    """The paths of a file of the model `name` in a source of the user.

    The source may have the layout of the publisher or that of `models/`. The publisher's path comes
    first: in a clone of SDXL, our path is the file in single precision, next to the one in half
    precision. Our path comes first if the publisher's is the path of another file of the model, as
    for the aesthetic head.
    """
    paths = [file.at_source, file.path]
    if any(other.path == file.at_source for other in MODELS[name].files):
        paths.reverse()
    return list(dict.fromkeys(paths))


def _catalogue_sources() -> set[str]:
    return {source for model in MODELS.values() for part in model.parts for source in part.sources}


def _hub_origin(repository: str, revision: str) -> Origin:
    """A hub repository.

    All files of a branch must be of one commit: it may move while they are fetched.
    """
    commits: set[str] = set()

    def get(file: File, target: Path) -> Received:
        received = download_hub(repository, revision, file.at_source, target)
        commits.update(filter(None, [received.revision]))
        if len(commits) > 1:
            target.unlink(missing_ok=True)
            raise Unavailable(f"its {revision} moved to another commit meanwhile; fetch it again")
        return received

    return Origin(f"hub {repository}", get, lambda path: exists_hub(repository, revision, path))


def _http_origin(base: str, paths: Callable[[File], list[str]]) -> Origin:
    def get(file: File, target: Path) -> Received:
        *others, last = paths(file)
        for path in others:
            try:
                return Received(download_http(f"{base}/{path}", target))
            except Unavailable as error:
                if not error.absent:
                    raise
        return Received(download_http(f"{base}/{last}", target))

    return Origin(base, get, lambda path: exists_http(f"{base}/{path}"))


def _folder_origin(base: Path, paths: Callable[[File], list[str]]) -> Origin:
    def get(file: File, target: Path) -> Received:
        found = next((base / path for path in paths(file) if (base / path).is_file()), None)
        if found is None:
            reason = f"it has no {file.path}" if base.is_dir() else "there is no such folder"
            raise Unavailable(reason, absent=True)
        copy_file(found, target)
        return Received()

    return Origin(str(base), get, lambda path: (base / path).is_file())
