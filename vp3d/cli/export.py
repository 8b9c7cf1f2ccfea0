"""`export`: export a run again, with other settings."""

from __future__ import annotations

import argparse
import sys

from vp3d.cli.arguments import Subparsers, add_mesh, add_run, add_words, read_overrides
from vp3d.config.paths import program

READ_GROUPS = ("export", "backend", "cuda")  # all settings that `export` reads
EPILOG = f"""\
The settings stay with the run: its config.yaml and report keep those of the last export, and an
`export` or `resume` without options uses them again. Mesh files of other formats that exist in the
run folder are written again too, so that none shows an older mesh.

examples:
  {program()} export outputs/RUN --faces 2000 export.grid=144
  {program()} export outputs/RUN --formats glb export.turntable=gif
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `export`."""
    parser = subparsers.add_parser(
        "export",
        help="export a run again, with other settings",
        description="Export a run again, with other settings.",
        epilog=EPILOG,
    )
    add_run(parser)
    add_words(parser, "key=value", "settings to change, for example export.grid=144")
    add_mesh(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the mesh files of the run again; print its folder."""
    overrides = read_overrides(arguments, READ_GROUPS)
    from vp3d.runs.folder import RunFolder

    RunFolder.open(arguments.run).config(overrides=overrides)  # a mistake is answered at once
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay

    with TerminalDisplay() as display:
        config = pipeline.stored_config(arguments.run, display.watch, overrides)
        asset = pipeline.export_run(arguments.run, config, display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0
