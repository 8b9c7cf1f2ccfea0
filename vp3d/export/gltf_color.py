"""The colours of a glTF primitive as layers (vp3d/export/layers.py): a sum in linear light.

* base: `baseColorFactor` x `baseColorTexture` x COLOR_0. With KHR_materials_pbrSpecularGlossiness,
  the diffuse factor and texture instead; a black diffuse colour (a metal) gives way to the specular
  one.
* emissive: `emissiveFactor` x `emissiveTexture`, unless the material is unlit. A strength above 1
  is brightness that no display has; the hue is kept. If it is the texture of the base as well, the
  material only means to look unlit, and it counts once.

Opacity, metalness and roughness are not read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vp3d.export.gltf import (
    NAMES,
    GltfError,
    GltfFile,
    UnsupportedError,
    as_dict,
    extensions_of,
    number,
    numbers,
    whole,
)
from vp3d.export.layers import REPEAT, Layer, simplified

NEAREST = 9728
SHARP_SIDE, SHARP_REPEAT = 1024, 16  # a texture of hard pixels is enlarged to at most these


def material_layers(
    file: GltfFile, primitive: dict[str, Any], count: int, used: np.ndarray
) -> list[Layer]:
    """The layers of a primitive's colour, simplified (see `simplified`).

    Args:
        file: The file.
        primitive: The entry of the primitive.
        count: Number of its vertices.
        used: The vertices that a triangle uses.
    """
    attributes = as_dict(primitive.get("attributes"), "attributes")
    material = file.item("materials", primitive["material"]) if "material" in primitive else {}
    extensions = extensions_of(material)
    slots = _Slots(file, attributes, count)
    if "KHR_materials_pbrSpecularGlossiness" in extensions:
        gloss = as_dict(extensions["KHR_materials_pbrSpecularGlossiness"], "a material")
        base = slots.layer(gloss, "diffuseFactor", "diffuseTexture", [1.0] * 4)
        if not base.factor.any() and "specularFactor" in gloss:
            base = slots.layer(gloss, "specularFactor", "specularGlossinessTexture", [1.0] * 3)
    else:
        rough = as_dict(material.get("pbrMetallicRoughness", {}), "a material")
        base = slots.layer(rough, "baseColorFactor", "baseColorTexture", [1.0] * 4)
    base = replace(base, colors=_vertex_colors(file, attributes, count))
    layers = [base]
    if "KHR_materials_unlit" not in extensions:
        glow = slots.layer(material, "emissiveFactor", "emissiveTexture", [0.0] * 3)
        strong = as_dict(extensions.get("KHR_materials_emissive_strength", {}), "a material")
        strength = number(strong.get("emissiveStrength"), 1.0, "emissiveStrength")
        factor = glow.factor * max(strength, 0.0)
        layers.append(replace(glow, factor=factor / max(1.0, float(factor.max()))))
        doubled = glow.texture is not None and glow.texture is base.texture
        if doubled and base.factor.any():
            layers.pop()
    return simplified(layers, used)


@dataclass(frozen=True)
class _Slots:
    """Reads the texture slots of a material for one primitive of `count` vertices."""

    file: GltfFile
    attributes: dict[str, Any]
    count: int

    def layer(
        self, owner: dict[str, Any], factor: str, texture: str, default: list[float]
    ) -> Layer:
        """The layer of the factor and the texture with these names in `owner`."""
        values = np.maximum(numbers(owner.get(factor), default, factor)[:3], 0.0)
        info = as_dict(owner.get(texture, {}), texture)
        if "index" not in info:
            return Layer(values)
        entry = self.file.item("textures", info["index"])
        moved = as_dict(extensions_of(info).get("KHR_texture_transform", {}), texture)
        which = whole(moved if "texCoord" in moved else info, "texCoord", 0)
        image = _image(self.file, entry)
        name = f"TEXCOORD_{which}"
        if image is None or name not in self.attributes:
            return Layer(values)
        uv = np.asarray(self.file.accessor(self.attributes[name]), np.float32)
        if uv.shape != (self.count, 2):
            raise GltfError("texture coordinates that do not fit the vertices")
        if not np.isfinite(uv).all():
            raise GltfError("texture coordinates that are not numbers")
        sampler = self.file.item("samplers", entry["sampler"]) if "sampler" in entry else {}
        wrap = (sampler.get("wrapS", REPEAT), sampler.get("wrapT", REPEAT))
        if sampler.get("magFilter") == NEAREST:
            image = _sharp(self.file, image)
        return Layer(values, image, transformed(uv, moved), wrap)


def transformed(uv: np.ndarray, transform: dict[str, Any]) -> np.ndarray:
    """UVs `[V, 2]`, v down, by KHR_texture_transform: scaled, turned, moved."""
    scale = numbers(transform.get("scale"), [1.0, 1.0], "scale")
    offset = numbers(transform.get("offset"), [0.0, 0.0], "offset")
    angle = number(transform.get("rotation"), 0.0, "rotation")
    cosine, sine = np.cos(angle), np.sin(angle)
    # Counter-clockwise as one looks at the picture, whose v points down.
    turn = np.array([[cosine, sine], [-sine, cosine]])
    return ((uv * scale) @ turn.T + offset).astype(np.float32)


def _image(file: GltfFile, texture: dict[str, Any]) -> np.ndarray | None:
    """The image of a texture, or None if it names none."""
    extensions = extensions_of(texture)
    for name in ("EXT_texture_webp", "EXT_texture_avif"):
        if "source" in as_dict(extensions.get(name, {}), name):
            return file.image(extensions[name]["source"])
    if "source" in texture:
        return file.image(texture["source"])
    unread = [name for name in extensions if name in NAMES]
    if unread:
        raise UnsupportedError(unread[0])
    return None


def _sharp(file: GltfFile, image: np.ndarray) -> np.ndarray:
    """The image with each pixel enlarged, so that a bilinear look-up keeps its edges hard."""
    key = ("sharp", id(image))
    if key not in file.cache:
        times = int(np.clip(SHARP_SIDE // max(image.shape[:2]), 1, SHARP_REPEAT))
        file.cache[key] = image.repeat(times, 0).repeat(times, 1)
    return file.cache[key]


def _vertex_colors(file: GltfFile, attributes: dict[str, Any], count: int) -> np.ndarray | None:
    """COLOR_0 `[V, 3]`, linear in [0, 1], or None. Integers always count as normalised."""
    if "COLOR_0" not in attributes:
        return None
    colors = file.accessor(attributes["COLOR_0"])
    if colors.dtype.kind != "f":
        colors = colors / float(np.iinfo(colors.dtype).max)
    if len(colors) != count or colors.shape[1] not in (3, 4) or not np.isfinite(colors).all():
        raise GltfError("vertex colours that do not fit the vertices or are not numbers")
    return np.clip(colors[:, :3], 0.0, 1.0).astype(np.float32)
