"""The USDZ writer and the reader of our own files: Y up, facing +Z, in metres.

A USDZ is an uncompressed zip archive whose data are aligned to 64 bytes; its first member is the
scene, here as text (.usda), followed by its pictures. The material is a UsdPreviewSurface with all
maps; colours that contain light are emitted and not lit. Vertex colours, in linear light, are the
primvar displayColor. The reader takes files of this layout only, for the check after the export.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vp3d.export.archive import read_members, stored
from vp3d.export.glb import encode_image, unit
from vp3d.export.gltf import decode_image
from vp3d.export.mesh_data import (
    FROM_GLTF,
    TO_GLTF,
    named,
    vertex_normals_of,
)
from vp3d.export.style import METALLIC, PLAIN, ROUGHNESS, Style
from vp3d.system.files import plain, write_bytes
from vp3d.system.srgb import linear_to_srgb, srgb_to_linear
from vp3d.types import Asset, Mesh

ALIGNMENT = 64  # bytes, by the specification of USDZ
SCENE = "model.usda"
HEADER = "#usda 1.0"
MAPS = {  # our name -> (file, colour space, output, type of the input)
    "base": ("textures/base.png", "sRGB", "rgb", "color3f"),
    "normal": ("textures/normal.png", "raw", "rgb", "normal3f"),
    "occlusion": ("textures/occlusion.png", "raw", "r", "float"),
}


class UsdzError(ValueError):
    """A USDZ file is not of the layout that the writer gives."""


def write_usdz(asset: Asset, path: Path, style: Style = PLAIN) -> None:
    """Write the mesh of `asset` as USDZ. Atomic; the same asset gives the same bytes."""
    mesh = asset.mesh
    pictures = _pictures(mesh, style)
    scene = "\n".join(_scene(mesh, identifier(named(asset.prompt, style.names)), pictures, style))
    members = [(SCENE, (scene + "\n").encode())]
    members += [
        (MAPS[name][0], encode_image(pixels, "png", lossless=True)[0])
        for name, pixels in pictures.items()
    ]
    write_bytes(path, stored(members, ALIGNMENT))


def identifier(name: str) -> str:
    """`name` as an identifier of USD: ASCII letters, digits and underscores.

    Example:
        >>> identifier("2-red-balls")
        '_2_red_balls'
    """
    text = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "object"
    return f"_{text}" if text[0].isdigit() else text


def _pictures(mesh: Mesh, style: Style) -> dict[str, np.ndarray]:
    if mesh.texture is None or mesh.uv is None:
        return {}
    maps = {} if style.unlit else mesh.maps
    return {"base": mesh.texture, **{name: maps[name] for name in MAPS if name in maps}}


def _scene(mesh: Mesh, name: str, pictures: dict[str, np.ndarray], style: Style) -> Iterator[str]:
    yield HEADER
    yield "("
    if style.extras:
        yield "    customLayerData = {"
        for key, value in plain(dict(style.extras)).items():
            yield f"        string {identifier(key)} = {_quoted(str(value))}"
        yield "    }"
    yield f'    defaultPrim = "{name}"'
    yield "    metersPerUnit = 1"
    yield '    upAxis = "Y"'
    yield ")"
    yield f'def Xform "{name}" (kind = "component")'
    yield "{"
    yield from _geometry(mesh, name)
    yield from _material(name, pictures, mesh.vertex_colors is not None, style)
    yield "}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True).replace("\\u", "\\\\u")


def _geometry(mesh: Mesh, name: str) -> Iterator[str]:
    vertices = mesh.vertices[:, TO_GLTF]
    normals = unit(vertex_normals_of(mesh)[:, TO_GLTF].astype(np.float64))
    used = vertices[np.unique(mesh.faces)]
    yield '    def Mesh "mesh" (prepend apiSchemas = ["MaterialBindingAPI"])'
    yield "    {"
    yield "        uniform bool doubleSided = 0"
    yield f"        float3[] extent = {_tuples(np.stack([used.min(0), used.max(0)]))}"
    yield f"        int[] faceVertexCounts = [{', '.join(['3'] * len(mesh.faces))}]"
    yield f"        int[] faceVertexIndices = [{', '.join(map(str, mesh.faces.ravel().tolist()))}]"
    yield f"        rel material:binding = </{name}/material>"
    yield f"        normal3f[] normals = {_tuples(normals)} ("
    yield '            interpolation = "vertex"'
    yield "        )"
    yield f"        point3f[] points = {_tuples(vertices)}"
    if mesh.texture is not None and mesh.uv is not None:
        yield f"        texCoord2f[] primvars:st = {_tuples(mesh.uv)} ("
        yield '            interpolation = "vertex"'
        yield "        )"
    elif mesh.vertex_colors is not None:
        colors = srgb_to_linear(np.clip(mesh.vertex_colors, 0.0, 1.0))
        yield f"        color3f[] primvars:displayColor = {_tuples(colors)} ("
        yield '            interpolation = "vertex"'
        yield "        )"
    yield '        uniform token subdivisionScheme = "none"'
    yield "    }"


def _tuples(values: np.ndarray) -> str:
    rows = np.asarray(values, np.float32).tolist()
    return "[" + ", ".join("(" + ", ".join(f"{v:.7g}" for v in row) + ")" for row in rows) + "]"


def _material(
    name: str, pictures: dict[str, np.ndarray], colored: bool, style: Style
) -> Iterator[str]:
    """The material: a surface, a reader of the UVs or the colours, and a node for each picture."""
    path = f"/{name}/material"
    color = "base" if pictures else "color" if colored else ""
    source = f"<{path}/{color}.outputs:{'rgb' if pictures else 'result'}>"
    inputs = [f"float inputs:metallic = {METALLIC:g}", f"float inputs:roughness = {ROUGHNESS:g}"]
    if color:
        inputs += [
            f"color3f inputs:{'emissive' if style.unlit else 'diffuse'}Color.connect = {source}"
        ]
    if style.unlit:
        inputs += ["color3f inputs:diffuseColor = (0, 0, 0)"]
        inputs += ["int inputs:useSpecularWorkflow = 1", "color3f inputs:specularColor = (0, 0, 0)"]
    for key in ("normal", "occlusion"):
        if key in pictures:
            _, _, output, kind = MAPS[key]
            inputs.append(f"{kind} inputs:{key}.connect = <{path}/{key}.outputs:{output}>")
    yield '    def Material "material"'
    yield "    {"
    yield f"        token outputs:surface.connect = <{path}/surface.outputs:surface>"
    yield from _shader("surface", "UsdPreviewSurface", [*inputs, "token outputs:surface"])
    if pictures:
        reader = ['string inputs:varname = "st"', "float2 outputs:result"]
        yield from _shader("uv", "UsdPrimvarReader_float2", reader)
    elif colored:
        reader = ['string inputs:varname = "displayColor"', "float3 outputs:result"]
        yield from _shader("color", "UsdPrimvarReader_float3", reader)
    for key in pictures:
        yield from _shader(key, "UsdUVTexture", _texture_inputs(key, path))
    yield "    }"


def _texture_inputs(key: str, path: str) -> list[str]:
    file, space, output, _ = MAPS[key]
    inputs = [
        f"asset inputs:file = @{file}@",
        f'token inputs:sourceColorSpace = "{space}"',
        f"float2 inputs:st.connect = <{path}/uv.outputs:result>",
        'token inputs:wrapS = "clamp"',
        'token inputs:wrapT = "clamp"',
    ]
    if key == "normal":
        inputs += ["float4 inputs:bias = (-1, -1, -1, 0)", "float4 inputs:scale = (2, 2, 2, 1)"]
    return [*inputs, f"{'float3' if output == 'rgb' else 'float'} outputs:{output}"]


def _shader(name: str, kind: str, lines: list[str]) -> Iterator[str]:
    yield f'        def Shader "{name}"'
    yield "        {"
    yield f'            uniform token info:id = "{kind}"'
    yield from (f"            {line}" for line in lines)
    yield "        }"


def read_usdz(path: Path) -> list[Mesh]:
    """The mesh of a USDZ file that `write_usdz` wrote, in our frame.

    Raises:
        UsdzError: The file is of another layout.
    """
    members = read_members(path)
    text = members.get(SCENE, b"").decode("utf-8", "replace")
    if not text.startswith(HEADER) or text.count("def Mesh ") != 1:
        raise UsdzError("only USDZ files that VP3D wrote are read; convert it to GLB")
    faces = _numbers(text, "int[] faceVertexIndices", 0).reshape(-1, 3).astype(np.int64)
    vertices, normals = (
        _numbers(text, key, 3)[:, FROM_GLTF] for key in ("point3f[] points", "normal3f[] normals")
    )
    mesh = Mesh(vertices.astype(np.float32), faces, normals.astype(np.float32))
    if "texCoord2f[] primvars:st" in text and MAPS["base"][0] in members:
        uv = _numbers(text, "texCoord2f[] primvars:st", 2).astype(np.float32)
        return [replace(mesh, uv=uv, texture=decode_image(members[MAPS["base"][0]]))]
    if "color3f[] primvars:displayColor" in text:
        colors = linear_to_srgb(_numbers(text, "color3f[] primvars:displayColor", 3))
        return [replace(mesh, vertex_colors=colors.astype(np.float32))]
    return [mesh]


def _numbers(text: str, key: str, width: int) -> np.ndarray:
    """The array at `key` as float64 `[N, width]`, or `[N]` for width 0."""
    start = text.find(f"{key} = [")
    end = text.find("]", start + len(key) + 4)
    if start < 0 or end < 0:
        raise UsdzError(f"it has no {key.split()[-1]}")
    flat = re.sub(r"[(),]", " ", text[start + len(key) + 4 : end]).split()
    values = np.array([float(value) for value in flat])
    return values.reshape(-1, width) if width else values
