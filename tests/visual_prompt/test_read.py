"""Reading a user's picture: colours as the file means them, and every way a file can be wrong."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from vp3d.errors import UserError
from vp3d.visual_prompt import read
from vp3d.visual_prompt.color import to_linear_srgb
from vp3d.visual_prompt.read import read_picture


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def test_opaque_picture_and_alpha(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    picture = read_picture(save(tmp_path / "a.png", values))
    rgb, alpha = picture.rgb, picture.alpha
    np.testing.assert_array_equal((rgb * 255).round().permute(1, 2, 0).numpy(), values[..., :3])
    assert alpha is not None
    np.testing.assert_array_equal((alpha * 255).round()[0].numpy(), values[..., 3])
    values[..., 3] = 255
    assert read_picture(save(tmp_path / "b.png", values)).alpha is None
    assert read_picture(save(tmp_path / "c.jpg", values[..., :3])).alpha is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_other_modes_are_read(mode: str, tmp_path: Path) -> None:
    gray = np.full((32, 32), 255, dtype=np.uint8)
    gray[8:24, 8:24] = 0
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture = (
        Image.fromarray(gray.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(gray).convert(mode)
    )
    picture.save(path)
    rgb = read_picture(path).rgb
    assert rgb.shape == (3, 32, 32)
    assert float(rgb[:, 2, 2].min()) > 0.95 and float(rgb[:, 16, 16].max()) < 0.05


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    values = np.zeros((20, 40, 3), dtype=np.uint8)
    values[:, :10] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: left becomes top
    rgb = read_picture(save(tmp_path / "a.png", values, exif=exif)).rgb
    assert rgb.shape == (3, 40, 20)
    assert float(rgb[:, :10].min()) == 1.0 and float(rgb[:, 10:].max()) == 0.0


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    rgb = read_picture(save(tmp_path / "a.png", np.zeros((900, 1800, 3), dtype=np.uint8))).rgb
    assert rgb.shape == (3, 256, 512)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert message.startswith(f"--image {path}") and "\n" not in message
    return message


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.png")
    assert "not a file" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty file" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "data",
    [b"hello, I am not a picture", b"%PDF-1.4 ...", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 100],
)
def test_not_a_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert "not a picture" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short(format_: str, share: float, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(values).save(whole, format=format_)
    path = tmp_path / "a.img"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    message = refusal(path)
    assert "damaged" in message or "not a picture" in message


def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for format_ in ("PNG", "GIF", "TIFF", "WEBP"):
        whole = io.BytesIO()
        Image.fromarray(values).save(whole, format=format_)
        for _ in range(40):
            data = bytearray(whole.getvalue())
            for place in rng.integers(0, len(data), 5):
                data[place] = rng.integers(0, 256)
            (tmp_path / "a").write_bytes(data)
            try:
                rgb = read_picture(tmp_path / "a").rgb
            except UserError:
                continue
            assert rgb.shape[0] == 3


def claim_size(path: Path, side: int) -> Path:
    """A small PNG whose header says it has side x side pixels."""
    whole = io.BytesIO()
    Image.new("1", (32, 32)).save(whole, format="PNG")
    data = bytearray(whole.getvalue())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("side", [13_300, 20_000, 100_000])
def test_huge_in_pixels(side: int, tmp_path: Path) -> None:
    assert "too large" in refusal(claim_size(tmp_path / "a.png", side))


def test_huge_in_bytes(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(read.MAX_BYTES + 1)
    assert "too large" in refusal(tmp_path / "a.png")


def test_tiny(tmp_path: Path) -> None:
    assert "only 8 x 40 pixels" in refusal(
        save(tmp_path / "a.png", np.zeros((40, 8, 3), dtype=np.uint8))
    )


# Colours.

COLOR = (60, 160, 60)


def flat(color: tuple[int, ...] = COLOR, side: int = 32) -> np.ndarray:
    return np.full((side, side, len(color)), color, dtype=np.uint8)


def shown(path: Path) -> np.ndarray:
    """The colour of the middle pixel, in 0 to 255."""
    rgb = read_picture(path).rgb
    return (rgb[:, rgb.shape[1] // 2, rgb.shape[2] // 2] * 255).numpy()


def matrix_profile(columns: np.ndarray, gamma: float) -> bytes:
    """An ICC profile of three colorants `[3, 3]` (XYZ in D50, one a column) and a gamma."""
    fixed = [struct.pack(">i", round(v * 65536)) for v in columns.T.ravel()]
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061))]
    for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ")):
        tags.append((name, b"XYZ \0\0\0\0" + b"".join(fixed[3 * n : 3 * n + 3])))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    text = b"own\0"
    tags.append((b"desc", b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 79))
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I", start + len(body)) + b"lcms" + struct.pack(">I", 0x02400000)
    head += b"mntrRGB XYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28
    head += struct.pack(">iii", 63190, 65536, 54061) + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + body


SRGB_D50 = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
P3_D50 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)


def to_srgb(color: tuple[int, ...], columns: np.ndarray, gamma: float) -> np.ndarray:
    """`color` of a matrix profile in sRGB, 0 to 255, by the formulas."""
    linear = np.linalg.inv(SRGB_D50) @ columns @ (np.array(color) / 255) ** gamma
    linear = linear.clip(0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return curve * 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("name", ["swapped", "p3", "linear"])
def test_a_colour_profile_is_applied(name: str, suffix: str, tmp_path: Path) -> None:
    columns, gamma = {
        "swapped": (SRGB_D50[:, [1, 0, 2]], 2.2),
        "p3": (P3_D50, 2.2),
        "linear": (SRGB_D50, 1.0),
    }[name]
    options = {"quality": 95} if suffix in ("jpg", "webp") else {}
    path = tmp_path / f"a.{suffix}"
    save(path, flat(), icc_profile=matrix_profile(columns, gamma), **options)
    np.testing.assert_allclose(shown(path), to_srgb(COLOR, columns, gamma), atol=4)


def test_a_colour_profile_leaves_alpha_alone(tmp_path: Path) -> None:
    values = flat((*COLOR, 255))
    values[:8, :, 3] = 0
    values[8:12, :, 3] = 128
    profile = matrix_profile(SRGB_D50[:, [1, 0, 2]], 2.2)
    picture = read_picture(save(tmp_path / "a.png", values, icc_profile=profile))
    assert picture.alpha is not None
    np.testing.assert_array_equal((picture.alpha[0] * 255).round().numpy(), values[..., 3])
    expected = to_srgb(COLOR, SRGB_D50[:, [1, 0, 2]], 2.2)
    np.testing.assert_allclose(picture.rgb[:, 20, 20].numpy() * 255, expected, atol=4)


def test_a_palette_and_a_grey_picture_have_profiles_too(tmp_path: Path) -> None:
    profile = matrix_profile(SRGB_D50[:, [1, 0, 2]], 2.2)
    path = tmp_path / "a.png"
    Image.fromarray(flat()).quantize(4).save(path, icc_profile=profile)
    np.testing.assert_allclose(shown(path), to_srgb(COLOR, SRGB_D50[:, [1, 0, 2]], 2.2), atol=4)
    grey = Image.fromarray(np.full((32, 32), 90, dtype=np.uint8))
    grey.save(path, icc_profile=profile)  # a profile for three channels: taken as neutral
    assert np.ptp(shown(path)) < 4


def test_srgb_and_broken_profiles_change_nothing(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_allclose(shown(save(tmp_path / "a.png", flat(), icc_profile=srgb)), COLOR)
    path = save(tmp_path / "b.png", flat(), icc_profile=b"no profile at all")
    np.testing.assert_allclose(shown(path), COLOR, atol=0.01)
    assert "profile" in read_picture(path).notes[0]


def test_a_gamma_of_one_is_linear(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", flat((55, 55, 55)))
    data = path.read_bytes()
    chunk = b"gAMA" + struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:33] + chunk + data[33:])
    np.testing.assert_allclose(shown(path), to_srgb((55,) * 3, SRGB_D50, 1.0), atol=1)


def test_adobe_rgb_of_a_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    path = save(tmp_path / "a.jpg", flat((100, 150, 100)), quality=98, exif=exif)
    plain = shown(save(tmp_path / "b.jpg", flat((100, 150, 100)), quality=98))
    assert plain[0] - shown(path)[0] > 15 and abs(plain[2] - shown(path)[2]) < 8


def png_with_chunks(path: Path, chunks: dict[bytes, bytes]) -> Path:
    """A PNG of COLOR with ancillary chunks after its header."""
    data = io.BytesIO()
    Image.fromarray(flat()).save(data, "PNG")
    extra = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )
    path.write_bytes(data.getvalue()[:33] + extra + data.getvalue()[33:])
    return path


LINEAR, USUAL = struct.pack(">I", 100_000), struct.pack(">I", 45_455)
WHITE = (31270, 32900)
P3 = struct.pack(">8I", *WHITE, 68000, 32000, 26500, 69000, 15000, 6000)


def test_the_srgb_chunk_wins_over_gamma_and_primaries(tmp_path: Path) -> None:
    path = png_with_chunks(tmp_path / "a.png", {b"sRGB": b"\0", b"cHRM": P3, b"gAMA": LINEAR})
    np.testing.assert_array_equal(shown(path), COLOR)


def test_primaries_of_a_png_are_applied(tmp_path: Path) -> None:
    path = png_with_chunks(tmp_path / "a.png", {b"cHRM": P3, b"gAMA": USUAL})
    np.testing.assert_allclose(shown(path), to_srgb(COLOR, P3_D50, 2.2), atol=1.0)
    assert shown(path)[0] < 10 < shown(path)[1] - 150


def to_srgb_curve(color: tuple[int, ...]) -> tuple[int, ...]:
    """Values that mean with a gamma of 2.2 what `color` means by the curve of sRGB."""
    share = np.array(color) / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return tuple(light ** (1 / 2.2) * 255)


@pytest.mark.parametrize(
    ("points", "columns", "color", "gamma"),
    [
        ((12, 13, 0, 1), P3_D50, to_srgb_curve(COLOR), 2.2),
        ((12, 4, 0, 1), P3_D50, COLOR, 2.2),
        ((1, 8, 0, 1), SRGB_D50, COLOR, 1.0),
        ((1, 13, 0, 1), SRGB_D50, to_srgb_curve(COLOR), 2.2),
    ],
)
def test_code_points_of_a_png_go_before_its_profile(
    points: tuple[int, ...],
    columns: np.ndarray,
    color: tuple[int, ...],
    gamma: float,
    tmp_path: Path,
) -> None:
    expected = to_srgb(color, columns, gamma)
    swapped = b"swapped\0\0" + zlib.compress(matrix_profile(SRGB_D50[:, [1, 0, 2]], 2.2))
    for more in ({}, {b"iCCP": swapped}, {b"gAMA": LINEAR, b"cHRM": P3}):
        path = png_with_chunks(tmp_path / "a.png", more | {b"cICP": bytes(points)})
        np.testing.assert_allclose(shown(path), expected, atol=1.0)


@pytest.mark.parametrize("transfer", [16, 18])
def test_an_hdr_png_is_told(transfer: int, tmp_path: Path) -> None:
    path = png_with_chunks(tmp_path / "a.png", {b"cICP": bytes((9, transfer, 0, 1))})
    assert "HDR" in read_picture(path).notes[0]
    np.testing.assert_array_equal(shown(path), COLOR)


@pytest.mark.parametrize("points", [b"", b"\x0c", bytes((99, 13, 0, 1)), bytes((12, 99, 0, 1))])
def test_code_points_that_nobody_knows_change_nothing(points: bytes, tmp_path: Path) -> None:
    path = png_with_chunks(tmp_path / "a.png", {b"cICP": points})
    np.testing.assert_array_equal(shown(path), COLOR)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        read_picture(path)


@pytest.mark.parametrize(
    "points",
    [
        (*WHITE, 64000, 33000, 30000, 60000, 15000, 6000),  # those of sRGB
        (0, 0, 0, 0, 0, 0, 0, 0),
        (*WHITE, 30000, 30000, 40000, 40000, 50000, 50000),  # on a line
        (31270, 0, 64000, 33000, 30000, 60000, 15000, 6000),  # no white
    ],
)
def test_primaries_that_say_nothing_change_nothing(points: tuple[int, ...], tmp_path: Path) -> None:
    chunks = {b"cHRM": struct.pack(">8I", *points), b"gAMA": USUAL}
    np.testing.assert_array_equal(shown(png_with_chunks(tmp_path / "a.png", chunks)), COLOR)


def test_white_stays_white_under_another_white_point() -> None:
    matrix = to_linear_srgb(np.array([[0.68, 0.32], [0.265, 0.69], [0.15, 0.06]]), (0.314, 0.351))
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-9)
    same = to_linear_srgb(np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]]), (0.3127, 0.3290))
    np.testing.assert_allclose(same, np.eye(3), atol=1e-9)


def grey_tiff(path: Path, values: np.ndarray, bits: int, photometric: int, form: int = 1) -> Path:
    """A TIFF of one grey channel whose tags say what `values [H, ...]` are."""
    data = values.tobytes()
    tags = {256: 32, 257: 32, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 32}
    tags |= {279: len(data), 339: form}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    path.write_bytes(head + data)
    return path


@pytest.mark.parametrize(
    ("dtype", "bits", "form", "white", "photometric"),
    [
        ("<u2", 16, 1, 65535, 1),
        ("<u2", 16, 1, 65535, 0),  # white is the smallest value
        ("<i2", 16, 2, 32767, 1),
        ("<u4", 32, 1, 2**32 - 1, 1),
        ("<u4", 32, 1, 65535, 1),
    ],
)
def test_a_tiff_has_the_range_of_its_type(
    dtype: str, bits: int, form: int, white: int, photometric: int, tmp_path: Path
) -> None:
    values = np.full((32, 32), round(0.25 * white), dtype=dtype)
    values[0] = white
    path = grey_tiff(tmp_path / "a.tif", values, bits, photometric, form)
    np.testing.assert_allclose(shown(path), (0.25 if photometric else 0.75) * 255, atol=0.6)


def test_signed_values_below_zero_are_darker_than_grey(tmp_path: Path) -> None:
    values = np.full((32, 32), -16384, dtype="<i2")
    path = grey_tiff(tmp_path / "a.tif", values, 16, 1, form=2)
    np.testing.assert_allclose(shown(path), 0.25 * 255, atol=0.6)


def test_12_bits_are_a_quarter_of_their_own_range(tmp_path: Path) -> None:
    packed = np.tile(np.uint8([0x40, 0x04, 0x00]), (32, 16))  # twice 0x400 of 0xFFF
    path = grey_tiff(tmp_path / "a.tif", packed, 12, 1)
    np.testing.assert_allclose(shown(path), 0x400 / 0xFFF * 255, atol=0.6)


def test_highlights_of_a_float_picture_are_white(tmp_path: Path) -> None:
    values = np.full((32, 32), 0.5, dtype=np.float32)
    values[:4] = 1.3
    Image.fromarray(values).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_allclose(shown(tmp_path / "a.tif"), 127.5, atol=0.6)
    assert float(picture.rgb[:, 1].min()) == 1.0 and "those above 1 are white" in picture.notes[0]


@pytest.mark.parametrize("value", [0, 0x1000, 0x5000, 0xFFFF])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_range(value: int, suffix: str, tmp_path: Path) -> None:
    values = np.full((32, 32), value, dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    np.testing.assert_allclose(shown(path), value / 257, atol=0.6)


@pytest.mark.parametrize(
    ("largest", "limit"), [(0.3, 1.0), (1.0, 1.0), (90.0, 255.0), (30_000.0, 65535.0)]
)
def test_float_pictures_keep_their_range(largest: float, limit: float, tmp_path: Path) -> None:
    values = np.full((32, 32), largest, dtype=np.float32)
    values[:4] = [[np.nan], [np.inf], [-1.0], [0.0]]
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    np.testing.assert_allclose(shown(path), largest / limit * 255, atol=0.6)
    rgb = read_picture(path).rgb
    assert float(rgb[:, 1].min()) == 1.0 and float(rgb[:, [0, 2, 3]].max()) == 0.0


def test_a_float_picture_beyond_all_ranges_says_so(tmp_path: Path) -> None:
    values = np.full((32, 32), 2.0e5, dtype=np.float32)
    values[:16] = 1.0e5
    Image.fromarray(values).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert float(picture.rgb[0, 2, 2]) == pytest.approx(0.5, abs=0.01)
    assert "scaled by the largest" in picture.notes[0]


# Large pictures and animations.


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_photograph_of_a_hundred_million_pixels_is_shrunk(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    picture = Image.new("L", (12_000, 9_000), 250)
    picture.paste(40, (4000, 3000, 8000, 6000))
    picture.save(path)
    rgb = read_picture(path).rgb
    assert rgb.shape == (3, 384, 512)
    assert float(rgb[:, 192, 256].max()) < 0.17 and float(rgb[:, 10, 10].min()) > 0.97


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_shrunk_picture(orientation: int, tmp_path: Path) -> None:
    values = np.zeros((1200, 2400, 3), dtype=np.uint8)
    values[:300, :300] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", values, exif=exif, quality=95)
    rgb = read_picture(path).rgb
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).resize(rgb.shape[:0:-1])
    expected = np.asarray(upright)[..., 0] > 128
    assert (np.asarray(rgb[0] > 0.5) == expected).mean() > 0.99


def animation(path: Path, colors: list[tuple[int, int, int] | None]) -> Path:
    """Frames with a square of each colour; a blank one for None."""
    frames = []
    for color in colors:
        frame = flat((255, 255, 255), 48)
        if color is not None:
            frame[12:36, 12:36] = color
        frames.append(Image.fromarray(frame))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    return path


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_that_shows_something_is_taken(suffix: str, tmp_path: Path) -> None:
    path = animation(tmp_path / f"a.{suffix}", [None, None, (200, 30, 30), (30, 30, 200)])
    picture = read_picture(path)
    np.testing.assert_allclose(picture.rgb[:, 24, 24] * 255, (200, 30, 30), atol=8)
    assert "frame" in picture.notes[0] and "is used" in picture.notes[0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_object_that_fades_in_is_not_taken_while_it_is_faint(
    suffix: str, tmp_path: Path
) -> None:
    faint = (251, 241, 241)
    path = animation(tmp_path / f"a.{suffix}", [None, faint, (200, 30, 30), None])
    np.testing.assert_allclose(read_picture(path).rgb[:, 24, 24] * 255, (200, 30, 30), atol=8)
    path = animation(tmp_path / f"b.{suffix}", [None, faint, faint, None])  # never clearer
    picture = read_picture(path)
    np.testing.assert_allclose(picture.rgb[:, 24, 24] * 255, faint, atol=4)
    assert "frame 2 is used" in picture.notes[0]


def test_an_animation_that_shows_nothing_says_so(tmp_path: Path) -> None:
    frames = [Image.new("L", (32, 32), level) for level in (250, 255)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert "none of those read shows anything" in read_picture(tmp_path / "a.tif").notes[0]
