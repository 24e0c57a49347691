"""Images as PNG data URIs that fit into a budget of bytes."""

import base64
import hashlib
import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimim.report.data import Picture

SIDES = (256, 192, 144, 112, 88, 64, 48, 32)
"""Longest side in pixels, largest first: all pictures of a page are reduced to the first one that fits the budget."""


def fingerprint(picture: Picture) -> str:
    """Equal for pictures with equal pixels, whatever their captions."""
    digest = hashlib.sha256(str(picture.pixels.shape).encode())
    digest.update(np.ascontiguousarray(picture.pixels).tobytes())
    return digest.hexdigest()


def data_uri(pixels: NDArray[np.uint8], side: int) -> str:
    """`pixels` (H, W, 3) as a PNG data URI, reduced to a longest side of `side` if it is larger, never enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def fit(pictures: Iterable[Picture], budget: int) -> dict[str, str]:
    """Data URIs by `fingerprint`, together at most `budget` bytes as far as the smallest side allows.

    Every occurrence on the page costs its bytes again, so repeated pictures count as often as they occur.
    """
    occurrences = [(fingerprint(picture), picture) for picture in pictures]
    unique = dict(occurrences)
    uris: dict[str, str] = {}
    size, last = 0.0, SIDES[0]
    for side in SIDES:
        # A reduced image needs at least its share of the pixels; most sides are ruled out without encoding anything.
        if size * (side / last) ** 2 > budget and side != SIDES[-1]:
            continue
        uris = {key: data_uri(picture.pixels, side) for key, picture in unique.items()}
        size, last = sum(len(uris[key]) for key, _ in occurrences), side
        if size <= budget:
            break
    return uris
