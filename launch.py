#!/usr/bin/env python3
"""Run VP3D from a checkout: `python launch.py "a red mushroom with a white stem"`."""

import sys

from vp3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
