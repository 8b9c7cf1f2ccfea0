"""VP3D: text to textured 3D assets by visual-prompted score distillation.

    from vp3d import generate, load_config

    config = load_config("draft", prompt="a red mushroom with a white stem")
    asset = generate(config)
    print(asset.path("glb"), asset.figures)

Names are imported when they are first used, so `import vp3d` loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vp3d.build import Models, load_models
    from vp3d.config.loader import load_config
    from vp3d.config.schema import Config
    from vp3d.picture_check import hallucination_score
    from vp3d.pipeline import generate, resume
    from vp3d.runs.events import Watch
    from vp3d.types import Asset, Mesh

__version__ = "0.2.0.dev0"
__all__ = [
    "Asset",
    "Config",
    "Mesh",
    "Models",
    "Watch",
    "generate",
    "hallucination_score",
    "load_config",
    "load_models",
    "resume",
]

_HOME = {
    "Asset": "vp3d.types",
    "Config": "vp3d.config.schema",
    "Mesh": "vp3d.types",
    "Models": "vp3d.build",
    "Watch": "vp3d.runs.events",
    "generate": "vp3d.pipeline",
    "hallucination_score": "vp3d.picture_check",
    "load_config": "vp3d.config.loader",
    "load_models": "vp3d.build",
    "resume": "vp3d.pipeline",
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module at first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'vp3d' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
