"""USDZ, 3MF, quantised and Draco GLB, sizes and print: what is in the files, and read back."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.assets import asset_of
from vp3d.config.schema import ExportConfig
from vp3d.errors import UserError
from vp3d.export.archive import stored
from vp3d.export.deliver import drop_old_levels, level_path, prepare
from vp3d.export.foreign import remade
from vp3d.export.frame import frame_of
from vp3d.export.glb import glb_bytes, write_glb
from vp3d.export.read import read_mesh
from vp3d.export.repair import face_measures
from vp3d.export.style import Style
from vp3d.export.threemf import palette_of, write_3mf
from vp3d.export.usdz import write_usdz
from vp3d.types import Mesh


@pytest.fixture(scope="module")
def mapped(sided: Mesh) -> Mesh:
    """The ball with fewer triangles, a normal map and occlusion."""
    return remade(sided, ExportConfig(faces=500, texture_size=64, unwrap_deadline_s=0.0))[0]


def test_usdz_data_start_at_multiples_of_64_and_are_not_compressed(
    mapped: Mesh, tmp_path: Path
) -> None:
    write_usdz(asset_of(mapped), tmp_path / "m.usdz")
    data = (tmp_path / "m.usdz").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.usdz") as archive:
        entries = archive.infolist()
        assert entries[0].filename.endswith(".usda") and len(entries) == 4
        for entry in entries:
            assert entry.compress_type == zipfile.ZIP_STORED
            name, extra = (
                int.from_bytes(data[entry.header_offset + k :][:2], "little") for k in (26, 28)
            )
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


def test_stored_archives_have_equal_bytes_whatever_the_time() -> None:
    assert stored([("a", b"1")], 64) == stored([("a", b"1")], 64)


def test_unlit_usdz_emits_its_colours(mapped: Mesh, tmp_path: Path) -> None:
    for unlit in (False, True):
        write_usdz(asset_of(mapped), tmp_path / "m.usdz", Style(unlit=unlit))
        text = zipfile.ZipFile(tmp_path / "m.usdz").read("model.usda").decode()
        assert ("inputs:emissiveColor.connect" in text) == unlit
        assert ("inputs:normal.connect" in text) == (not unlit)


@pytest.mark.parametrize("writer", [write_usdz, write_3mf])
def test_foreign_or_damaged_archives_are_one_line(
    writer: object, mapped: Mesh, tmp_path: Path
) -> None:
    kind = "usdz" if writer is write_usdz else "3mf"
    path = tmp_path / f"m.{kind}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("3D/3dmodel.model", "<!DOCTYPE a [<!ENTITY b 'c'>]><model>&b;</model>")
    with pytest.raises(UserError, match=r"^[^\n]*m\." + kind + r"[^\n]*$"):
        read_mesh(path)


def test_3mf_has_one_of_few_colours_a_triangle_and_no_open_edge(
    sided: Mesh, tmp_path: Path
) -> None:
    write_3mf(asset_of(sided), tmp_path / "m.3mf", Style(colors=2))
    mesh = read_mesh(tmp_path / "m.3mf")
    assert len(np.unique(mesh.vertex_colors, axis=0)) == 2
    assert face_measures(mesh)[1].sum() == pytest.approx(face_measures(sided)[1].sum(), rel=1e-3)
    text = zipfile.ZipFile(tmp_path / "m.3mf").read("3D/3dmodel.model").decode()
    assert 'unit="millimeter"' in text


def test_palette_of_two_colours_by_hand() -> None:
    colors = np.array([[1, 0, 0]] * 3 + [[0, 0, 1.0]])
    palette, index = palette_of(colors, 4)
    assert palette[index].tolist() == [[255, 0, 0]] * 3 + [[0, 0, 255]]


def test_quantised_glb_is_smaller_and_the_same_shape(mapped: Mesh, tmp_path: Path) -> None:
    bare = replace(
        mapped, texture=np.arange(12, dtype=np.uint8).reshape(2, 2, 3), maps={}, tangents=None
    )
    whole = glb_bytes(asset_of(bare))
    path = tmp_path / "m.glb"
    write_glb(asset_of(bare), path, Style(compress="quantize"))
    assert path.stat().st_size <= 0.6 * len(whole)
    mesh = read_mesh(path)
    np.testing.assert_allclose(mesh.vertices, mapped.vertices, atol=2e-5)
    np.testing.assert_allclose(mesh.uv, mapped.uv, atol=2e-5)
    assert (mesh.normals * mapped.normals).sum(1).min() > 0.999


def test_draco_glb_is_read_back(mapped: Mesh, tmp_path: Path) -> None:
    pytest.importorskip("DracoPy")
    write_glb(asset_of(mapped), tmp_path / "m.glb", Style(compress="draco"))
    mesh = read_mesh(tmp_path / "m.glb")
    np.testing.assert_allclose(mesh.vertices[mesh.faces], mapped.vertices[mapped.faces], atol=2e-4)


def test_glb_with_maps_has_tangents_and_an_unlit_one_has_neither(mapped: Mesh) -> None:
    lit, unlit = (glb_bytes(asset_of(mapped), Style(unlit=u)) for u in (False, True))
    assert all(word in lit for word in (b"TANGENT", b"normalTexture", b"occlusionTexture"))
    assert b"KHR_materials_unlit" in unlit
    assert not any(word in unlit for word in (b"TANGENT", b"normalTexture"))


def test_style_names_and_extras_are_in_the_glb(sided: Mesh) -> None:
    data = glb_bytes(asset_of(sided), Style(names="plain", extras={"prompt": "a ball", "seed": 3}))
    assert b'"extras":{"prompt":"a ball","seed":3}' in data and b"a-test-mesh" not in data


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "stl", "usdz", "3mf"])
def test_size_origin_and_axes_are_those_asked_for_and_are_undone(
    kind: str, sided: Mesh, tmp_path: Path
) -> None:
    config = ExportConfig(size_mm=50.0, size_axis="height", origin="bottom", up="y")
    delivery = prepare("a ball", [sided], config, {}, lambda *a, **k: None, "kept")
    path = tmp_path / f"m.{kind}"
    delivery.write(kind, path)
    mesh = read_mesh(path)
    unit = 1000.0 if kind in ("glb", "usdz") else 1.0
    up = 1 if kind in ("obj", "ply", "stl") else 2
    assert mesh.vertices[:, up].min() * unit == pytest.approx(0.0, abs=0.01)
    assert np.ptp(mesh.vertices[:, up]) * unit == pytest.approx(50.0, abs=0.01)
    back = delivery.restored(mesh, kind)
    np.testing.assert_allclose(back.vertices.min(0), sided.vertices.min(0), atol=1e-3)
    np.testing.assert_allclose(back.vertices.max(0), sided.vertices.max(0), atol=1e-3)


def test_without_a_size_3mf_is_100_mm_and_others_are_world_units(sided: Mesh) -> None:
    frame = frame_of(sided, 0.0, "longest", "field", "z")
    longest = np.ptp(sided.vertices, axis=0).max()
    assert frame.scale("glb") == frame.scale("stl") == 1.0
    assert frame.scale("3mf") * longest == pytest.approx(100.0)


def test_print_unites_parts_cuts_a_base_and_keeps_the_size(sided: Mesh, tmp_path: Path) -> None:
    pytest.importorskip("manifold3d")
    from vp3d.export.ply import weld

    ball = weld(sided)
    moved = ball.vertices + np.float32([0.5, 0, 0])
    two = Mesh(
        np.r_[ball.vertices, moved],
        np.r_[ball.faces, ball.faces + len(ball.vertices)],
        vertex_colors=np.r_[ball.vertex_colors, ball.vertex_colors],
    )
    config = ExportConfig(print=True, size_mm=60.0, print_base_mm=2.0)
    events = {}
    delivery = prepare(
        "two", [two], config, {}, lambda kind, **data: events.update({kind: data}), "kept"
    )
    figures = events["print"]
    assert (figures["parts_united"], figures["parts"], figures["genus"]) == (2, 1, 0)
    assert max(figures["box_mm"]) == pytest.approx(60.0, abs=0.01)
    assert figures["status"] == "NoError" and figures["thin_share"] < 0.05
    delivery.write("stl", tmp_path / "m.stl")
    mesh = read_mesh(tmp_path / "m.stl")
    assert mesh.vertices[:, 2].min() == pytest.approx(0.0, abs=1e-4)
    flat = np.isclose(mesh.vertices[mesh.faces][..., 2], 0.0, atol=1e-4).all(1)
    assert flat.sum() > 2
    back = delivery.restored(mesh, "stl")
    np.testing.assert_allclose(back.vertices.max(0), two.vertices.max(0), atol=0.01)


def test_an_open_sheet_cannot_be_printed() -> None:
    pytest.importorskip("manifold3d")
    sheet = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]))
    with pytest.raises(UserError, match="encloses no volume"):
        prepare("a", [sheet], ExportConfig(print=True), {}, lambda *a, **k: None, "kept")


def test_levels_keep_the_silhouette_and_old_ones_are_removed(sided: Mesh, tmp_path: Path) -> None:
    from vp3d.export.threshold import silhouette_iou
    from vp3d.render.camera import ring
    from vp3d.render.raster import rasterize

    config = ExportConfig(
        faces=0, lods=[0.5, 0.25, 0.1], texture_size=64, unwrap_deadline_s=0.0, maps=["base"]
    )
    levels = remade(sided, config)
    cameras = ring(4, 10.0, 2.9, 40.0)
    whole = (rasterize(levels[0], cameras, 96, 96).face_index >= 0).float()
    for level, share, least in zip(levels[1:], config.lods, (0.99, 0.975, 0.95), strict=True):
        assert len(level.faces) <= share * len(levels[0].faces) + 1
        assert silhouette_iou(level, cameras, whole) >= least
    path = tmp_path / "model.glb"
    for level in (1, 2, 3):
        level_path(path, level).write_bytes(b"")
    drop_old_levels(path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_lod1.glb"]


@pytest.mark.parametrize("kind", ["glb", "usdz", "3mf"])
def test_equal_runs_give_equal_bytes(kind: str, sided: Mesh, tmp_path: Path) -> None:
    hashes = set()
    for name in "ab":
        config = ExportConfig(faces=400, texture_size=48, unwrap_deadline_s=0.0)
        delivery = prepare("a ball", remade(sided, config), config, {}, lambda *a, **k: None)
        path = tmp_path / f"{name}.{kind}"
        delivery.write(kind, path)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1
