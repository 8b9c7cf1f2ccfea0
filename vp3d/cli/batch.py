"""`batch`: make the assets of a prompt file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vp3d.cli.arguments import (
    Subparsers,
    add_config,
    add_engine,
    add_preset,
    add_words,
    check_engine,
    config_files,
    option_overrides,
    read_config,
    split_words,
)
from vp3d.config.paths import program
from vp3d.errors import UserError

EXIT_FAILED = 1  # exit code if an asset failed
FIXED = ("prompt", "seed", "preset", "output_dir")  # settings that a batch fixes itself
MOST = {"seeds": 10_000, "best_of": 1000, "workers": 1024}  # option -> its highest value
EPILOG = f"""\
PROMPTS has one prompt a line, which may end in seed=N; # starts a comment. In a .jsonl file each
line is an object: {{"prompt": "a red sphere", "seed": 3}}.

--work has the run folders, batch.jsonl (a line for each asset) and index.html (all assets).
The same command continues where it was interrupted and makes nothing twice; a killed worker is
replaced and its run continues at its last checkpoint. A prompt that fails is recorded with its
reason and stops no other; the exit code is then {EXIT_FAILED}.

--best-of N makes N seeds of each asset and takes the one with the highest text reward. That is the
reward the runs were optimised with: it chooses, and is no measure of quality.

docs/how_to/many_prompts.md has examples for Slurm, Ray and SkyPilot.

examples:
  {program()} batch prompts.txt --preset draft --workers 2
  {program()} batch prompts.jsonl --seeds 2 --best-of 4 --work outputs/chairs
  {program()} batch prompts.txt --work /shared/chairs --shard $SLURM_ARRAY_TASK_ID/64
  {program()} batch prompts.txt --work /shared/chairs --engine ray --address auto --gpus 0.25 \\
      cuda.memory_gb=8
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `batch`."""
    parser = subparsers.add_parser(
        "batch",
        help="make the assets of a prompt file, on one machine or many",
        description="Make the assets of a prompt file, on one machine or many.",
        epilog=EPILOG,
    )
    add_words(parser, "PROMPTS [key=value]", "the prompt file, and settings of the runs to change")
    add_preset(parser, "standard")
    add_config(parser)
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="assets a prompt (1)")
    parser.add_argument(
        "--best-of", metavar="N", type=int, default=1, help="seeds an asset is chosen from (1)"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes (1)")
    parser.add_argument(
        "--shard", metavar="I/N", default="0/1", help="every N-th asset from I on: 0/4 to 3/4 (0/1)"
    )
    parser.add_argument(
        "--work", metavar="DIR", type=Path, help="folder of the runs (outputs/batch-NAME)"
    )
    add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make what is not finished; report the assets that failed."""
    plain, overrides = split_words(arguments.words)
    if len(plain) != 1:
        raise UserError(f"batch takes one prompt file: {program()} batch prompts.txt")
    check_options(arguments, overrides)
    overrides = option_overrides(arguments) + overrides
    files = [path.absolute() for path in config_files(arguments)]
    read_config(arguments.preset, files, overrides)
    prompts = Path(plain[0])
    work = arguments.work or Path("outputs") / f"batch-{prompts.stem}"
    from vp3d.batch.assets import parse_shard
    from vp3d.batch.command import BatchOptions, run_batch
    from vp3d.engine.pool import Pool
    from vp3d.evaluate.runner import Settings

    settings = Settings(work.absolute(), arguments.preset, tuple(files), tuple(overrides), light="")
    options = BatchOptions(
        arguments.seeds,
        arguments.best_of,
        parse_shard(arguments.shard),
        Pool(arguments.workers, arguments.engine, arguments.address, arguments.gpus, None),
    )
    lines = run_batch(prompts, settings, options)
    failed = [line for line in lines if line["failure"]]
    for line in failed:
        reason = f"{line['failure']}, {line['reason']}"
        sys.stderr.write(f"vp3d: {line['prompt']} (seed {line['seed']}) failed: {reason}\n")
    sys.stdout.write(f"{len(lines) - len(failed)} of {len(lines)} assets in {work}\n")
    return EXIT_FAILED if failed else 0


def check_options(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Refuse settings that a batch fixes, options of another engine, and numbers out of range."""
    for word in overrides:
        if word.partition("=")[0] in FIXED:
            raise UserError(
                f"'{word}' cannot be set: prompts and seeds are those of the file; "
                "see --preset and --work"
            )
    for name, highest in MOST.items():
        if not 1 <= (given := getattr(arguments, name)) <= highest:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} takes a whole number from 1 to {highest}, not {given}")
    check_engine(arguments)
