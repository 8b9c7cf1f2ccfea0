"""What a writer may know of the request besides the mesh; the defaults suit any mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Up = Literal["z", "y"]
ROUGHNESS = 0.9  # of every material: nothing in a field of colours measures it
METALLIC = 0.0


@dataclass(frozen=True)
class Style:
    """How a mesh is dressed in a file.

    Attributes:
        names: "prompt" names object, mesh and material after the prompt; "plain" calls them
            "object".
        unlit: Whether the colours contain light, so that a viewer should add none (GLB, USDZ).
        compress: Of the numbers in a GLB: "none", "quantize" or "draco".
        image: Of the pictures in a GLB: "png" or "webp".
        colors: Most colours of a 3MF file, 1 to 16.
        up: The axis that points up in OBJ, PLY and STL; for the comments of these files.
        extras: What a GLB, USDZ or 3MF says about its origin: prompt, seed, version, licence.
    """

    names: Literal["prompt", "plain"] = "prompt"
    unlit: bool = False
    compress: Literal["none", "quantize", "draco"] = "none"
    image: Literal["png", "webp"] = "png"
    colors: int = 4
    up: Up = "z"
    extras: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Style()
