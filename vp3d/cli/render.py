"""`render`: write a turntable of a mesh file or of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vp3d.cli.arguments import Subparsers, add_words, read_overrides
from vp3d.config.addresses import check_address
from vp3d.config.loader import load_config
from vp3d.errors import UserError

READ_KEYS = (  # all settings that `render` reads
    "export.turntable",
    "export.turntable_frames",
    "export.turntable_size",
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `render`."""
    parser = subparsers.add_parser(
        "render",
        help="write a turntable of a mesh file or a run",
        description="Write a turntable of a mesh file or a run.",
    )
    parser.add_argument(
        "path",
        metavar="MESH_OR_RUN",
        type=Path,
        help="a .glb, .gltf, .obj, .ply, .stl, .3mf or .usdz file, or a run folder",
    )
    add_words(
        parser,
        "key=value",
        "export.turntable=gif, export.turntable_frames=96, export.turntable_size=256; no others",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the turntable; print its path."""
    overrides = read_overrides(arguments, READ_KEYS)
    check_address(str(arguments.path), "render")
    if not arguments.path.exists():
        raise UserError(f"{arguments.path} does not exist; give a mesh file or a run folder")
    from vp3d.runs.folder import RunFolder

    if arguments.path.is_dir():
        config = RunFolder.open(arguments.path).config(overrides=overrides)
    else:
        config = load_config(overrides=overrides)
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay

    with TerminalDisplay() as display:
        video = pipeline.render_path(arguments.path, config.export, display.watch)
    sys.stdout.write(f"{video}\n")
    return 0
