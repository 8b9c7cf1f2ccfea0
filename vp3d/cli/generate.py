"""`generate`, the default verb: make a 3D asset from a prompt."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import sys
from pathlib import Path

from vp3d.cli.arguments import (
    Subparsers,
    add_config,
    add_loras,
    add_mesh,
    add_preset,
    add_words,
    config_files,
    option_overrides,
    read_config,
    split_words,
)
from vp3d.config.paths import ROOT, expand, program
from vp3d.config.schema import LAST_SEED, Config
from vp3d.errors import UserError
from vp3d.prompts import check_text
from vp3d.weights.catalogue import MODELS
from vp3d.weights.locate import JUDGE_LOCATIONS, PRIOR_LOCATIONS
from vp3d.weights.lora_files import lora_file, parse_loras

MOST_CANDIDATES = 1000
SETTINGS = "candidates.yaml"  # in the folder of candidates: the settings of all
EPILOG = f"""\
examples:
  {program()} "a red mushroom with a white stem"
  {program()} "a red sphere on a blue cube" --preset draft
  {program()} "a white house with a red roof" --image style.png --negative "a red cube"
  {program()} "a blue mug" --preset draft --candidates 4
  {program()} "a green car" --config configs/sds.yaml optim.steps=300 output_dir=/tmp/runs
  {program()} --config configs/sd15.yaml --config dreamfusion-sd.yaml \\
      system.prompt_processor.prompt="a corgi"

Settings are layered: defaults, then --preset, then each --config FILE, then options, then
key=value. docs/reference/configuration.md lists every setting; config.yaml in a run folder has the
settings of that run. A FILE may also be a dreamfusion or magic3d-coarse YAML of threestudio: keys
that are not understood are named on stderr.
--candidates N takes N times as long. OUTPUT_DIR/candidates-PROMPT-.../index.html shows all of them,
and their run folders are kept. The reward that chooses is the one that the runs were optimised
with, so it is no measure of quality. visual_prompt.candidates is something else: the pictures that
one run draws.

