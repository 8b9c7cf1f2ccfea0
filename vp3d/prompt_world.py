"""Which embedded world's models a prompt gets: the one whose words it uses.

A world is a folder of models: those that ship with VP3D (`assets/household`, `assets/toybox`) and
those that somebody trained on own meshes (`worlds/NAME` in the folder of fetched models). The first
that knows every word of the prompt, in the order own, household, toybox, makes the asset. A config
that names other models is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vp3d.config.paths import ASSETS, ROOT
from vp3d.config.schema import PriorConfig, RewardsConfig
from vp3d.errors import UserError
from vp3d.prompt_reading import read_prompt
from vp3d.prompts import (
    Vocabulary,
    check_negative_prompt,
    check_prompt,
    load_vocabulary,
    words_of,
)
from vp3d.system.files import JsonError, read_json_object
from vp3d.weights.locate import models_folder

OWN = "worlds"  # in the folder of fetched models
SHIPPED = ("household", "toybox")  # in assets/
WORLD_FILE = "world.json"  # {"name": "own", "resolution": 128}
# Fields of the prior that name the embedded models
PRIOR_FIELDS = (
    *("path", "ip_adapter", "ip_adapter_subfolder", "ip_adapter_weight", "image_encoder_folder"),
    *("manifest", "vocabulary", "resolution"),
)


@dataclass(frozen=True)
class EmbeddedWorld:
    """A folder of embedded models.

    Attributes:
        name: Of the world, in the name of the adapter's file.
        folder: The folder of its models.
        resolution: Side of the pictures that its prior draws, pixels.
    """

    name: str
    folder: Path
    resolution: int

    @property
    def adapter(self) -> str:
        """The name of the adapter's weight file."""
        return f"ip-adapter_{self.name}.safetensors"

    def is_complete(self) -> bool:
        """Whether everything that a run reads is there; a training may not have ended yet."""
        files = (
            "MANIFEST.json",
            "vocabulary.json",
            "pipeline/model_index.json",
            f"ip_adapter/models/{self.adapter}",
            "clip/open_clip_config.json",
        )
        return all((self.folder / name).is_file() for name in files)

    def vocabulary(self) -> Vocabulary:
        """The words that its prior knows."""
        return load_vocabulary(self.folder / "vocabulary.json")

    def path(self, name: str) -> str:
        """The location of one of its models for a config, as the shipped config writes it."""
        folder = self.folder / name
        return (folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder).as_posix()


def read_world(folder: Path) -> EmbeddedWorld | None:
    """The complete world in a folder; None if there is none."""
    if folder == ASSETS:
        return EmbeddedWorld(ASSETS.name, folder, PriorConfig().resolution)
    try:
        found = read_json_object(folder / WORLD_FILE)
    except JsonError:
        return None
    name, resolution = found.get("name"), found.get("resolution")
    if not isinstance(name, str) or not isinstance(resolution, int) or not name.isidentifier():
        return None
    world = EmbeddedWorld(name, folder, resolution)
    return world if world.is_complete() else None


def known_worlds() -> list[EmbeddedWorld]:
    """The complete worlds, the first choice first."""
    own = sorted(models_folder().glob(f"{OWN}/*/{WORLD_FILE}"))
    folders = [path.parent.absolute() for path in own]
    folders += [ASSETS.parent / name for name in SHIPPED]
    return [world for folder in folders if (world := read_world(folder)) is not None]


def is_open(embedded: str, prior: PriorConfig, draws: str, clip: str) -> bool:
    """Whether an embedded world has still to be chosen by the words.

    Args:
        embedded: the field of that name of a config.
        prior: its prior; a world is chosen only for the default one.
        draws: `visual_prompt.prior.path`; a world is chosen only for none.
        clip: `rewards.clip`; a world is chosen only for the default one.
    """
    default = PriorConfig()
    same = all(getattr(prior, field) == getattr(default, field) for field in PRIOR_FIELDS)
    return embedded == "by_words" and same and not draws and clip == RewardsConfig().clip


def prior_of(world: EmbeddedWorld, prior: PriorConfig) -> PriorConfig:
    """`prior` with the models of `world`."""
    return replace(
        prior,
        path=world.path("pipeline"),
        ip_adapter=world.path("ip_adapter"),
        ip_adapter_weight=world.adapter,
        manifest=world.path("MANIFEST.json"),
        vocabulary=world.path("vocabulary.json"),
        resolution=world.resolution,
    )


def shipped_world(name: str) -> EmbeddedWorld:
    """The world `name` of `SHIPPED`.

    Raises:
        UserError: Its models are not there.
    """
    world = read_world(ASSETS.parent / name)
    if world is None:
        raise UserError(
            f"the models of the {name} are not here: train them with `python -m "
            f"vp3d.embedded.train --world {name}`, or judge meshes that exist with --assets"
        )
    return world


def world_of(prompt: str, negative_prompt: str = "") -> EmbeddedWorld:
    """The first world that knows every word of a prompt.

    If there is none, the one that misses the fewest; of several, that of the most words.
    """
    worlds = known_worlds()
    known = [world.vocabulary() for world in worlds]
    missed = [_missed(prompt, negative_prompt, words) for words in known]
    if 0 in missed:
        return worlds[missed.index(0)]
    ranks = [(-count, len(words.words)) for count, words in zip(missed, known, strict=True)]
    return worlds[ranks.index(max(ranks))]


def _missed(prompt: str, negative_prompt: str, vocabulary: Vocabulary) -> int:
    """How many words of the prompts are unknown; one more if they are refused all the same."""
    texts = [read_prompt(text, vocabulary).text for text in (prompt, negative_prompt)]
    missing = {word for text in texts for word in words_of(text)} - vocabulary.words
    try:
        check_prompt(texts[0], vocabulary)
        check_negative_prompt(texts[1], vocabulary)
    except UserError:
        return len(missing) + 1
    return len(missing)
