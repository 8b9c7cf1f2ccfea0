"""Makes torchvision importable beside a torch it was not built for. Import this module before anything that needs torchvision.

PyPI's torchvision is a CUDA build. Beside a CPU-only torch its `_C` library does not load, and `import torchvision`
then fails with "operator torchvision::nms does not exist", taking open_clip and parts of transformers with it. None of
its operators are used here, so the missing ones are declared without a body: importing works, and calling one still fails.

`freeze` makes a loaded network ready for use: same weights, same results, however often it is loaded. `multiplies_bfloat16`
tells where that precision is quicker.
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
    """Declare torchvision's operators that its own library does not bring; returns their names (empty: nothing to mend)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    for library in (
        path
        for suffix in ("so", "pyd", "dll")
        for path in Path(spec.origin).parent.glob(f"_C*.{suffix}")
    ):
        _load(library)
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        _FRAGMENT.define(_SCHEMAS[name])
    return missing


def _load(library: Path) -> bool:
    """Whether torchvision's native library fits this torch."""
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError):  # built for another torch: the case this module exists for
        return False
    return True


_FRAGMENT = torch.library.Library(
    "torchvision", "FRAGMENT"
)  # must live as long as the declared operators
DECLARED = declare_missing_operators()


def freeze(module: M) -> M:
    """`module` itself, in evaluation mode, without gradients, and with its weights in memory of their own.

    Weights read from a safetensors file lie in the file's buffer at whatever address its header leaves them. Sums over
    unaligned memory may round differently from one load to the next, and a resumed run must not.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
    return module.eval().requires_grad_(False)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own on `device`: without them a CPU emulates, slowly."""
    able = torch.cpu.get_capabilities()
    return device.type == "cuda" or bool(able.get("avx512_bf16") or able.get("amx_bf16"))
