"""Odd and damaged image files: the right pixels, or a refusal that names the file; never a crash, never wrong pixels."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unimim import Sampling
from unimim.engine.data import open_source
from unimim.engine.data.loader import steps
from unimim.training import plan_of

from ..engine import toys

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 24, 32
NUM_MUTANTS = 1500


def ramp(low: int = 0, high: int = 255) -> Pixels:
    """(H, W, 3): red grows to the right, green downwards, blue to the left: no mirror or turn looks the same."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [x / (WIDTH - 1), y / (HEIGHT - 1), 1 - x / (WIDTH - 1)]
    return np.round(low + (high - low) * np.stack(planes, -1)).astype(np.uint8)


def on_white(colour: Pixels, alpha: NDArray[Any]) -> Pixels:
    share = alpha[..., None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def grey(values: NDArray[Any]) -> Pixels:
    return np.stack([np.round(values).astype(np.uint8)] * 3, -1)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG written by hand. colour: 0 grey, 2 RGB. rows: filter bytes included."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def turned(orientation: int, undo: Callable[[Pixels], Pixels]) -> tuple[bytes, Pixels]:
    """A JPEG that its EXIF orientation says to turn, and how it looks turned."""
    exif = Image.Exif()
    exif[274] = orientation
    return encode(Image.fromarray(ramp()), "JPEG", quality=95, exif=exif), undo(ramp())


def huge_jpeg() -> bytes:
    """A JPEG whose header claims 20,000 x 20,000 pixels."""
    data = encode(Image.fromarray(ramp()), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", 20_000, 20_000) + data[place + 4 :]


def odd_files() -> dict[str, tuple[bytes, Pixels | None]]:
    """{name: (content, the pixels it must give; None where it must be refused)}."""
    photo, values = Image.fromarray(ramp()), ramp()[..., 0]
    sixteen = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 85).reshape(HEIGHT, WIDTH)
    colour16 = np.stack([sixteen, sixteen[::-1], 65535 - sixteen], -1)
    alpha = np.broadcast_to(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, WIDTH))
    palette = photo.quantize(16, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(palette)]
    see_through = np.where(np.asarray(palette) == 3, 0, 255)
    inks = np.stack([values, values[::-1], values.T.repeat(2, 0)[:HEIGHT, :1].repeat(WIDTH, 1), values // 4], -1)
    printed = np.round((255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    frames = [photo, photo.rotate(180), photo.rotate(90)]
    floats = values.astype(np.float32)
    nan = floats / 255
    nan[3, 4] = np.nan
    rgba = Image.fromarray(np.dstack([ramp(), alpha]))
    rows16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour16)
    whole_png, whole_jpeg = encode(photo, "PNG"), encode(photo, "JPEG", quality=95)
    flat = Image.new("RGB", (5000, 1), (9, 99, 199))
    return {
        "grey.png": (encode(Image.fromarray(values), "PNG"), grey(values)),
        "one-bit.png": (encode(Image.fromarray(values > 99), "PNG"), grey((values > 99) * 255)),
        "grey16.png": (encode(Image.fromarray(sixteen), "PNG"), grey(sixteen / 257)),
        "grey16.tif": (encode(Image.fromarray(sixteen), "TIFF"), grey(sixteen / 257)),
        "colour16.png": (png(WIDTH, HEIGHT, 16, 2, rows16), np.round(colour16 / 257).astype(np.uint8)),
        "float-to-1.tif": (encode(Image.fromarray(floats / 255), "TIFF"), grey(values)),
        "float-to-255.tif": (encode(Image.fromarray(floats), "TIFF"), grey(values)),
        "nan.tif": (encode(Image.fromarray(nan), "TIFF"), None),
        "palette.png": (encode(palette, "PNG"), colours),
        "palette-transparent.png": (encode(palette, "PNG", transparency=3), on_white(colours, see_through)),
        "grey-alpha.png": (encode(Image.fromarray(np.dstack([values, alpha])), "PNG"), on_white(grey(values), alpha)),
        "colour-alpha.png": (encode(rgba, "PNG"), on_white(ramp(), alpha)),
        "exif-3.jpg": turned(3, lambda pixels: pixels[::-1, ::-1]),
        "exif-6.jpg": turned(6, lambda pixels: np.rot90(pixels, -1)),
        "exif-7.jpg": turned(7, lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2)),
        "animated.gif": (encode(palette, "GIF", save_all=True, append_images=frames[1:]), colours),
        "animated.webp": (encode(photo, "WEBP", save_all=True, append_images=frames[1:], lossless=True), ramp()),
        "several.mpo.jpg": (encode(photo, "MPO", save_all=True, append_images=frames[1:], quality=95), ramp()),
        "progressive.jpg": (encode(photo, "JPEG", progressive=True, quality=95), ramp()),
        "inks-adobe.jpg": (encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=95), printed),
        "inks.tif": (encode(Image.fromarray(inks, "CMYK"), "TIFF"), printed),
        "bitmap.bmp": (encode(photo, "BMP"), ramp()),
        "portable.ppm": (encode(photo, "PPM"), ramp()),
        "pixel.png": (encode(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"), np.array([[[9, 99, 199]]], np.uint8)),
        "long.png": (encode(flat, "PNG"), np.tile(np.array([9, 99, 199], np.uint8), (1, 5000, 1))),
        "wrong-ending.jpg": (whole_png, ramp()),
        "cut.jpg": (whole_jpeg[: len(whole_jpeg) // 2], None),
        "damaged-header.png": (whole_png[:18] + b"\xff\xff" + whole_png[20:], None),
        "empty.jpg": (b"", None),
        "page.png": (b"<!doctype html><title>404 Not Found</title>", None),
        "text-bomb.png": (png(1, 1, 8, 2, bytes(4), chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(99_000_000)))), None),
        "bomb-400mp.jpg": (huge_jpeg(), None),
        "bomb-100mp.png": (encode(Image.new("1", (10_000, 10_000)), "PNG"), None),  # whole, and small as a file
    }


LOSSY = 6.0
"""Levels of 255: the mean difference that JPEG is allowed; 1 anywhere is allowed where nothing is lost."""


def differs(name: str, found: Pixels, expected: Pixels) -> bool:
    if found.shape != expected.shape:
        return True
    difference = np.abs(found.astype(int) - expected)
    lossy = name.endswith(".jpg") and name != "wrong-ending.jpg"
    return bool(difference.mean() > LOSSY if lossy else difference.max() > 1)


def mutants(folder: Path) -> None:
    """NUM_MUTANTS files, each with 1 to 3 bytes changed."""
    photo = Image.fromarray(ramp())
    palette = photo.quantize(16, dither=Image.Dither.NONE)
    whole = {
        "png": [encode(photo, "PNG"), encode(palette, "PNG")],
        "jpg": [encode(photo, "JPEG"), encode(photo, "JPEG", progressive=True)],
        "gif": [encode(palette, "GIF")],
        "webp": [encode(photo, "WEBP"), encode(photo, "WEBP", lossless=True)],
    }
    rng = np.random.default_rng(0)
    for number in range(NUM_MUTANTS):
        ending = [*whole][number % len(whole)]
        data = bytearray(whole[ending][number % len(whole[ending])])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] ^= int(rng.integers(1, 256))
        (folder / f"{number:04d}.{ending}").write_bytes(data)


READ_ALL = r"""
import json, pathlib, re, sys
from unimim.engine.data import BadImage, open_source
def peak():  # of this process: what getrusage tells starts at its parent's
    status = pathlib.Path("/proc/self/status")
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) if status.exists() else 0
source = open_source(sys.argv[1])
found, before = {"read": [], "refused": [], "escaped": []}, peak()
for index in range(len(source)):
    try:
        source.read(index)
    except BadImage:
        kind = "refused"
    except Exception:
        kind = "escaped"
    else:
        kind = "read"
    found[kind].append(source.name(index))
print(json.dumps(found | {"mb": (peak() - before) // 1024}))
"""


def read_all(folder: Path) -> dict[str, Any] | None:
    """What a process of its own finds when it reads every image; None if that kills it."""
    command = [sys.executable, "-W", "error", "-c", READ_ALL, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] | None = json.loads(ran.stdout) if ran.returncode == 0 else None
    return found


def test_odd_files_and_mutants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = odd_files()
    folder = tmp_path / "set" / "train"
    for place in (folder, tmp_path / "set" / "val", tmp_path / "mutants" / "train", tmp_path / "mutants" / "val"):
        place.mkdir(parents=True)
        (place / "whole.png").write_bytes(encode(Image.fromarray(ramp()), "PNG"))
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    refused = {name for name, (_, expected) in files.items() if expected is None}

    found = read_all(tmp_path / "set")
    assert found is not None, "a file ended the process"
    assert {Path(name).name for name in found["refused"]} == refused

    source, wrong = open_source(str(tmp_path / "set")), []
    for index in range(len(source)):
        name = Path(source.name(index)).name
        expected = files[name][1] if name in files else ramp()
        if expected is not None and differs(name, source.read(index).permute(1, 2, 0).numpy(), expected):
            wrong.append(name)

    for number in range(200):  # enough whole images that the refused are few
        (folder / f"{number:03d}.png").write_bytes((folder / "whole.png").read_bytes())
    listed = quarantined(tmp_path / "set", tmp_path / "run")
    assert {Path(name).name for name in listed} == refused

    mutants(tmp_path / "mutants" / "train")
    mutated = read_all(tmp_path / "mutants")
    crashes = mutated is None or len(mutated["escaped"])
    line = (
        f"files {len(files)}, escaped exceptions {len(found['escaped'])}, silently wrong pixels {len(wrong)}, "
        f"quarantined listed {len(listed)}; mutants {NUM_MUTANTS}, crashes {int(crashes)}; peak growth {found['mb']} MB"
    )
    with capsys.disabled():
        print(f"\n{line}")
    assert wrong == []
    assert line.startswith(
        "files 33, escaped exceptions 0, silently wrong pixels 0, quarantined listed 8; mutants 1500, crashes 0; "
    )
    assert mutated is not None
    assert min(len(mutated["read"]), len(mutated["refused"])) > NUM_MUTANTS / 10, "both outcomes were met"
    assert found["mb"] <= 300


def quarantined(data: Path, out: Path) -> list[str]:
    """The names in the quarantine file of a run that read every image once."""
    out.mkdir()
    source = open_source(str(data))
    recipe = toys.recipe("mae-micro", "batch=1", "epochs=1")
    feed = steps(
        source, Sampling(recipe, recipe.student.geometry), plan_of(recipe, source), toys.run(out, skip_bad_images=True)
    )
    assert sum(len(step) for step in feed) == len(source)
    lines = (out / "skipped_images.txt").read_text().splitlines()
    return [line.split("\t")[0] for line in lines]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.png").write_bytes(encode(Image.fromarray(ramp()), "PNG"))
    os.mkfifo(tmp_path / "train" / "pipe.png")
    (tmp_path / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = read_all(tmp_path)
    assert found is not None
    assert len(found["refused"]) == 2
