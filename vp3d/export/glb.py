"""The GLB writer: binary glTF 2.0, Y up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb

from vp3d.export.mesh_data import _mesh_of, _normals_of, _to_bytes, srgb_to_linear
from vp3d.system.files import write_bytes
from vp3d.types import Asset, Mesh

TO_GLTF = [1, 2, 0]  # our axes in glTF's order: X = y, Y = z, Z = x


def write_glb(source: Asset | Mesh, path: Path) -> None:
    """One self-contained binary glTF: NORMAL, TEXCOORD_0, sRGB baseColorTexture inside, metallic 0, roughness 1."""
    mesh = _mesh_of(source)
    body = trimesh.Trimesh(
        mesh.vertices[:, TO_GLTF],
        mesh.faces,
        vertex_normals=_normals_of(mesh)[:, TO_GLTF],
        process=False,
    )
    if mesh.texture is not None and mesh.uv is not None:
        material = trimesh.visual.material.PBRMaterial(
            name="surface",
            baseColorTexture=Image.fromarray(mesh.texture),
            metallicFactor=0.0,
            roughnessFactor=1.0,
        )
        body.visual = trimesh.visual.TextureVisuals(
            uv=mesh.uv.astype(np.float64), material=material
        )
    elif mesh.vertex_colors is not None:
        body.visual = trimesh.visual.ColorVisuals(
            body, vertex_colors=_to_bytes(srgb_to_linear(mesh.vertex_colors))
        )
    scene = trimesh.Scene()
    scene.add_geometry(body, node_name="object", geom_name="object")
    write_bytes(path, export_glb(scene, include_normals=True, unitize_normals=True))
