"""OBJ, PLY and STL files as other programs write them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.gltf import QUAD, colors_of
from vp3d.errors import UserError
from vp3d.export.ply_input import plain_ply
from vp3d.export.read import read_mesh

CORNERS = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
RED, BLUE = (255, 0, 0), (0, 0, 255)


def color_of(path: Path) -> list[int]:
    found = np.unique(colors_of(read_mesh(path)), axis=0)
    assert len(found) == 1
    return [int(value) for value in found[0]]


def obj(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "mtllib my materials.mtl\n",
        'mtllib "my materials.mtl"\n',
        "mtllib\tmy materials.mtl\n",
        "mtllib .\\sub\\r.mtl\n",
        "mtllib missing.mtl\nmtllib ./sub/r.mtl\n",
        "mtllib missing.mtl sub/r.mtl\n",
    ],
)
def test_material_files_are_found_however_they_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("my materials.mtl", "sub/r.mtl"):
        (tmp_path / name).write_text("newmtl r\nKd 1 0 0\n")
    path = obj(tmp_path / "a.obj", f"{text}{CORNERS}usemtl r\nf 1 2 3 4\n")
    assert color_of(path) == list(RED)


@pytest.mark.parametrize(
    "name",
    ["blue sky.png", "-s 1 1 1 blue sky.png", "-clamp on -bm 0.5 blue sky.png", '"blue sky.png"'],
)
def test_textures_are_found_behind_options_and_in_quotes(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), BLUE).save(tmp_path / "blue sky.png")
    (tmp_path / "m.mtl").write_text(f"newmtl m\nKd 0.8 0.8 0.8\nmap_Kd {name}\n")
    text = f"mtllib m.mtl\n{CORNERS}vt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    assert color_of(obj(tmp_path / "a.obj", text)) == list(BLUE)


def test_a_texture_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4), BLUE).save(tmp_path / "secret.png")
    (tmp_path / "out.mtl").write_text("newmtl m\nKd 1 0 0\n")
    text = f"{CORNERS}vt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    (tmp_path / "in/m.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd ../secret.png\n")
    for library in ("m.mtl", "../out.mtl", str(tmp_path / "out.mtl")):
        path = obj(tmp_path / "in/a.obj", f"mtllib {library}\n{text}")
        assert color_of(path) not in (list(BLUE), list(RED))


def test_a_16_bit_grey_texture_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x5000, np.uint16)).save(tmp_path / "g.png")
    (tmp_path / "m.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd g.png\n")
    text = f"mtllib m.mtl\n{CORNERS}vt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    assert color_of(obj(tmp_path / "a.obj", text)) == [80, 80, 80]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + f"{CORNERS}f 1 2 3 4\n".encode(),
        f"{CORNERS}f 1 2 3 4\n".encode("utf-16"),
        f"{CORNERS}f 1 2 3 4\n".replace("\n", "\r").encode(),
        f"{CORNERS}f 1 2 3 4\n".replace("\n", "\r\n").encode(),
        f"{CORNERS}f 1 2 3 4\n".replace(" ", "\t").encode(),
        f"{CORNERS}f -4 -3 -2 -1\n".encode(),
        f"{CORNERS}f 1 2 \\\n3 4\n".encode(),
        b"v 0 0 0\nv 1 0 0\nv 1 1 0\nf -3 -2 -1\nv 0 1 0\nf -4 -2 -1\n",
    ],
)
def test_every_way_to_write_a_square(data: bytes, tmp_path: Path) -> None:
    mesh = read_mesh(obj(tmp_path / "a.obj", data))
    assert len(mesh.faces) == 2
    np.testing.assert_array_equal(mesh.vertices.max(0), [1, 1, 0])


@pytest.mark.parametrize("face", ["f 0 1 2", "f 1 2 0", "f 1/1 0/1 2/1", "f 1 2 9", "f -9 1 2"])
def test_vertices_that_do_not_exist_are_refused(face: str, tmp_path: Path) -> None:
    path = obj(tmp_path / "a.obj", f"{CORNERS}vt 0 0\nf 1 2 3\n{face}\n")
    with pytest.raises(UserError, match=r"^[^\n]+damaged[^\n]+$"):
        read_mesh(path)


def ply(path: Path, order: str, polygons: list[list[int]], names: str, more: bytes = b"") -> Path:
    """A binary PLY of red corners (a fifth one at 2, 0) whose faces have a scalar as well."""
    endian = "little" if order == "<" else "big"
    head = f"ply\nformat binary_{endian}_endian 1.0\ncomment by hand\nelement vertex 5\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += "".join(f"property uchar {names}{color}\n" for color in ("red", "green", "blue"))
    head += f"element face {len(polygons)}\nproperty uchar flags\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    rows = [*QUAD.tolist(), [2.0, 0.0, 0.0]]
    body = b"".join(struct.pack(f"{order}3f3B", *row, 255, 0, 0) for row in rows)
    for polygon in polygons:
        body += struct.pack(f"{order}BB{len(polygon)}i", 7, len(polygon), *polygon)
    path.write_bytes(head.encode() + body + more)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("names", ["", "diffuse_"])
def test_ply_with_triangles_and_squares(order: str, names: str, tmp_path: Path) -> None:
    path = ply(tmp_path / "a.ply", order, [[0, 1, 2, 3], [1, 4, 2]], names)
    mesh = read_mesh(path)
    assert sorted(map(sorted, mesh.faces.tolist())) == [[0, 1, 2], [0, 2, 3], [1, 2, 4]]
    assert color_of(path) == list(RED)
    path = ply(tmp_path / "a.ply", order, [[0, 1, 2], [0, 1, 2, 3], [1, 4, 2]], names)
    assert len(read_mesh(path).faces) == 4
    path = ply(tmp_path / "b.ply", order, [[0, 1, 2], [1, 4, 2]], names)
    assert plain_ply(path.read_bytes()).count(b"flags") == 1, "it is left as it is"
    assert len(read_mesh(path).faces) == 2 and color_of(path) == list(RED)


def test_a_ply_that_is_cut_off_or_claims_too_much_is_one_line(tmp_path: Path) -> None:
    path = ply(tmp_path / "a.ply", "<", [[0, 1, 2, 3], [1, 4, 2]], "")
    whole = path.read_bytes()
    for data in (
        whole[:-3],
        whole.replace(b"face 2", b"face 999999999999"),
        whole.replace(b"vertex 5", b"vertex 999999999999"),
        whole.replace(b"list uchar int", b"list char int").replace(b"\x07\x04", b"\x07\xff"),
        whole.replace(b"list uchar int", b"list float int"),
        whole.replace(b"property list uchar int vertex_indices\n", b""),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            read_mesh(path)
    assert plain_ply(b"ply\n") == b"ply\n"


def test_an_ascii_ply_with_triangles_and_squares(tmp_path: Path) -> None:
    text = "ply\nformat ascii 1.0\nelement vertex 5\n"
    text += "".join(f"property float {axis}\n" for axis in "xyz")
    text += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    text += "0 0 0\n1 0 0\n1 1 0\n0 1 0\n2 0 0\n4 0 1 2 3\n3 1 4 2\n"
    assert len(read_mesh(obj(tmp_path / "a.ply", text)).faces) == 3


def test_a_binary_stl_that_begins_with_solid(tmp_path: Path) -> None:
    data = b"solid of some program".ljust(80, b" ") + struct.pack("<I", 2)
    for corners in (QUAD[[0, 1, 2]], QUAD[[0, 2, 3]]):
        data += np.float32([[0, 0, 1], *corners]).tobytes() + b"\0\0"
    (tmp_path / "a.stl").write_bytes(data)
    assert len(read_mesh(tmp_path / "a.stl").faces) == 2
