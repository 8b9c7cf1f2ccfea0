"""Meshes to files and back.

Frames: GLB is Y up as glTF demands; our (x, y, z), z up and facing +x, is written as (y, z, x), so the object stands on
its feet and faces +Z, glTF's forward. OBJ, PLY and STL keep our own frame: z up, facing +x.
Colour: textures are sRGB PNGs; glTF vertex colours (written only when there is no texture) are linear, the rest sRGB.
UVs: v up in memory and in OBJ; glTF counts v downwards, and trimesh flips it on both ways.
Every file is written whole or not at all, and equal meshes give equal bytes. STL holds no colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb

from vp3d.errors import UserError
from vp3d.render.raster import PLAIN_COLOR, face_normals, sample_texture
from vp3d.run_folder import write_bytes
from vp3d.types import Asset, Mesh

TO_GLTF = [1, 2, 0]  # our axes in glTF's order: X = y, Y = z, Z = x
FROM_GLTF = [2, 0, 1]
SUFFIXES = (".glb", ".obj", ".ply", ".stl")
FRAME = "VP3D mesh, right-handed, z up, facing +x"


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


def write_obj(source: Asset | Mesh, path: Path) -> None:
    """Wavefront OBJ in our frame; a textured mesh gets an .mtl and a .png of the same name beside it."""
    mesh = _mesh_of(source)
    stem = path.stem.replace(" ", "_")
    lines = [f"# {FRAME}"]
    if mesh.texture is not None and mesh.uv is not None:
        png = BytesIO()
        Image.fromarray(mesh.texture).save(png, format="PNG")
        material = (
            f"# {FRAME}\nnewmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {stem}.png\n"
        )
        write_bytes(path.with_name(f"{stem}.png"), png.getvalue())
        write_bytes(path.with_name(f"{stem}.mtl"), material.encode())
        lines += [
            f"mtllib {stem}.mtl",
            "o object",
            "usemtl surface",
            *_rows("v", mesh.vertices),
            *_rows("vt", mesh.uv),
        ]
        corner = "{0}/{0}/{0}"
    else:
        colored = (
            mesh.vertices
            if mesh.vertex_colors is None
            else np.c_[mesh.vertices, mesh.vertex_colors]
        )
        lines += ["o object", *_rows("v", colored)]
        corner = "{0}//{0}"
    lines += _rows("vn", _normals_of(mesh))
    lines += ["f " + " ".join(corner.format(i + 1) for i in face) for face in mesh.faces.tolist()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def write_ply(source: Asset | Mesh, path: Path) -> None:
    """Binary PLY in our frame with normals and sRGB vertex colours; vertices split at texture seams are welded again."""
    mesh = weld(_mesh_of(source))
    columns = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    columns += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(len(mesh.vertices), columns)
    for name, values in zip(
        rows.dtype.names or (), np.c_[mesh.vertices, _normals_of(mesh)].T, strict=False
    ):
        rows[name] = values
    rows["red"], rows["green"], rows["blue"] = _to_bytes(vertex_colors_of(mesh)).T
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {FRAME}",
        f"element vertex {len(rows)}",
    ]
    header += [f"property {kinds[kind]} {name}" for name, kind in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    write_bytes(path, ("\n".join(header) + "\n").encode() + rows.tobytes() + faces.tobytes())


def write_stl(source: Asset | Mesh, path: Path) -> None:
    """Binary STL in our frame: shape only."""
    mesh = _mesh_of(source)
    rows = np.zeros(
        len(mesh.faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    rows["normal"], rows["corners"] = face_normals(mesh), mesh.vertices[mesh.faces]
    write_bytes(
        path,
        FRAME.encode().ljust(80) + np.uint32(len(rows)).astype("<u4").tobytes() + rows.tobytes(),
    )


WRITERS = {"glb": write_glb, "obj": write_obj, "ply": write_ply, "stl": write_stl}


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """sRGB-encoded values in [0, 1] to linear light in [0, 1], any shape (IEC 61966-2-1)."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(color: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to sRGB-encoded values in [0, 1], any shape (IEC 61966-2-1)."""
    return np.where(
        color <= 0.0031308, color * 12.92, 1.055 * np.maximum(color, 0.0031308) ** (1 / 2.4) - 0.055
    )


