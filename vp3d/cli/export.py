"""`export`: export a run again, with other settings, or a mesh file of any origin."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vp3d.cli.arguments import Subparsers, add_mesh, add_words, read_overrides
from vp3d.config.loader import load_config
from vp3d.config.paths import program

READ_GROUPS = ("export", "backend", "cuda")  # all settings that `export` reads
EPILOG = f"""\
The settings stay with the run: its config.yaml and report keep those of the last export, and an
`export` or `resume` without options uses them again. Mesh files of other formats that exist in the
run folder are written again too, so that none shows an older mesh.

A mesh file (.glb, .gltf, .obj, .ply, .stl, .3mf or .usdz) is written in other formats next to it,
as NAME_export.*: it keeps its triangles, textures and colours unless a setting changes them.

examples:
  {program()} export outputs/RUN --faces 2000 export.grid=144
  {program()} export outputs/RUN --formats glb export.turntable=gif
  {program()} export outputs/RUN --formats stl,3mf export.print=true export.size_mm=80
  {program()} export chair.glb --formats usdz,3mf export.print=true
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `export`."""
    parser = subparsers.add_parser(
        "export",
        help="export a run again, with other settings, or a mesh file",
        description="Export a run again, with other settings, or a mesh file of any origin.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run folder, or a mesh file of any origin"
    )
    add_words(parser, "key=value", "settings to change, for example export.grid=144")
    add_mesh(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the mesh files of the run or of the mesh file; print their folder or their names."""
    overrides = read_overrides(arguments, READ_GROUPS)
    if arguments.run.is_file():
        return _export_file(arguments.run, overrides)
    from vp3d.runs.folder import RunFolder

    RunFolder.open(arguments.run).config(overrides=overrides)  # a mistake is answered at once
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay

    with TerminalDisplay() as display:
        config = pipeline.stored_config(arguments.run, display.watch, overrides)
        asset = pipeline.export_run(arguments.run, config, display.watch)
    sys.stdout.write(f"{asset.run_dir}\n")
    return 0


def _export_file(path: Path, overrides: list[str]) -> int:
    """Write a mesh file in other formats; print their names."""
    given = {word.partition("=")[0] for word in overrides}
    keep = [] if "export.faces" in given else ["export.faces=0"]
    config = load_config(overrides=[*keep, *overrides]).export
    from vp3d import pipeline
    from vp3d.runs.terminal import TerminalDisplay

    light = config.light if "export.light" in given else "kept"
    with TerminalDisplay() as display:
        files = pipeline.export_file(path, config, display.watch, light)
    sys.stdout.write("".join(f"{file}\n" for file in files.values()))
    return 0
