"""View policies: the crops of an image, every rendition cut from the same box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import ImageFilter
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from .axes import Rng, Views
from .schedule import Frozen
from .types import Rendition, Size, View

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]
"""top, left, height, width in pixels of the source image."""


class Crop(Views):
    """One random crop: one box, mirrored or not, colours jittered, then resized to the student's size and to every rendition.

    The box is sampled as in torchvision's RandomResizedCrop: area uniform in `scale` of the image, log-uniform aspect
    ratio, ten tries, else the largest centred box of a legal ratio. Mirror and jitter are shared by all renditions.
    Deviation: BEiT and data2vec jitter the whole image before the crop, which costs more (docs/numerics.md).
    """

    class Config(Views.Config):
        """scale: share of the image's area.  ratio: width / height.  jitter: strength of brightness, contrast and
        saturation changes, factors uniform in [1 - jitter, 1 + jitter] in random order."""

        name: Literal["crop"] = "crop"
        scale: tuple[float, float] = (0.2, 1.0)
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        flip: float = Field(0.5, ge=0, le=1)
        jitter: float = Field(0.0, ge=0, le=1)
        interpolation: Interpolation = "bicubic"

        @model_validator(mode="after")
        def _ordered(self) -> Crop.Config:
            check_box(self.scale, self.ratio)
            return self

    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        height, width = image.shape[-2:]
        top, left, h, w = box = random_box(height, width, self.config.scale, self.config.ratio, rng)
        cut = image[:, top : top + h, left : left + w]
        flip = rng.random() < self.config.flip
        if self.config.jitter:
            cut = jitter(cut, self.config.jitter, rng)
        made = resize(cut, size, self.config.interpolation).unsqueeze(0)
        more = {r: resize(cut, r.size, r.interpolation).unsqueeze(0) for r in renditions}
        if flip:  # last, where the fewest pixels are
            made, more = made.flip(-1), {rendition: image.flip(-1) for rendition, image in more.items()}
        view = View(made, more, torch.tensor([fractions(box, height, width)]), torch.tensor([flip]))
        return {"main": view}


class Center(Views):
    """The central square, resized: for evaluation and for tests."""

    class Config(Views.Config):
        """share: side of the square in parts of the shorter side."""

        name: Literal["center"] = "center"
        share: float = Field(1.0, gt=0, le=1)
        interpolation: Interpolation = "bicubic"

    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        height, width = image.shape[-2:]
        side = max(1, round(min(height, width) * self.config.share))
        box = ((height - side) // 2, (width - side) // 2, side, side)
        cut = image[:, box[0] : box[0] + side, box[1] : box[1] + side]
        view = View(
            resize(cut, size, self.config.interpolation).unsqueeze(0),
            {rendition: resize(cut, rendition.size, rendition.interpolation).unsqueeze(0) for rendition in renditions},
            torch.tensor([fractions(box, height, width)]),
            torch.tensor([False]),
        )
        return {"main": view}


class Colors(Frozen):
    """A random change of colours that leaves every pixel where it is.

    With chance `jitter`: brightness, contrast and saturation by factors uniform in [1 - s, 1 + s] and hue by a shift
    uniform in [-s, s], in random order, each where its s is not zero. Then, each with its own chance: grey; a Gaussian blur
    of sigma uniform in `sigma` pixels of the student's image (Pillow's, as in MoCo v3 @ c349e6e, moco/loader.py); solarized
    above 128 of 255. The order and the parameters follow MoCo v3, ConMIM, SIM and MSN.
    """

    jitter: float = Field(0.0, ge=0, le=1)
    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    grey: float = Field(0.0, ge=0, le=1)
    blur: float = Field(0.0, ge=0, le=1)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Colors:
        if not 0 <= self.sigma[0] <= self.sigma[1] <= 100:
            raise ValueError(f"sigma must be 0 <= low <= high <= 100, not {self.sigma}")
        return self

    def draw(self, rng: Rng) -> ColorDraw:
        """One change, to be applied to any number of cuts."""
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = tuple(float(rng.uniform(max(0.0, 1 - s), 1 + s)) for s in strengths)
        shift, order = float(rng.uniform(-self.hue, self.hue)), tuple(int(n) for n in rng.permutation(4))
        sigma, (jitter, grey, blur, solarize) = float(rng.uniform(*self.sigma)), rng.random(4)
        wanted = [n for n in order if (*strengths, self.hue)[n]] if jitter < self.jitter else []
        blurred = sigma if blur < self.blur else 0.0
        return ColorDraw(
            (*factors, shift), tuple(wanted), bool(grey < self.grey), blurred, bool(solarize < self.solarize)
        )


class ColorDraw(NamedTuple):
    """What was drawn: factors of brightness, contrast and saturation and the shift of hue, in which order, and the rest."""

    amounts: tuple[float, ...]
    order: tuple[int, ...]
    grey: bool
    sigma: float
    solarize: bool

    def __call__(self, image: Tensor, zoom: float = 1.0) -> Tensor:
        """uint8 (C, H, W) -> the same; zoom: its pixels for one of the image that sigma counts in."""
        changes: list[Any] = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        for number in self.order:
            image = changes[number](image, self.amounts[number])
        if self.grey:
            image = tv.rgb_to_grayscale(image, num_output_channels=3)
        if self.sigma:
            blurred = tv.to_pil_image(image).filter(ImageFilter.GaussianBlur(self.sigma * zoom))
            image = torch.from_numpy(np.array(blurred)).view(*image.shape[-2:], -1).permute(2, 0, 1)
        return tv.solarize(image, 128) if self.solarize else image


class Pair(Views):
    """Two views of the image, "main" and "other", whose colours are changed apart.

    crops "shared": one box and mirroring for both (ConMIM, ExtreMA); "independent": one each (SIM). Boxes are sampled as in
    `crop`. Colours are changed after the resize, by the same draw in every rendition.
    """

    class Config(Views.Config):
        name: Literal["pair"] = "pair"
        crops: Literal["shared", "independent"] = "independent"
        scale: tuple[float, float] = (0.2, 1.0)
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        flip: float = Field(0.5, ge=0, le=1)
        interpolation: Interpolation = "bicubic"
        main: Colors = Colors()
        other: Colors = Colors()

        @model_validator(mode="after")
        def _ordered(self) -> Pair.Config:
            check_box(self.scale, self.ratio)
            return self

        @property
        def names(self) -> tuple[str, ...]:
            return "main", "other"

    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        config, (height, width), made, where = self.config, image.shape[-2:], {}, None
        for name in config.names:
            if where is None or config.crops == "independent":
                where = random_box(height, width, config.scale, config.ratio, rng), bool(rng.random() < config.flip)
            draw = getattr(config, name).draw(rng)
            made[name] = cut_view(image, *where, size, config.interpolation, renditions, draw)
        return made


class MultiCrop(Views):
    """Views "target" and "main", large random crops, and "focal0", "focal1", ..., small ones of fewer pixels.

    Box, mirroring and colours are drawn apart for each, as in MSN (facebookresearch/msn @ 4388dc1, src/data_manager.py).
    """

    class Config(Views.Config):
        """focal_size: side of the focal views in pixels.  scale, focal_scale: shares of the image's area."""

        name: Literal["multi_crop"] = "multi_crop"
        num_focal: int = Field(10, ge=0, le=64)
        focal_size: int = Field(96, gt=0, le=2**13)
        scale: tuple[float, float] = (0.3, 1.0)
        focal_scale: tuple[float, float] = (0.05, 0.3)
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        flip: float = Field(0.5, ge=0, le=1)
        interpolation: Interpolation = "bilinear"
        colors: Colors = Colors()

        @model_validator(mode="after")
        def _ordered(self) -> MultiCrop.Config:
            check_box(self.scale, self.ratio)
            check_box(self.focal_scale, self.ratio, "focal_scale")
            return self

        @property
        def names(self) -> tuple[str, ...]:
            return ("target", "main", *(f"focal{number}" for number in range(self.num_focal)))

        def size_of(self, view: str, size: Size) -> Size:
            return (self.focal_size, self.focal_size) if view.startswith("focal") else size

    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        config, (height, width), made = self.config, image.shape[-2:], {}
        for name in config.names:
            own = config.size_of(name, size)
            scale = config.focal_scale if name.startswith("focal") else config.scale
            where = random_box(height, width, scale, config.ratio, rng), bool(rng.random() < config.flip)
            wanted = renditions if own == size else ()
            made[name] = cut_view(image, *where, own, config.interpolation, wanted, config.colors.draw(rng))
        return made