def vertex_colors_of(mesh: Mesh) -> np.ndarray:
    """sRGB vertex colours [V, 3] in [0, 1]: the mesh's own, else its texture at the vertices, else plain grey."""
    if mesh.vertex_colors is not None:
        return mesh.vertex_colors
    if mesh.texture is not None and mesh.uv is not None:
        return sample_texture(mesh.texture, mesh.uv)
    return np.full((len(mesh.vertices), 3), PLAIN_COLOR, np.float32)


def weld(mesh: Mesh) -> Mesh:
    """The mesh with vertices at equal places merged, their colours and normals averaged; UVs and texture are dropped."""
    places, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    index = index.reshape(-1)

    def averaged(values: np.ndarray) -> np.ndarray:
        count = np.bincount(index)
        return np.stack([np.bincount(index, values[:, c]) / count for c in range(3)], -1).astype(
            np.float32
        )

    normals = averaged(_normals_of(mesh))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(
        places, index[mesh.faces].astype(np.int64), normals, averaged(vertex_colors_of(mesh))
    )


def read_mesh(path: Path) -> Mesh:
    """The mesh in a .glb, .obj, .ply or .stl file, in our frame; our own or another program's.

    All parts of a scene are joined (see `join`); textures, vertex colours and material base colours are kept.
    Raises UserError for a missing, unreadable, empty or broken file, and for one whose triangles are all without area.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"cannot read {path} as a mesh: give a file ending in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise UserError(f"there is no mesh file {path}; check the path")
    gltf = path.suffix.lower() == ".glb"
    try:
        scene = trimesh.load_scene(path, process=False)
        solids = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
        parts = [_part_of(solid, gltf) for solid in solids]
    except Exception as error:  # trimesh raises whatever its parsers stumble over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot read the mesh {path}: it is damaged or not of its kind ({reason}); export it again"
        ) from error
    if not parts:
        raise UserError(f"the mesh file {path} holds no triangles; export it again")
    mesh = join(parts)
    if (
        not np.isfinite(mesh.vertices).all()
        or mesh.faces.min() < 0
        or mesh.faces.max() >= len(mesh.vertices)
    ):
        raise UserError(
            f"the mesh {path} is damaged: it has corners that do not exist; export it again"
        )
    if not has_area(mesh):
        raise UserError(
            f"the mesh {path} shows nothing: all its triangles are without area; export it again"
        )
    return mesh


def has_area(mesh: Mesh) -> bool:
    """Whether any triangle of `mesh` can be seen: is wider than a rounding error of the mesh's own size."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return bool(doubled.max() > 1.0e-9 * float(np.ptp(mesh.vertices, axis=0).max()) ** 2)


def join(parts: Sequence[Mesh]) -> Mesh:
    """Several meshes as one.

    Textures are put side by side, a part of a single colour counting as a texture of that colour; if a part has
    several vertex colours, all parts become vertex-coloured.
    """
    if len(parts) == 1:
        return parts[0]
    tiles = [_tile_of(part) for part in parts]
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate(
        [part.faces + offset for part, offset in zip(parts, offsets, strict=True)]
    )
    normals = np.concatenate([_normals_of(part) for part in parts])
    strip = [tile for tile in tiles if tile is not None]
    if len(strip) < len(parts) or all(part.texture is None for part in parts):
        return Mesh(
            vertices, faces, normals, np.concatenate([vertex_colors_of(part) for part in parts])
        )
    height, width = max(len(t) for t in strip), sum(t.shape[1] for t in strip)
    images, uvs, left = [], [], 0
    for part, tile in zip(parts, strip, strict=True):
        images.append(
            np.asarray(
                Image.fromarray(tile).resize((tile.shape[1], height), Image.Resampling.NEAREST)
            )
        )
        uv = np.zeros((len(part.vertices), 2), np.float32) if part.uv is None else part.uv
        uvs.append(np.stack([(left + 0.5 + uv[:, 0] * (tile.shape[1] - 1)) / width, uv[:, 1]], -1))
        left += tile.shape[1]
    return Mesh(
        vertices,
        faces,
        normals,
        None,
        np.concatenate(uvs).astype(np.float32),
        np.concatenate(images, 1),
    )


