"""The GLB writer: binary glTF 2.0, one self-contained file, Y up, facing +Z.

Conventions as in vp3d/export/mesh_data.py. The texture is the sRGB base colour of a dielectric,
rough material; its sampler clamps, so that the border does not mix with the opposite one. Vertex
colours, which glTF stores in linear light, are written only if there is no texture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb

from vp3d.export.mesh_data import (
    TO_GLTF,
    color_to_uint8,
    object_name,
    srgb_to_linear,
    vertex_normals_of,
)
from vp3d.system.files import write_bytes
from vp3d.types import Asset

CLAMP_TO_EDGE, LINEAR, LINEAR_MIPMAP_LINEAR = 33071, 9729, 9987
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963


def write_glb(asset: Asset, path: Path) -> None:
    """Write the mesh of `asset` as GLB: NORMAL, TEXCOORD_0 and an sRGB baseColorTexture.

    Node, mesh and material are named after the prompt. The material has metallic 0 and roughness 1.
    Atomic; the same asset gives the same bytes.
    """
    mesh, name = asset.mesh, object_name(asset.prompt)
    normals = vertex_normals_of(mesh)[:, TO_GLTF]
    body = trimesh.Trimesh(
        mesh.vertices[:, TO_GLTF], mesh.faces, vertex_normals=normals, process=False
    )
    if mesh.texture is not None and mesh.uv is not None:
        material = trimesh.visual.material.PBRMaterial(
            name=name,
            baseColorTexture=Image.fromarray(mesh.texture),
            metallicFactor=0.0,
            roughnessFactor=1.0,
        )
        uv = mesh.uv.astype(np.float64)
        body.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    elif mesh.vertex_colors is not None:
        colors = color_to_uint8(srgb_to_linear(mesh.vertex_colors))
        body.visual = trimesh.visual.ColorVisuals(body, vertex_colors=colors)
    scene = trimesh.Scene()
    scene.add_geometry(body, node_name=name, geom_name=name)
    data = export_glb(
        scene, include_normals=True, unitize_normals=True, tree_postprocessor=_complete
    )
    write_bytes(path, data)


def _complete(tree: dict[str, Any]) -> None:
    """Add what trimesh leaves out: the sampler of each texture, the target of each buffer view."""
    if tree.get("textures"):
        sampler = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR}
        tree["samplers"] = [{**sampler, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}]
        for texture in tree["textures"]:
            texture["sampler"] = 0
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            targets = dict.fromkeys(primitive["attributes"].values(), ARRAY_BUFFER)
            targets[primitive["indices"]] = ELEMENT_ARRAY_BUFFER
            for accessor, target in targets.items():
                view = tree["accessors"][accessor]["bufferView"]
                tree["bufferViews"][view]["target"] = target
