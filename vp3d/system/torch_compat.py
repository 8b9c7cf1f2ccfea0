"""Make torchvision importable with a torch it was not built for.

Import this module before anything that imports torchvision. PyPI's torchvision is a CUDA build.
With a CPU-only torch its `_C` library does not load, and
`import torchvision` then fails with "operator torchvision::nms does not exist", taking open_clip
and parts of transformers with it. None of its operators are used here, so the missing ones are
declared without a body: importing works, and calling one still fails.

`freeze` prepares a loaded network for inference, with the same results at every load.
`multiplies_bfloat16` says where that precision is faster.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing_operators() -> list[str]:
    """Declare torchvision's operators that its own library did not register.

    Returns their names.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    for suffix in ("so", "pyd", "dll"):
        for library in folder.glob(f"_C*.{suffix}"):
            _load(library)
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        _FRAGMENT.define(_SCHEMAS[name])
    return missing


def _load(library: Path) -> bool:
    """Whether torchvision's native library fits this torch."""
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError):  # built for another torch: the case this module handles
        return False
    return True


# Must live as long as the operators that it declares.
_FRAGMENT = torch.library.Library("torchvision", "FRAGMENT")
DECLARED = declare_missing_operators()


def freeze(module: M) -> M:
    """`module` itself, in evaluation mode, without gradients, its weights copied.

    Weights that were read from a safetensors file are views of the file's buffer, at an address
    that its header decides. Sums over unaligned memory may round differently from one load to the
    next, and a resumed run must not.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
    return module.eval().requires_grad_(False)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own on `device`: without
    them a CPU emulates, slowly.
    """
    able = torch.cpu.get_capabilities()
    return device.type == "cuda" or bool(able.get("avx512_bf16") or able.get("amx_bf16"))
