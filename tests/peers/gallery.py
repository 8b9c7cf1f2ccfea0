"""Pictures of assets with and without the light of the 2D model, by a browser.

    python -m tests.peers.gallery RUN... --out docs/gallery/light.webp [--modules NODE_MODULES]

Three pictures of each: with its light (`export.light=baked`, unlit), without it, and without it
under another lamp, with normal map and occlusion, as a viewer draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from tests.peers.export import exported
from tests.peers.pictures import FOV_DEG, Browser
from vp3d.export.glb import write_glb
from vp3d.export.read import fit_to_cube, read_mesh
from vp3d.export.style import Style
from vp3d.render.camera import orbit
from vp3d.types import Asset

CELL, LABEL, COLUMNS = 128, 18, 3  # pixels; assets in a row
CAMERA = orbit([30.0], [18.0], 2.6, FOV_DEG)
GROUND = 0xB4B4B4  # grey, so that white parts are seen
LAMP = (-1.0, 1.2, 0.9)  # from the left, where the embedded world has none; glTF's frame


def triplet(mesh: Path, title: str, browser: Browser, work: Path) -> Image.Image:
    """The three pictures of an asset, next to each other, under its title."""
    baked = exported(mesh, work / "baked", formats=["glb"], light="baked")["glb"]
    bare = exported(mesh, work / "bare", formats=["glb"], light="removed")["glb"]
    unlit = work / "unlit.glb"
    colors = dataclasses.replace(fit_to_cube(read_mesh(bare)), maps={}, tangents=None)
    write_glb(Asset(title, colors, work), unlit, Style(unlit=True))
    looks = ((baked, None), (unlit, None), (bare, LAMP))
    drawn = [browser.draw(path, CAMERA, lamp, GROUND)[0] for path, lamp in looks]
    tile = Image.new("RGB", (3 * CELL, CELL + LABEL), "white")
    for column, picture in enumerate(drawn):
        small = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BOX)
        tile.paste(small, (column * CELL, LABEL))
    ImageDraw.Draw(tile).text((6, 3), title, fill="black")
    return tile


def main() -> int:
    """Draw the assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--modules", type=Path, default=Path("node_modules"))
    options = parser.parse_args()
    browser, tiles = Browser(options.modules.resolve()), []
    try:
        for run in options.runs:
            title = " ".join(run.resolve().name.split("-")[2:-1])
            with tempfile.TemporaryDirectory() as work:
                tiles.append(triplet(run / "model.glb", title, browser, Path(work)))
    finally:
        browser.close()
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + 16), rows * (height + 8)), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        sheet.paste(tile, (column * (width + 16) + 8, row * (height + 8)))
    sheet.save(options.out, quality=88)
    return 0


if __name__ == "__main__":
    sys.exit(main())
