"""Conventions of the mesh files, and the data that every writer and the reader need.

Frames: inside VP3D a mesh is right-handed, z up, facing +x. glTF is Y up, so a GLB stores our
(x, y, z) as (y, z, x): the object stands upright and faces +Z, glTF's forward. OBJ, PLY and STL
keep our frame unless export.up=y (vp3d/export/frame.py, which also changes size and origin).
Colour: textures are sRGB PNGs. Vertex colours are linear in glTF and sRGB in the other formats.
STL has no colour.
UV: v points up in memory and in OBJ. glTF's v points down; its writer (trimesh) and its reader flip
it.
Units: world units; the object is inside [-1, 1]^3.
"""

from __future__ import annotations

import re

import numpy as np
import trimesh

from vp3d.render.raster import PLAIN_COLOR, sample_texture
from vp3d.types import Mesh

TO_GLTF = [1, 2, 0]  # our axes in glTF's order: X = y, Y = z, Z = x
FROM_GLTF = [2, 0, 1]  # glTF's axes in our order: x = Z, y = X, z = Y
NAME_LENGTH = 60  # characters; Blender keeps 63 bytes
FRAME = "VP3D mesh, right-handed, z up, facing +x"  # comment in files that keep our frame
FRAME_Y_UP = "VP3D mesh, right-handed, y up, facing +z"  # the same where export.up=y


def object_name(prompt: str) -> str:
    """A name for the object, mesh and material of `prompt`: lower-case words with dashes.

    Letters of every alphabet are kept, everything else becomes a dash, because many readers split
    names at spaces. At most NAME_LENGTH characters, cut between words; "object" if nothing is left.

    Example:
        >>> object_name("a red mushroom, with a WHITE stem")
        'a-red-mushroom-with-a-white-stem'
    """
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    if len(words) > NAME_LENGTH:
        kept = words[: NAME_LENGTH + 1].rpartition("-")[0]
        words = kept or words[:NAME_LENGTH]
    return words or "object"


def named(prompt: str, names: str) -> str:
    """`object_name(prompt)`, or "object" where `names` is "plain"."""
    return object_name(prompt if names == "prompt" else "")


def frame_comment(up: str) -> str:
    """What a text or binary file says about its axes; `up` is "z" or "y"."""
    return FRAME if up == "z" else FRAME_Y_UP


def color_to_uint8(color: np.ndarray) -> np.ndarray:
    """Colours in [0, 1], any shape, as uint8; values outside are clipped."""
    return np.round(255.0 * np.clip(color, 0.0, 1.0)).astype(np.uint8)


def vertex_colors_of(mesh: Mesh) -> np.ndarray:
    """sRGB vertex colours `[V, 3]` in [0, 1].

    Those of the mesh if it has them, else its texture at the vertices, else plain grey.
    """
    if mesh.vertex_colors is not None:
        return mesh.vertex_colors
    if mesh.texture is not None and mesh.uv is not None:
        return sample_texture(mesh.texture, mesh.uv)
    return np.full((len(mesh.vertices), 3), PLAIN_COLOR, np.float32)


def vertex_normals_of(mesh: Mesh) -> np.ndarray:
    """Unit vertex normals `[V, 3]`: those of the mesh if it has them, else computed ones."""
    return computed_normals(mesh) if mesh.normals is None else mesh.normals


def computed_normals(mesh: Mesh) -> np.ndarray:
    """Vertex normals `[V, 3]` float32: the mean of the faces around a vertex, weighted by angle.

    Unit length, or zero at a vertex that no face with area uses.
    """
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return np.array(body.vertex_normals, np.float32)
