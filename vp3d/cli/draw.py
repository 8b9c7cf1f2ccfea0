"""`draw`: draw the visual prompt of a prompt, plainly or steered by a reward, and nothing more."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vp3d.cli.arguments import Subparsers, add_config, add_loras, add_preset, add_words
from vp3d.cli.generate import config_of
from vp3d.config.paths import program
from vp3d.errors import UserError

if TYPE_CHECKING:
    from vp3d.align.objectives import PictureScore

EPILOG = f"""\
examples:
  {program()} draw "a red mushroom with a white stem"
  {program()} draw "a white ring" --sampler svdd visual_prompt.candidates=2
  {program()} draw "a red chair" --sampler svdd visual_prompt.svdd.reward=jpeg:1,text:1 \\
      visual_prompt.svdd.m=4 visual_prompt.steps=10
  PYTHONPATH=. {program()} draw "a red chair" --sampler svdd --reward my_rewards:bright:0.5,text
  {program()} draw "a red chair" --lora outputs/RUN/lora:0.5 --lora other.safetensors

svdd draws several proposals at each denoising step and keeps one by a reward that needs no gradient
(docs/explanation/svdd.md). The folder that is printed has visual_prompt/chosen.png, cutout.png and
sheet.png; with svdd also steering.png, the proposals and the choices of the first candidate.
`{program()} resume RUN` makes the asset from it.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `draw`."""
    summary = "draw the visual prompt of a prompt, and nothing more"
    parser = subparsers.add_parser(
        "draw",
        help=summary,
        description="Draw the visual prompt of a prompt, plainly or steered by a reward.",
        epilog=EPILOG,
    )
    parser.set_defaults(verbs=subparsers.choices, image=None, mask=None)
    add_words(parser, "PROMPT | key=value", "the prompt in quotes, and settings to change")
    parser.add_argument(
        "--sampler",
        choices=("ddim", "svdd"),
        help="ddim: deterministic steps; svdd: steered by visual_prompt.svdd.reward (ddim)",
    )
    parser.add_argument(
        "--reward",
        metavar="NAME[:WEIGHT],...",
        help="rewards of svdd; module:function is your own: (rgb [B, 3, H, W], prompts) -> [B]",
    )
    parser.add_argument("--seed", metavar="N", help="another seed gives other pictures (0)")
    add_loras(parser)
    add_preset(parser, None)
    parser.add_argument("--negative", metavar="TEXT", help="what the pictures should not show")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw; print the run folder."""
    config = config_of(arguments)
    if arguments.reward is not None:
        if config.visual_prompt.sampler != "svdd":
            raise UserError("--reward steers nothing without --sampler svdd: add it")
        config.visual_prompt.svdd.reward = arguments.reward
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay
    from vp3d.system.process import process_start

    with TerminalDisplay(process_start()) as display:
        folder = pipeline.draw(config, watch=display.watch, scores=own_scores(arguments.reward))
    sys.stdout.write(f"{folder}\n")
    return 0


def own_scores(text: str | None) -> dict[str, PictureScore]:
    """The functions that `--reward` names; a config file never names any."""
    if text is None:
        return {}
    from vp3d.align.objectives import parse_rewards
    from vp3d.tuning.rewards import import_score

    return {name: import_score(name) for name, _ in parse_rewards(text) if ":" in name}
