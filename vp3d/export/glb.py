"""The GLB writer: binary glTF 2.0, one self-contained file, Y up, facing +Z.

Conventions as in vp3d/export/mesh_data.py. The texture is the sRGB base colour of a dielectric,
rough material. Vertex colours, which glTF stores in linear light, are written only if there is no
texture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb

from vp3d.export.mesh_data import TO_GLTF, color_to_uint8, srgb_to_linear, vertex_normals_of
from vp3d.system.files import write_bytes
from vp3d.types import Asset


def write_glb(asset: Asset, path: Path) -> None:
    """Write the mesh of `asset` as GLB: NORMAL, TEXCOORD_0 and an sRGB baseColorTexture.

    The material has metallic 0 and roughness 1. Atomic; the same asset gives the same bytes.
    """
    mesh = asset.mesh
    normals = vertex_normals_of(mesh)[:, TO_GLTF]
    body = trimesh.Trimesh(
        mesh.vertices[:, TO_GLTF], mesh.faces, vertex_normals=normals, process=False
    )
    if mesh.texture is not None and mesh.uv is not None:
        material = trimesh.visual.material.PBRMaterial(
            name="surface",
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
    scene.add_geometry(body, node_name="object", geom_name="object")
    write_bytes(path, export_glb(scene, include_normals=True, unitize_normals=True))
