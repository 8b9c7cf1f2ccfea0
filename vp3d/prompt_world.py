"""Which embedded world's models a prompt gets: the one whose words it uses.

A world is a folder of models: those that ship with VP3D (`assets/household`, `assets/toybox`) and
those that somebody trained on own meshes (`worlds/NAME` in the folder of fetched models). The first
that knows every word of the prompt, in the order own, household, toybox, makes the asset. A config
that names other models is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vp3d.config.paths import ASSETS, ROOT, locate
from vp3d.config.schema import Config, PriorConfig, RewardsConfig
from vp3d.errors import UserError
from vp3d.prompt_reading import read_prompt
from vp3d.prompts import Vocabulary, check_negative_prompt, check_prompt, load_vocabulary
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


def uses_embedded(config: Config) -> bool:
    """Whether the models are those that a config names by default."""
    default = PriorConfig()
    same = all(getattr(config.prior, f) == getattr(default, f) for f in PRIOR_FIELDS)
    draws = config.visual_prompt.prior.path
    return same and not draws and config.rewards.clip == RewardsConfig().clip


def with_world(config: Config, world: EmbeddedWorld) -> Config:
    """The config with the models of `world`, whatever the prompt is; `config` stays as it is."""
    prior = replace(
        config.prior,
        path=world.path("pipeline"),
        ip_adapter=world.path("ip_adapter"),
        ip_adapter_weight=world.adapter,
        manifest=world.path("MANIFEST.json"),
        vocabulary=world.path("vocabulary.json"),
        resolution=world.resolution,
    )
    rewards = replace(config.rewards, clip=world.path("clip"))
    return replace(config, prior=prior, rewards=rewards, embedded="given")


def in_world(config: Config, name: str) -> Config:
    """The config with the models of the shipped world `name`, unless it names other models.

    Raises:
        UserError: The models of that world are not there.
    """
    if config.embedded == "given" or not uses_embedded(config):
        return config
    world = read_world(ASSETS.parent / name)
    if world is None:
        raise UserError(
            f"the models of the {name} are not here: train them with `python -m "
            f"vp3d.embedded.train --world {name}`, or judge meshes that exist with --assets"
        )
    return with_world(config, world)


def choose_world(config: Config) -> Config:
    """The config with the models of the world whose words the prompt uses.

    The config itself is returned if it names other models, if its models were chosen already, or
    if it has no prompt. If no world knows every word, the one that knows most of the prompt stays,
    and `check_request` refuses the prompt with that world's words.
    """
    if config.embedded == "given" or not config.prompt.strip() or not uses_embedded(config):
        return config
    worlds = known_worlds()
    unknown = [_unknown(config, load_vocabulary(locate(w.path("vocabulary.json")))) for w in worlds]
    return with_world(config, worlds[unknown.index(min(unknown))]) if worlds else config


def _unknown(config: Config, vocabulary: Vocabulary) -> int:
    """How many words of the request are unknown; one more if it is refused for another reason."""
    texts = [read_prompt(t, vocabulary).text for t in (config.prompt, config.negative_prompt)]
    missing = {w for t in texts for w in t.replace(",", " ").split()} - vocabulary.words
    try:
        check_prompt(texts[0], vocabulary)
        check_negative_prompt(texts[1], vocabulary)
    except UserError:
        return len(missing) + 1
    return len(missing)
