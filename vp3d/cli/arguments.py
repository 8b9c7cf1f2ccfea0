"""Arguments that several verbs share, and the settings that a command line asks for."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from vp3d.cli.assignments import check_assignments
from vp3d.config.addresses import check_address, check_places
from vp3d.config.loader import PRESETS, build_config
from vp3d.config.paths import locate
from vp3d.config.rules import unread_settings
from vp3d.config.schema import Config
from vp3d.config.threestudio import read_layers
from vp3d.errors import UserError
from vp3d.system.console import Parser

Subparsers = argparse._SubParsersAction  # what `ArgumentParser.add_subparsers` returns
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")  # how a key=value word begins
MOST_GPUS = 64  # of one run
EXIT_USER = 2  # exit code of a mistake that the user can correct
OPTION_KEYS = {  # option -> the config key that it sets
    "image": "image",
    "mask": "mask",
    "seed": "seed",
    "sampler": "visual_prompt.sampler",
    "negative": "negative_prompt",
    "faces": "export.faces",
    "texture_size": "export.texture_size",
    "formats": "export.formats",
}


class VerbParser(Parser):
    """The parser of one verb. Words and options may come in any order; no option is abbreviated."""

    def __init__(self, **settings: Any) -> None:
        self.intermixing = False
        settings |= {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
        }
        super().__init__(**settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments of the verb, intermixed; an unknown one is a `UserError`.

        The subparsers of argparse call this method, and `parse_intermixed_args` calls it again for
        each of its two passes.
        """
        if self.intermixing:
            return super().parse_known_args(args, namespace)
        self.intermixing = True
        try:
            return self.parse_intermixed_args(args, namespace), []
        finally:
            self.intermixing = False


def add_words(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """Add the words without an option name, in any number."""
    parser.add_argument("words", nargs="*", default=[], metavar=metavar, help=help)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run folder of `resume` and `export`."""
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run folder: outputs/20260101-120000-a-red-ball-s0"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    parser.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="YAML settings, repeatable"
    )


def add_preset(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add `--preset`; with the default None, a file or key=value may name the preset."""
    parser.add_argument(
        "--preset", choices=PRESETS, default=default, help="how much work to put in (standard)"
    )


def add_loras(parser: argparse.ArgumentParser) -> None:
    """Add `--lora` and `--lora-for` of the verbs that draw or distil."""
    parser.add_argument(
        "--lora",
        metavar="PATH[:SCALE]",
        action="append",
        default=[],
        help="a LoRA of the 2D model, by `align` or diffusers, repeatable",
    )
    parser.add_argument(
        "--lora-for",
        choices=("draw", "distil", "both"),
        help="which use of the 2D model the LoRA changes (both)",
    )


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that exports a mesh."""
    parser.add_argument("--faces", metavar="N", help="at most this many triangles; 0 keeps all")
    parser.add_argument("--texture-size", metavar="PIXELS", help="side of the square texture")
    parser.add_argument(
        "--formats", metavar="LIST", help="comma-separated: glb,obj,ply,stl,usdz,3mf"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add `--engine` and the options of Ray."""
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="what runs them (local)"
    )
    parser.add_argument(
        "--address", default="local", help="ray: the cluster, or this machine alone (local)"
    )
    parser.add_argument(
        "--gpus", metavar="SHARE", type=float, default=0.0, help="ray: GPUs a run takes (0)"
    )


def check_engine(arguments: argparse.Namespace) -> None:
    """Refuse a share of GPUs that is none, and options of another engine."""
    if not 0.0 <= arguments.gpus <= MOST_GPUS:
        raise UserError(f"--gpus takes a number from 0 to {MOST_GPUS}, not {arguments.gpus:g}")
    if arguments.gpus > 1.0 and arguments.gpus % 1.0:
        raise UserError(
            f"--gpus {arguments.gpus:g}: Ray gives a share of one GPU, as 0.25, or whole GPUs"
        )
    if arguments.engine != "ray" and (arguments.gpus or arguments.address != "local"):
        raise UserError("--gpus and --address change nothing without --engine ray; omit them")


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Split positional words into plain words and `key=value` overrides, each in their order."""
    check_assignments(words)
    overrides = [word for word in words if OVERRIDE.match(word)]
    return [word for word in words if not OVERRIDE.match(word)], overrides


def option_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options that were given and set a config key, as `key=value`."""
    given = {key: getattr(arguments, name, None) for name, key in OPTION_KEYS.items()}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def read_overrides(arguments: argparse.Namespace, read: tuple[str, ...] = ()) -> list[str]:
    """The options and `key=value` words of a verb that takes no prompt.

    Args:
        arguments: the parsed arguments of the verb, with `words`.
        read: the keys or groups of keys that the verb reads; empty stands for all.

    Raises:
        UserError: for a word that is not `key=value`, and for a key that the verb does not read.
    """
    plain, overrides = split_words(arguments.words)
    if plain:
        raise UserError(f"'{plain[0]}' is not of the form key=value")
    groups = tuple(f"{name}." for name in read)
    for word in overrides:
        if read and not f"{word.partition('=')[0]}.".startswith(groups):
            raise UserError(f"'{word}' changes nothing here; this verb reads {', '.join(read)}")
    return option_overrides(arguments) + overrides


def read_config(preset: str | None, files: list[Path], overrides: list[str]) -> Config:
    """`load_config`, with notes on stderr.

    There is one line for each setting that is never read, and one for each group of threestudio
    keys that was ignored or converted.
    """
    found = read_layers(files, overrides)
    config = build_config(preset, found.layers)
    check_places(config)
    for note in [*found.notes, *unread_settings(config)]:
        sys.stderr.write(f"vp3d: {note}\n")
    return config


def config_files(arguments: argparse.Namespace) -> list[Path]:
    """The files of `--config`, each looked up in the current folder and then in VP3D's own."""
    for file in arguments.config:
        check_address(file, "--config")
    return [locate(file) for file in arguments.config]