def fit_to_cube(mesh: Mesh) -> Mesh:
    """The mesh as it is when it fits into [-1, 1]^3 and fills a fifth of it at least, else centred and scaled to [-0.8, 0.8]."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    if max(abs(low).max(), abs(high).max()) <= 1.001 and (high - low).max() >= 0.4:
        return mesh
    vertices = (mesh.vertices - (low + high) / 2) * (1.6 / max(float((high - low).max()), 1e-12))
    return Mesh(
        vertices.astype(np.float32),
        mesh.faces,
        mesh.normals,
        mesh.vertex_colors,
        mesh.uv,
        mesh.texture,
    )


def _mesh_of(source: Asset | Mesh) -> Mesh:
    return source.mesh if isinstance(source, Asset) else source


def _normals_of(mesh: Mesh) -> np.ndarray:
    if mesh.normals is not None:
        return mesh.normals
    return np.array(
        trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals, np.float32
    )


def _to_bytes(color: np.ndarray) -> np.ndarray:
    return np.round(255.0 * np.clip(color, 0.0, 1.0)).astype(np.uint8)


def _rows(key: str, values: np.ndarray) -> list[str]:
    return [" ".join([key, *(f"{v:.6f}" for v in row)]) for row in values.tolist()]


def _part_of(solid: trimesh.Trimesh, gltf: bool) -> Mesh:
    visual = solid.visual
    bare = visual is None or not visual.defined
    if (
        bare and not gltf and len(solid.vertices) == 3 * len(solid.faces)
    ):  # an STL has no shared vertices
        solid.merge_vertices()
    axes = FROM_GLTF if gltf else [0, 1, 2]
    vertices, normals = (
        np.asarray(v, np.float32)[:, axes] for v in (solid.vertices, solid.vertex_normals)
    )
    mesh = Mesh(vertices, np.asarray(solid.faces, np.int64), normals)
    if isinstance(visual, trimesh.visual.TextureVisuals):
        return _textured(mesh, visual, gltf)
    if visual is None or bare:
        return mesh
    colors = np.asarray(visual.vertex_colors, np.float32)[:, :3] / 255.0
    return Mesh(
        vertices,
        mesh.faces,
        normals,
        np.asarray(linear_to_srgb(colors) if gltf else colors, np.float32),
    )


def _textured(mesh: Mesh, visual: trimesh.visual.TextureVisuals, gltf: bool) -> Mesh:
    image, tint = _material_of(visual.material, gltf)
    if image is None or visual.uv is None:
        colors = np.broadcast_to(tint, mesh.vertices.shape)
        if gltf and "color" in visual.vertex_attributes:
            linear = np.asarray(visual.vertex_attributes["color"], np.float32)[:, :3] / 255.0
            colors = linear_to_srgb(linear * srgb_to_linear(colors))
        return Mesh(
            mesh.vertices, mesh.faces, mesh.normals, np.ascontiguousarray(colors, np.float32)
        )
    texture = np.array(image.convert("RGB"), np.uint8)
    if gltf and (tint < 1.0).any():
        texture = _to_bytes(linear_to_srgb(srgb_to_linear(texture / 255.0) * srgb_to_linear(tint)))
    uv = np.asarray(visual.uv, np.float32)[:, :2]
    if not np.isfinite(uv).all():
        raise ValueError("texture coordinates that are not numbers")
    if (
        uv.min() < -1e-3 or uv.max() > 1.001
    ):  # a repeating texture: our meshes have none, so its colours go to the vertices
        return Mesh(
            mesh.vertices, mesh.faces, mesh.normals, sample_texture(texture, uv - np.floor(uv))
        )
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, None, np.clip(uv, 0.0, 1.0), texture)


def _material_of(material: object, gltf: bool) -> tuple[Image.Image | None, np.ndarray]:
    """The base-colour image, if any, and the base colour [3] sRGB in [0, 1]."""
    image = (
        getattr(material, "baseColorTexture", None) if gltf else getattr(material, "image", None)
    )
    factor = (
        getattr(material, "baseColorFactor", None) if gltf else getattr(material, "diffuse", None)
    )
    if factor is None:
        return image, np.ones(3)
    values = np.asarray(factor)[:3]
    tint = values / 255.0 if values.dtype == np.uint8 else values.astype(np.float64)
    return image, np.asarray(linear_to_srgb(tint) if gltf else tint)


def _tile_of(part: Mesh) -> np.ndarray | None:
    """The part's texture, or one texel of its single colour; None when it has several vertex colours."""
    if part.texture is not None and part.uv is not None:
        return part.texture
    colors = vertex_colors_of(part)
    return _to_bytes(colors[:1])[None] if np.ptp(colors, axis=0).max() < 1e-3 else None
