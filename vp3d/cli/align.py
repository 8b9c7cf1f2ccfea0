"""`align`: train a LoRA of the 2D model on a reward."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vp3d.cli.arguments import (
    Subparsers,
    add_config,
    add_words,
    config_files,
    read_config,
    read_overrides,
)
from vp3d.cli.generate import pin_locations
from vp3d.config.paths import expand, locate, program
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.prompt_reading import read_prompt
from vp3d.prompts import check_prompt, check_text, load_vocabulary
from vp3d.system.files import disk_errors
from vp3d.weights.lora_files import lora_file

TOYBOX_PROMPTS = 48  # captions that are drawn where the embedded model gets no --prompts
MAX_PROMPT_BYTES = 1 << 20
EPILOG = f"""\
rewards:
  clip, imagereward, pickscore, hpsv2, aesthetic   the judges of a run, see rewards.* settings
  compress, colorful, framing                      of the picture alone
  jpeg, whole, centred, filled, steady, plain, single   no gradient: for --method ddpo
  module:function                                  your own: (rgb [B, 3, H, W], prompts) -> [B]
Several are put on one scale, the spread of the base model's drawings, before they are weighted.

A single reward destroys a model in some ten steps: pictures score higher and show less. The guard
watches a score that is not optimised, and keeps the best LoRA; give two rewards where you can.

examples:
  {program()} align --reward compress:1,clip:1
  {program()} align --reward imagereward --prompts prompts.txt --config configs/sd15.yaml \\
      align.guidance_scale=5 align.steps=50 --k gaussian
  {program()} align --reward steady:1,clip:1 --method ddpo align.group=4 align.batch=16
  {program()} "a red mushroom" --lora outputs/20260101-120000-align-clip-s0/lora:0.8
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `align`."""
    parser = subparsers.add_parser(
        "align",
        help="train a LoRA of the 2D model on a reward",
        description="Train a LoRA of the 2D model on a reward (AlignProp, ReFL or DDPO).",
        epilog=EPILOG,
    )
    add_words(parser, "key=value", "settings to change, such as align.lr=3e-3 or prior.path=sd15")
    parser.add_argument("--reward", metavar="NAME[:WEIGHT],...", required=True, help="the rewards")
    parser.add_argument(
        "--prompts", metavar="FILE", type=Path, help="one prompt a line; the guard keeps each 4th"
    )
    parser.add_argument("--method", choices=("alignprop", "refl", "ddpo"), help="(alignprop)")
    parser.add_argument("--steps", metavar="N", help="training steps (200)")
    parser.add_argument("--k", metavar="LAW", help="fixed:K, uniform:K or gaussian (uniform:5)")
    parser.add_argument("--rank", metavar="N", help="rank of a new LoRA (4)")
    parser.add_argument(
        "--text-encoder", action="store_const", const="true", help="train the text encoders as well"
    )
    parser.add_argument("--repeat-last", metavar="N", help="DRaFT-LV with N fresh noises")
    guards = ("auto", "clip", "aesthetic", "dino", "tower", "none")
    parser.add_argument("--guard", choices=guards, help="held-out score (auto)")
    parser.add_argument("--from", dest="start", metavar="LORA", help="continue to train this LoRA")
    parser.add_argument("--seed", metavar="N", help="of all randomness (0)")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train the LoRA; print the folder of the best one."""
    config = config_of(arguments)
    prompts = read_prompts(arguments.prompts, config)
    from vp3d.runs.terminal import TerminalDisplay
    from vp3d.tuning.build import check_request, split_prompts, start_run
    from vp3d.tuning.run import align

    check_request(config)
    split = split_prompts(prompts, config.visual_prompt.view)
    run_folder = start_run(config, split)
    with TerminalDisplay() as display:
        lora = align(run_folder, display.watch, config.align.reward)
    sys.stdout.write(f"{lora}\n")
    return 0


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration that an `align` command line asks for."""
    options = {
        "reward": arguments.reward,
        "method": arguments.method,
        "updates": arguments.steps,
        "k": arguments.k,
        "rank": arguments.rank,
        "text_encoder": arguments.text_encoder,
        "repeat_last": arguments.repeat_last,
        "guard": arguments.guard,
        "start": arguments.start,
    }
    given = [f"align.{key}={value}" for key, value in options.items() if value is not None]
    config = read_config(None, config_files(arguments), given + read_overrides(arguments))
    if arguments.start is not None and not config.align.start.strip():
        raise UserError("--from is empty: give a LoRA, or omit the option")
    if config.align.start:
        config.align.start = str(lora_file(expand(config.align.start)).absolute())
    pin_locations(config)
    return config


def read_prompts(path: Path | None, config: Config) -> list[str]:
    """The lines of a prompt file; captions of the toybox where the embedded model gets none.

    Words are said in those that the model knows, as in `generate`.

    Raises:
        UserError: the file is none, or the model cannot draw a prompt of it.
    """
    if path is None:
        if config.prior.vocabulary != Config().prior.vocabulary:
            raise UserError("align needs --prompts FILE for this model, one prompt a line")
        import numpy as np

        from vp3d.worlds.toybox.data import draw_specs
        from vp3d.worlds.toybox.scenes import caption

        specs = draw_specs(np.random.default_rng(config.seed), TOYBOX_PROMPTS, reserved=False)
        return [caption(spec) for spec in specs]
    if not path.is_file():
        raise UserError(f"--prompts {path} is not a file: give a text file, one prompt a line")
    with disk_errors(path, "give another file"):
        if path.stat().st_size > MAX_PROMPT_BYTES:
            raise UserError(f"--prompts {path} is larger than 1 MB: give a text file of prompts")
        text = path.read_bytes()
    try:
        lines = [line.strip() for line in text.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {path} is not UTF-8 text: save it as UTF-8") from error
    vocabulary = config.prior.vocabulary
    words = load_vocabulary(locate(vocabulary)) if vocabulary else None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        check_text(line, f"prompt of {path.name}")
        prompts.append(read_prompt(line, words).text)
        try:
            check_prompt(prompts[-1], words)
        except UserError as error:
            raise UserError(f"--prompts {path}, line {number}: {error}") from error
    return prompts
