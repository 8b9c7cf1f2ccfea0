"""`models`: list, fetch, check and convert published weights."""

from __future__ import annotations

import argparse
import sys

from vp3d.cli.arguments import Subparsers
from vp3d.config.paths import expand, program
from vp3d.errors import UserError

EPILOG = """\
actions:
  list [NAME ...]      the models of the catalogue, and which are fetched; with names, also their
                       files, hashes and sources
  fetch NAME ...       download and check; from then on VP3D uses the files offline. After an
                       interruption, run the same command again: it resumes
  verify [NAME ...]    check every byte of the fetched models
  convert NAME FILE    write safetensors from a pickle that you downloaded (ImageReward, HPSv2,
                       aesthetic)

Models are kept in models/ of the checkout, or in ~/.local/share/vp3d/models if VP3D is installed,
or in $VP3D_MODELS. Sources are tried in this order: --from, $VP3D_MIRRORS, the catalogue's own.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `models`."""
    parser = subparsers.add_parser(
        "models",
        help="list, fetch and check published weights",
        description="List, fetch and check published weights.",
        epilog=EPILOG,
    )
    parser.add_argument("action", choices=("list", "fetch", "verify", "convert"), help="see below")
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="names of `models list`"
    )
    parser.add_argument(
        "--from",
        dest="sources",
        metavar="SOURCE",
        action="append",
        default=[],
        help="a folder or http(s) mirror to fetch from, repeatable",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one action; print the list, the findings or the folders."""
    from vp3d.weights import fetch, verify

    action, names = arguments.action, arguments.names
    if action == "fetch" and not names:
        raise UserError(f"`models fetch` needs a NAME; `{program()} models list` shows them")
    if action == "convert" and len(names) != 2:
        raise UserError("`models convert` needs a NAME and the FILE to convert")
    if action == "list":
        sys.stdout.write(verify.listing(names))
    elif action == "verify":
        sys.stdout.write(verify.verify(names))
    elif action == "fetch":
        for folder in fetch.fetch_all(names, arguments.sources):
            sys.stdout.write(f"{folder}\n")
    else:
        from vp3d.weights.convert_pickle import convert

        sys.stdout.write(f"{convert(names[0], expand(names[1]), arguments.sources)}\n")
    return 0
