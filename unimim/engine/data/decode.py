"""Bytes of any image file -> uint8 RGB tensor, or one error that names the file.

Everything is decoded by Pillow, never by torchvision.io, which segfaults on damaged PNGs.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000

# An allow list, because Pillow would hand an EPS file to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})

_UNDO = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """One image that cannot be read: `name` says which, `reason` why and what to do."""

    def __init__(self, name: str, reason: str = "") -> None:
        # Both are arguments, so that it pickles; one is enough, so that DataLoader can raise it again with its own text.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


def decode(data: bytes, name: str) -> torch.Tensor:
    """Decode the first frame of an image file, upright, as RGB.

    Transparency falls on white. Sixteen bits become eight by value / 257 rounded. 32-bit integers and floats become
    eight bits by value * 255 / top, where top is 1 when no value is above 1 (floats only), else 255 when none is above
    255, else the largest value: never clipped. Of 16-bit colour files Pillow reads the upper byte.

    Args:
        data: the whole file.
        name: the file's name in messages.

    Returns:
        (3, H, W) uint8, in memory (H, W, 3), as decoders write it and as resizing reads it fastest.

    Raises:
        BadImage: the file is empty, damaged, cut, not an image, of more than MAX_PIXELS (found in its header, before
            any pixel is decoded), or has values without a meaning as brightness (NaN, infinite, negative).
    """
    return _opened(data, name, _FORMATS, from_pillow)


def decode_ids(data: bytes, name: str) -> torch.Tensor:
    """Decode a PNG of class ids: the values as they are, a palette's colours being no more than decoration.

    Returns:
        (H, W) uint8.

    Raises:
        BadImage: as `decode`, and when the file has colours (or transparency) instead of one number a pixel, or a number
            above 255.
    """
    return _opened(data, name, ("PNG",), _ids)


def _ids(image: Image.Image, name: str) -> torch.Tensor:
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise BadImage(name, f"a {image.mode} image, not one class id a pixel: save the ids as a PNG of one channel")
    values = np.asarray(image)
    if values.max() > 255:
        raise BadImage(name, f"holds the class id {values.max()}, more than 255: renumber the classes")
    return torch.from_numpy(values.astype(np.uint8))


def _opened(
    data: bytes, name: str, formats: tuple[str, ...], read: Callable[[Image.Image, str], torch.Tensor]
) -> torch.Tensor:
    """What `read` makes of an image file, every failure a BadImage."""
    if not data:
        raise BadImage(name, "the file is empty: copy it again or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about size and odd metadata: we judge both ourselves
            with Image.open(io.BytesIO(data), formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage(name, _too_large(f"{image.width} x {image.height} pixels"))
                return read(image, name)
    except BadImage:
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(formats)
        raise BadImage(name, f"not an image that can be read ({kinds}): convert it or remove it") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, three times ours, is met before our check
        raise BadImage(name, _too_large(str(error))) from None
    except Exception as error:  # the decoders raise a dozen unrelated types on damaged bytes
        raise BadImage(name, f"damaged ({type(error).__name__}: {error}): copy it again or remove it") from error


def from_pillow(image: Image.Image, name: str) -> torch.Tensor:
    """(3, H, W) uint8 of an opened Pillow image, by the rules of `decode`, in memory (H, W, 3)."""
    # Pillow opens some 16-bit PNG and PGM files in its 32-bit mode, values still 0 to 65535.
    is_16bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8bit(image, is_16bit, name)
        return torch.from_numpy(grey).unsqueeze(2).expand(-1, -1, 3).contiguous().permute(2, 0, 1)
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(seen, mask=seen)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # which also turns a TIFF upright and drops its orientation
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken metadata beside whole pixels
        return image
    return image.transpose(_UNDO[orientation]) if orientation in _UNDO else image


def _too_large(size: str) -> str:
    return f"{size}: more than {MAX_PIXELS / 1e6:.0f} megapixels, scale it down"


def _to_8bit(image: Image.Image, is_16bit: bool, name: str) -> NDArray[np.uint8]:
    """(H, W) of an image whose mode is not 8-bit: I;16 in its byte orders, I (int32) or F (float32)."""
    values: NDArray[np.float32] = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadImage(name, "holds NaN or infinite values: replace them, or save the image with 8 bits")
    if low < 0:
        raise BadImage(name, f"holds negative values (down to {low:g}): shift them to 0, or save the image with 8 bits")
    if is_16bit:
        top = 65535.0
    elif image.mode == "F" and high <= 1:
        top = 1.0
    else:
        top = max(255.0, high)
    return (values * (255 / top) + 0.5).astype(np.uint8)