def cut_view(
    image: Tensor,
    box: Box,
    flip: bool,
    size: Size,
    interpolation: str,
    renditions: Sequence[Rendition],
    colors: ColorDraw,
) -> View:
    """The box of an image as a view of `size` and in every rendition, mirrored or not, in changed colours."""
    top, left, h, w = box
    cut = image[:, top : top + h, left : left + w]

    def make(size_: Size, interpolation_: str) -> Tensor:
        made = resize(cut, size_, interpolation_)
        return colors(made.flip(-1) if flip else made, size_[0] / size[0]).unsqueeze(0).contiguous()

    cuts = {rendition: make(rendition.size, rendition.interpolation) for rendition in renditions}
    boxes = torch.tensor([fractions(box, *image.shape[-2:])])
    return View(make(size, interpolation), cuts, boxes, torch.tensor([flip]))


def check_box(scale: tuple[float, float], ratio: tuple[float, float], name: str = "scale") -> None:
    """ValueError unless random boxes can be drawn so."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name} must be 0 < low <= high <= 1, not {scale}")
    if not 0.01 <= ratio[0] <= ratio[1] <= 100:
        raise ValueError(f"ratio must be 0.01 <= low <= high <= 100, not {ratio}")


def random_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: Rng) -> Box:
    """A box with area in `scale` of the image and aspect in `ratio`, or the largest centred one of a legal ratio."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def fractions(box: Box, height: int, width: int) -> list[float]:
    top, left, h, w = box
    return [top / height, left / width, h / height, w / width]


def resize(image: Tensor, size: Size, interpolation: str) -> Tensor:
    """uint8 (C, h, w) -> uint8 (C, H, W), antialiased; Lanczos exists in Pillow only."""
    if tuple(image.shape[-2:]) == size:
        return image.contiguous()
    if interpolation == "lanczos":
        picture = tv.resize(tv.to_pil_image(image), list(size), InterpolationMode.LANCZOS)
        return torch.from_numpy(np.array(picture)).view(*size, -1).permute(2, 0, 1).contiguous()
    resized: Tensor = tv.resize(image, list(size), InterpolationMode(interpolation), antialias=True)
    return resized.contiguous()


def jitter(image: Tensor, strength: float, rng: Rng) -> Tensor:
    """Brightness, contrast and saturation by factors uniform in [1 - strength, 1 + strength], in random order."""
    changes: list[Any] = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, len(changes))
    for number in rng.permutation(len(changes)):
        image = changes[number](image, float(factors[number]))
    return image
