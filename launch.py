#!/usr/bin/env python3
"""The way in: `python launch.py "a red mushroom with a white stem"`; `--help` says the rest."""

import sys

from vp3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
