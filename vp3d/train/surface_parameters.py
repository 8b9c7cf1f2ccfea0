"""What the refine stage optimises: the vertices of a mesh and a texture as a Laplacian pyramid.

A texel that no view shows changes with the coarse levels only, so that it follows its surroundings
(Burt and Adelson 1983, "The Laplacian pyramid as a compact image code").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vp3d.render.raster_soft import Topology, topology_of
from vp3d.types import Mesh

COARSEST = 64  # texels of a side of the coarsest level of the texture


@dataclass(frozen=True)
class Start:
    """The mesh that the refine stage starts from, on the CPU.

    Attributes:
        vertices: Welded positions `[V, 3]` float32.
        faces: `[F, 3]` int64.
        uv: Texture coordinates of the corners `[F, 3, 2]` float32, v up.
        texture: `[3, T, T]` float32 in [0, 1], row 0 at v = 1.
    """

    vertices: Tensor
    faces: Tensor
    uv: Tensor
    texture: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name; the texture in 8 bits."""
        texture = (self.texture * 255.0).round().to(torch.uint8)
        return {"vertices": self.vertices, "faces": self.faces, "uv": self.uv, "texture": texture}

    def topology(self, device: torch.device | str) -> Topology:
        """Its fixed part, for the renderer."""
        return topology_of(self.faces.numpy(), self.uv.numpy(), device)


def start_of(mesh: Mesh) -> Start:
    """A mesh with UVs and a texture, welded: vertices that a seam split become one again.

    Raises:
        ValueError: The mesh has no UVs or no texture.
    """
    if mesh.uv is None or mesh.texture is None:
        raise ValueError("refinement needs a mesh with UVs and a texture")
    positions, index = np.unique(mesh.vertices.astype(np.float32), axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces].astype(np.int64)
    texture = torch.from_numpy(np.ascontiguousarray(mesh.texture[..., :3]))
    return load_start(
        {
            "vertices": torch.from_numpy(positions),
            "faces": torch.from_numpy(faces),
            "uv": torch.from_numpy(np.ascontiguousarray(mesh.uv[mesh.faces], np.float32)),
            "texture": texture.permute(2, 0, 1).contiguous(),
        }
    )


def load_start(tensors: Mapping[str, Tensor]) -> Start:
    """The inverse of `Start.tensors`."""
    texture = tensors["texture"].float() / 255.0
    return Start(tensors["vertices"], tensors["faces"], tensors["uv"], texture)


def mesh_of(start: Start, vertices: Tensor | None = None, texture: Tensor | None = None) -> Mesh:
    """A mesh with the topology of `start`, split again where corners differ in their UVs.

    Args:
        start: Faces and texture coordinates.
        vertices: Welded positions `[V, 3]`; None for those of `start`.
        texture: `[3, T, T]`; values outside [0, 1] are clipped. None for that of `start`.
    """
    vertices = start.vertices if vertices is None else vertices
    texture = start.texture if texture is None else texture
    corners = np.concatenate(
        [start.faces.reshape(-1, 1).numpy().astype(np.float64), start.uv.reshape(-1, 2).numpy()], 1
    )
    unique, index = np.unique(corners, axis=0, return_inverse=True)
    positions = vertices.detach().cpu().numpy()[unique[:, 0].astype(np.int64)]
    pixels = (texture.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return Mesh(
        positions.astype(np.float32),
        index.reshape(-1, 3).astype(np.int64),
        uv=unique[:, 1:].astype(np.float32),
        texture=np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()),
    )


class Surface(nn.Module):
    """Offsets of the vertices and the levels of the texture.

    Args:
        start: The mesh, which the parameters of a new surface show unchanged.
        device: Where they are.
    """

    def __init__(self, start: Start, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.base: Tensor
        self.register_buffer("base", start.vertices.to(device), persistent=False)
        self.offset = nn.Parameter(torch.zeros_like(self.base))
        levels = decompose(start.texture.to(device))
        self.levels = nn.ParameterList([nn.Parameter(level) for level in levels])

    def vertices(self) -> Tensor:
        """Positions `[V, 3]`, world units."""
        return self.base + self.offset

    def texture(self) -> Tensor:
        """`[3, T, T]`, about [0, 1]."""
        return compose(list(self.levels))

    def values(self) -> dict[str, Tensor]:
        """Copies of the parameters (any shape and range), without graph."""
        return {name: value.detach().clone() for name, value in self.state_dict().items()}


def decompose(texture: Tensor) -> list[Tensor]:
    """The levels of a texture `[C, T, T]`, the coarsest first; `compose` adds them up again.

    Each level has half the side of the next one, until that is odd or `COARSEST` is reached.
    """
    pictures = [texture]
    while pictures[0].shape[-1] > COARSEST and pictures[0].shape[-1] % 2 == 0:
        pictures.insert(0, F.avg_pool2d(pictures[0][None], 2)[0])
    finer = [
        here - enlarged(before, here.shape[-1])
        for before, here in zip(pictures, pictures[1:], strict=False)
    ]
    return [pictures[0], *finer]


def compose(levels: list[Tensor]) -> Tensor:
    """The texture `[C, T, T]` of levels from `decompose`, differentiable."""
    picture = levels[0]
    for level in levels[1:]:
        picture = enlarged(picture, level.shape[-1]) + level
    return picture


def enlarged(picture: Tensor, side: int) -> Tensor:
    """`picture [C, H, H]` with `side` texels a side, bilinear."""
    return F.interpolate(picture[None], (side, side), mode="bilinear", align_corners=False)[0]