The first Ctrl-C stops the run and exports its current state; to continue it:
  {program()} resume RUN
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `generate`."""
    summary = "make a 3D asset from a prompt"
    parser = subparsers.add_parser(
        "generate", help=summary, description="Make a 3D asset from a prompt.", epilog=EPILOG
    )
    parser.set_defaults(verbs=subparsers.choices)
    add_words(parser, "PROMPT | key=value", "the prompt in quotes, and settings to change")
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="use this picture as the visual prompt instead of a drawn one",
    )
    parser.add_argument(
        "--mask", metavar="FILE", help="a picture that is white on the object of --image"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        help="another seed gives another variant, the same seed the same bytes (0)",
    )
    parser.add_argument(
        "--candidates",
        metavar="N",
        type=int,
        default=1,
        help="make N seeds, keep all, and take the one with the highest text reward (1)",
    )
    add_loras(parser)
    add_preset(parser, None)
    parser.add_argument("--negative", metavar="TEXT", help="what the asset should not show")
    add_config(parser)
    add_mesh(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the asset, or several and take one; print the run folder."""
    if not 1 <= arguments.candidates <= MOST_CANDIDATES:
        raise UserError(
            f"--candidates takes a whole number from 1 to {MOST_CANDIDATES}, "
            f"not {arguments.candidates}"
        )
    config = config_of(arguments)
    if config.seed + arguments.candidates - 1 > LAST_SEED:
        raise UserError(
            f"--candidates {arguments.candidates} of seed {config.seed} need seeds above "
            f"{LAST_SEED}; give a lower --seed"
        )
    if arguments.candidates > 1:
        sys.stdout.write(f"{best_candidate(config, arguments.candidates)}\n")
        return 0
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay
    from vp3d.system.process import process_start

    with TerminalDisplay(process_start()) as display:
        asset = pipeline.generate(config, watch=display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0


def best_candidate(config: Config, count: int) -> Path:
    """Make `count` seeds in a folder of their own, another one for every other setting.

    Returns:
        The run folder of the one that is taken.
    """
    from vp3d.batch.candidates import make_candidates
    from vp3d.checks import check_request
    from vp3d.evaluate.runner import Settings
    from vp3d.runs.folder import save_config, slug
    from vp3d.system.files import plain

    check_request(config, new=True)
    text = json.dumps(plain(dataclasses.replace(config, output_dir="")), sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"candidates-{slug(config.prompt)}-s{config.seed}-{mark}"
    folder = expand(config.output_dir).absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / SETTINGS)
    settings = Settings(folder, config.preset, (folder / SETTINGS,), light="")
    return make_candidates(config.prompt, config.seed, count, settings)


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration that a `generate` command line asks for, with the prompt checked."""
    prompts, overrides = split_words(arguments.words)
    if len(prompts) > 1:
        near = difflib.get_close_matches(prompts[0].lower(), arguments.verbs, 1)
        verb = f", or did you mean the verb {near[0]}?" if near else ""
        raise UserError(
            f"more than one prompt: {', '.join(map(repr, prompts))}; put the prompt in quotes{verb}"
        )
    named = [f"prompt={prompt}" for prompt in prompts]
    overrides = named + option_overrides(arguments) + overrides
    config = read_config(arguments.preset, config_files(arguments), overrides)
    if not config.prompt.strip():
        raise UserError(
            f'the prompt is empty; say what to make: {program()} "a red mushroom with a white stem"'
        )
    check_text(config.prompt, "prompt")
    check_text(config.negative_prompt, "negative prompt")
    use_loras(config, arguments.lora, arguments.lora_for)
    if arguments.image is not None and not config.image.strip():
        raise UserError("--image is empty: give a picture, or omit the option")
    if arguments.mask is not None and not config.mask.strip():
        raise UserError("--mask is empty: give a picture, or omit the option")
    if config.mask:
        config.mask = str(expand(config.mask).absolute())
    if config.image:  # absolute, so that the run can be resumed from any folder
        config.image = str(expand(config.image).absolute())
    pin_locations(config)
    return config


def use_loras(config: Config, loras: list[str], use: str | None) -> None:
    """Give the LoRAs of the command line to the prior that draws, the one that distils, or both.

    Where one prior does both and only one use is to change, the drawing gets a prior of its own.
    """
    if not loras:
        if use is not None:
            raise UserError("--lora-for changes nothing without --lora; omit it")
        return
    value = ",".join(filter(None, [config.prior.loras, *loras]))
    comma = next((item for item in loras if "," in item), None)
    if comma is not None:
        raise UserError(f"--lora {comma}: a path may have no comma; rename the file")
    for path, _ in parse_loras(",".join(loras)):
        lora_file(expand(path))
    shared = not config.visual_prompt.prior.path
    if shared and use in ("draw", "distil"):
        config.visual_prompt.prior = dataclasses.replace(config.prior)
    if use != "distil" and not (shared and use != "draw"):
        config.visual_prompt.prior.loras = value
    if use != "draw":
        config.prior.loras = value


def pin_locations(config: Config) -> None:
    """Make the paths of models that exist below the current folder absolute, in place.

    The run can then be resumed from any folder. Names of the catalogue are kept, and so are paths
    in VP3D's own folder, which may be moved.
    """
    if Path.cwd() == ROOT:
        return
    priors = [
        (prior, (*PRIOR_LOCATIONS, "manifest", "vocabulary"))
        for prior in (config.prior, config.visual_prompt.prior)
    ]
    for prior, _ in priors:
        prior.loras = ",".join(
            f"{expand(path).absolute() if expand(path).exists() else path}:{scale}"
            for path, scale in parse_loras(prior.loras)
        )
    for group, keys in [
        *priors,
        (config.rewards, JUDGE_LOCATIONS),
        (config.guidance, ("debias",)),
    ]:
        for key in keys:
            location = getattr(group, key)
            if location and location not in MODELS and expand(location).exists():
                setattr(group, key, str(expand(location).absolute()))
