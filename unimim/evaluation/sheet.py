"""Rows of a gallery as one picture, and single image files as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..engine.data.decode import BadImage, decode
from ..engine.data.splits import digest
from ..terminal import clean
from .gallery import Pixels, Row

GAP, LINE, MARGIN = 8, 17, 16
"""Pixels between pictures, of a line of text, and around everything."""
SIDE = 128
"""Pixels up to which small pictures are enlarged, by whole factors."""
LABELS = 180
"""Pixels of the column of titles."""
INK, SOFT, PAPER = (27, 28, 30), (108, 112, 119), (255, 255, 255)


class Loose:
    """Image files, given one by one: an `ImageSource` without labels."""

    classes: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> Tensor:
        try:
            data = self.paths[index].read_bytes()
        except OSError as error:
            raise BadImage(self.name(index), str(error.strerror)) from error
        return decode(data, self.name(index))

    def label(self, index: int) -> int:
        return -1

    def fingerprint(self) -> str:
        return digest([f"{path}:{path.stat().st_size}" for path in self.paths])


def sheet(rows: Sequence[Row], names: Sequence[str]) -> Image.Image:
    """One picture of all rows: titles and notes at the left, a column an image, `names` (or a row's own captions) below.

    Text is drawn, never read: names may hold anything.
    """
    title, small = ImageFont.load_default(14), ImageFont.load_default(12)
    rows = [replace(row, images=[_enlarged(image) for image in row.images]) for row in rows]
    width = max(image.shape[1] for row in rows for image in row.images)
    blocks = [_wrap(clean(row.note), small, LABELS) for row in rows]
    heights = [
        max(row.images[0].shape[0] + LINE, LINE * (1 + len(block))) for row, block in zip(rows, blocks, strict=True)
    ]
    across = 2 * MARGIN + LABELS + len(rows[0].images) * (width + GAP)
    page = Image.new("RGB", (across, 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1)), PAPER)
    draw, top, known = ImageDraw.Draw(page), MARGIN, False
    for row, block, height in zip(rows, blocks, heights, strict=True):
        draw.text((MARGIN, top), clean(row.title), INK, title)
        for number, line in enumerate(block, 1):
            draw.text((MARGIN, top + number * LINE), line, SOFT, small)
        captions = row.captions or (() if known else tuple(names))
        known = known or not row.captions
        for column, image in enumerate(row.images):
            left = MARGIN + LABELS + GAP + column * (width + GAP)
            page.paste(Image.fromarray(image), (left, top))
            if captions:
                caption = _wrap(clean(captions[column]), small, width)[0]
                draw.text((left, top + image.shape[0] + 2), caption, SOFT, small)
        top += height + GAP
    return page


def _enlarged(image: Pixels) -> Pixels:
    factor = max(1, SIDE // min(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Lines no wider than `width`; a word that is wider is cut. At least one line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
