"""Any bytes give the right pixels or a BadImage that names the file."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset

from unimim.engine.data.decode import MAX_PIXELS, BadImage, decode


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header claims a size, followed by whatever chunks."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def photo(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


RED = (200, 40, 30)
TRANSPARENT_RED = Image.new("RGBA", (3, 2), (*RED, 0))
PALETTE = Image.new("RGB", (3, 2), RED).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("RGB", (3, 2), RED), "PNG"), RED),
        (encode(Image.new("RGB", (3, 2), RED), "BMP"), RED),
        (encode(Image.new("RGB", (3, 2), RED), "WEBP", lossless=True), RED),
        (encode(Image.new("RGB", (3, 2), RED), "PPM"), RED),
        (encode(Image.new("RGB", (1, 1), RED), "PNG"), RED),
        (encode(Image.new("L", (3, 2), 77), "PNG"), (77, 77, 77)),
        (encode(Image.new("1", (3, 2), 1), "PNG"), (255, 255, 255)),
        (encode(PALETTE, "PNG"), RED),
        (encode(PALETTE, "GIF"), RED),
        (encode(PALETTE, "PNG", transparency=b"\x00" * 256), (255, 255, 255)),
        (encode(TRANSPARENT_RED, "PNG"), (255, 255, 255)),
        (encode(TRANSPARENT_RED, "WEBP", lossless=True, exact=True), (255, 255, 255)),
        (encode(Image.new("RGBA", (3, 2), (*RED, 102)), "PNG"), (233, 169, 165)),
        (encode(Image.new("LA", (3, 2), (0, 51)), "PNG"), (204, 204, 204)),
        (encode(Image.new("RGB", (3, 2), RED), "PNG", transparency=RED), (255, 255, 255)),
        (encode(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
    ],
)
def test_every_kind_of_file_gives_its_colour(data: bytes, expected: tuple[int, int, int]) -> None:
    pixels = decode(data, "x")
    assert pixels.dtype == torch.uint8
    assert pixels.permute(1, 2, 0).is_contiguous()
    assert pixels.shape[0] == 3
    torch.testing.assert_close(pixels, torch.tensor(expected)[:, None, None].expand_as(pixels).byte(), atol=1, rtol=0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = torch.from_numpy((values.astype(int) * 2 + 257) // 514).byte().expand(3, -1, -1)  # value / 257, rounded
    assert torch.equal(decode(encode(Image.fromarray(values), kind), "x"), expected)


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=8),
    st.sampled_from([np.float32, np.int32]),
)
def test_floats_and_large_integers_are_scaled_and_not_clipped(values: list[float], kind: type[np.number[Any]]) -> None:
    row = np.array([values]).astype(kind)
    pixels = decode(encode(Image.fromarray(row), "TIFF"), "x")[0]
    top = 1.0 if kind is np.float32 and row.max() <= 1 else max(255.0, float(row.max()))
    expected = row.astype(np.float64) * 255 / top
    assert np.abs(pixels.numpy() - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN"), (np.inf, "infinite"), (-0.5, "negative values .* -0.5")]
)
def test_values_that_are_no_brightness_are_refused(value: float, reason: str) -> None:
    data = encode(Image.fromarray(np.array([[0.25, value]], np.float32)), "TIFF")
    with pytest.raises(BadImage, match=reason):
        decode(data, "x.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32))
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 7), "white")  # top left, wider than high
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[274] = orientation
    pixels = decode(encode(stored, kind, exif=exif), "x").float()
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1).float()
    assert pixels.shape == expected.shape
    assert (pixels - expected).abs().mean() < 4  # of 255: JPEG and WebP blur


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("side", [8001, 20_000, 60_000])
def test_too_many_pixels_are_refused_by_the_header(side: int) -> None:
    assert side * side > MAX_PIXELS
    with pytest.raises(BadImage, match=r"^big\.png: .* more than 64 megapixels, scale it down$"):
        decode(png(side, side, (b"IDAT", b"")), "big.png")


def test_a_text_bomb_is_refused() -> None:
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    with pytest.raises(BadImage, match=r"^x\.png: damaged"):
        decode(png(1, 1, bomb), "x.png")


WHOLE = encode(photo(40, 30), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (encode(photo(40, 30), "EPS"), "not an image"),  # Pillow would start Ghostscript
        (WHOLE[: len(WHOLE) // 2], "damaged"),
        (WHOLE[:30], "damaged|not an image"),
        (encode(photo(40, 30), "JPEG")[:-200], "damaged"),
        (encode(photo(40, 30), "GIF")[:-300], "damaged"),
        (encode(photo(40, 30), "WEBP")[:-100], "damaged"),
        (encode(photo(40, 30), "TIFF")[:-200], "damaged|not an image"),
    ],
)
def test_what_cannot_be_read_says_which_file_why_and_what_to_do(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=rf"^folder/a\.png: .*({reason}).*: .*(remove|convert)") as caught:
        decode(data, "folder/a.png")
    assert caught.value.name == "folder/a.png"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_mutated_files_give_pixels_or_bad_image(kind: str) -> None:
    whole = bytearray(encode(photo(24, 20).quantize(16) if kind == "GIF" else photo(24, 20), kind))
    rng = np.random.default_rng(0)
    bad = 0
    for _ in range(150):
        mutant = whole.copy()
        for position in rng.integers(0, len(mutant), rng.integers(1, 4)):
            mutant[position] = rng.integers(256)
        try:
            assert decode(bytes(mutant), "x").dtype == torch.uint8
        except BadImage:
            bad += 1
    assert bad < 150


@pytest.mark.parametrize(
    "exif",
    [
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff\0\0\xff\xff",  # an entry that points out of the file
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # orientation 99
        b"garbage",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_metadata_harms_and_warns_nobody(kind: str, exif: bytes) -> None:
    plain, odd = encode(photo(8, 8), kind), encode(photo(8, 8), kind, exif=b"Exif\0\0" + exif)
    assert torch.equal(decode(odd, "x"), decode(plain, "x"))


class Broken(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return decode(b"", "a.png")


def test_bad_image_travels_between_processes() -> None:
    bad = BadImage("a.png", "cut")
    copy = pickle.loads(pickle.dumps(bad))
    assert (type(copy), str(copy), copy.name, copy.reason) == (BadImage, "a.png: cut", "a.png", "cut")
    with pytest.raises(BadImage, match=r"a\.png: the file is empty"):
        next(iter(DataLoader(Broken(), num_workers=1)))
