"""`doctor`: report what works on this machine, and why the rest does not."""

from __future__ import annotations

import argparse
import sys

from vp3d.cli.arguments import (
    Subparsers,
    add_config,
    add_words,
    config_files,
    read_config,
    read_overrides,
)

EXIT_BROKEN = 1  # something that the default run needs does not work


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="report what works on this machine, and why the rest does not",
        description="Report what works on this machine, and why the rest does not.",
    )
    add_words(parser, "key=value", "settings to check for, for example output_dir=/data")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings as a table; exit code 1 when one is BROKEN."""
    config = read_config(None, config_files(arguments), read_overrides(arguments))
    from vp3d.cli.machine_checks import healthy, report, run_checks

    checks = run_checks(config)
    sys.stdout.write(report(checks))
    return 0 if healthy(checks) else EXIT_BROKEN
