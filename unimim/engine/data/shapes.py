"""Shapes: the data set that comes with the library, drawn from (seed, split, index) and never stored.

Ten shapes are the classes. All else is nuisance, drawn without a look at the class: ten textures, the colours, which of
figure and ground is the lighter, rotation, size, place, an occluder, a textured ground with clutter, the light. So no
pixel and no colour tells the class, and a linear model on pixels stays near chance; the outline does.

Coordinates: x to the right, y downwards, both in [-1, 1] over the image; lengths are in half image sides, angles in
radians. A Field is float32 (size, size), or has such planes as its last two dimensions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Split = Literal["train", "val", "sketch", "rendition", "cue-conflict"]

SPLITS: tuple[Split, ...] = get_args(Split)
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "arrow", "drop")
TEXTURES = ("plain", "striped", "dotted", "checkered", "speckled", "shaded", "swirled", "zigzag", "netted", "marbled")

TEXTURE_OF_CLASS = tuple(range(len(SHAPES)))
"""The index in TEXTURES of the texture that stands for each class when texture is read as the cue (one to one)."""

_VERSION = 1  # part of the fingerprint: raise it with every change that alters a pixel

# One draw of every nuisance, uniform in its range. The order is the order of the random numbers.
_RANGES: dict[str, tuple[float, float]] = {
    "texture": (0, 1),
    "turn": (-0.35, 0.35),
    "radius": (0.62, 0.8),
    "x": (-0.7, 0.7),  # as a share of the room between figure and edge
    "y": (-0.7, 0.7),
    "weave_turn": (0, 2 * math.pi),
    "weave_period": (0.24, 0.34),
    "weave_shift": (0, 1),
    "ground_texture": (0, 1),
    "ground_turn": (0, 2 * math.pi),
    "ground_period": (0.3, 0.6),
    "ground_contrast": (0, 0.4),
    "side": (0, 1),  # the figure is lighter than the ground above 0.5
    "gap": (0.3, 0.44),  # in lightness, between figure and ground
    "hue": (0, 2 * math.pi),
    "ground_hue": (0, 2 * math.pi),
    "clutter_hue": (0, 2 * math.pi),
    "chroma": (0.05, 0.15),
    "ground_chroma": (0.02, 0.1),
    "occluder": (0, 1),  # a bar below 0.2, a blob below 0.4, else none
    "occluder_turn": (0, 2 * math.pi),
    "occluder_shift": (-0.6, 0.6),
    "occluder_width": (0.08, 0.14),
    "light": (0, 2 * math.pi),
    "light_slope": (0, 0.22),
    "exposure": (0.88, 1.08),
}
_LOW = np.array([low for low, _ in _RANGES.values()])
_SPAN = np.array([high - low for low, high in _RANGES.values()])


# Shapes: signed distance, negative inside, in units of the figure's radius. Their areas are alike, so that the amount of
# figure in an image does not tell the class.


_union: Callable[[Field, Field], Field] = np.minimum
_intersection: Callable[[Field, Field], Field] = np.maximum
_size: Callable[[Field], Field] = np.abs


def _length(x: Field, y: Field) -> Field:
    length: Field = np.sqrt(x * x + y * y)  # three times as fast as np.hypot
    return length


def _disc(x: Field, y: Field, radius: float) -> Field:
    return _length(x, y) - radius


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return _intersection(_size(x) - half_width, _size(y) - half_height)


def _lines(x: Field, y: Field, count: int, first: float, offset: float) -> Field:
    """(count, size, size) distances beyond `count` lines that face evenly spaced directions, the first at `first`."""
    turns = [first + 2 * math.pi * k / count for k in range(count)]
    return np.stack([math.cos(turn) * x + math.sin(turn) * y for turn in turns]) - offset


def _triangle(x: Field, y: Field) -> Field:
    first, second, third = _lines(x, y, 3, math.pi / 2, 0.58)
    return _intersection(_intersection(first, second), third)


def _star(x: Field, y: Field) -> Field:
    # A point is in a pentagram when it is behind at least four of its five lines.
    lines = _lines(x, y, 5, -math.pi / 2, 0.38)
    lines.partition(3, axis=0)
    second_largest: Field = lines[3]
    return second_largest


def _heart(x: Field, y: Field) -> Field:
    # A square on its tip, with a disc on each of its two upper sides.
    x, y = _size(x), y - 0.12
    square = (x + _size(y)) * math.sqrt(0.5) - 0.488
    return _union(square, _disc(x - 0.345, y + 0.345, 0.488))


def _cross(x: Field, y: Field) -> Field:
    return _union(_box(x, y, 0.29, 0.9), _box(x, y, 0.9, 0.29))


def _ring(x: Field, y: Field) -> Field:
    return _size(_disc(x, y, 0.68)) - 0.21


def _moon(x: Field, y: Field) -> Field:
    return _intersection(_disc(x - 0.22, y, 0.95), -_disc(x - 0.7, y, 0.68))


def _arrow(x: Field, y: Field) -> Field:
    head = _intersection(0.745 * _size(x) - 0.667 * (y + 1.02), y + 0.02)
    return _union(head, _box(x, y - 0.42, 0.36, 0.55))


def _drop(x: Field, y: Field) -> Field:
    # A disc, and the cone that touches it from the tip above.
    cone = _intersection(math.sqrt(0.75) * _size(x) - 0.5 * (y + 1.16), y + 0.12)
    return _union(_disc(x, y - 0.2, 0.68), cone)


_DISTANCE: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: _disc(x, y, 0.74),
    "square": lambda x, y: _box(x, y, 0.66, 0.66),
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "arrow": _arrow,
    "drop": _drop,
}


# Textures: how much of the second colour, in [0, 1], at (u, v) counted in periods; `noise` is smooth, in [0, 1].


def _unit(value: Field) -> Field:
    """Cut to [0, 1]."""
    cut: Field = np.maximum(np.minimum(value, 1), 0)
    return cut


def _wave(t: Field, sharpness: float = 3.0) -> Field:
    return _unit(0.5 + sharpness * np.sin(2 * math.pi * t))


def _off(t: Field) -> Field:
    """Distance to the nearest whole number."""
    return _size(t - np.rint(t))


_WEAVE: dict[str, Callable[[Field, Field, Field], Field]] = {
    "plain": lambda u, v, noise: np.zeros_like(u),
    "striped": lambda u, v, noise: _wave(u),
    "dotted": lambda u, v, noise: _unit(8 * (0.33 - _length(_off(u), _off(v)))),
    "checkered": lambda u, v, noise: _unit(0.5 + 3 * np.sin(math.pi * u) * np.sin(math.pi * v)),
    "speckled": lambda u, v, noise: _unit(8 * (noise - 0.58)),
    "shaded": lambda u, v, noise: _unit(0.5 + 0.3 * u),
    "swirled": lambda u, v, noise: _wave(np.hypot(u, v) + np.arctan2(v, u) / (2 * math.pi)),
    "zigzag": lambda u, v, noise: _wave(u + 1.2 * _off(v / 2)),
    "netted": lambda u, v, noise: _unit(2 - 12 * np.minimum(_off(u), _off(v))),
    "marbled": lambda u, v, noise: _wave(0.35 * u + 2.2 * noise, 0.8),
}


# The canvas.


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Field, Field]:
    """x and y of the pixel centres."""
    line = ((2 * np.arange(size) + 1) / size - 1).astype(np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


@lru_cache(maxsize=32)
def _stretch(knots: int, size: int) -> Field:
    """(size, knots) weights of the smoothstep interpolation from knots to pixels."""
    at = (np.arange(size) + 0.5) / size * (knots - 1)
    left = at.astype(int)
    share = at - left
    share = share * share * (3 - 2 * share)
    weight = np.zeros((size, knots), np.float32)
    weight[np.arange(size), left] = 1 - share
    weight[np.arange(size), left + 1] = share
    return weight


def _turned(x: Field, y: Field, turn: float, scale: float = 1.0) -> tuple[Field, Field]:
    """The coordinates in axes turned by `turn`, in units of `scale`."""
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    return cos * x + sin * y, cos * y - sin * x


def _over(below: Field, above: Field, cover: Field) -> Field:
    return below + cover * (above - below)


_LAB_TO_LMS = np.array([[1, 0.39633778, 0.21580376], [1, -0.10556135, -0.06385417], [1, -0.08948418, -1.29148555]])
_LMS_TO_RGB = np.array(
    [
        [4.07674166, -3.30771159, 0.23096993],
        [-1.26843800, 2.60975740, -0.34131940],
        [-0.00419609, -0.70341861, 1.70761470],
    ]
)


def _colours(*colours: tuple[float, float, float]) -> Field:
    """(n, 3, 1, 1) RGB from (lightness, chroma, hue) in OKLCH (Ottosson 2020): equal lightness looks equally light."""
    lightness, chroma, hue = np.array(colours).T
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    rgb = _unit(_LMS_TO_RGB @ (_LAB_TO_LMS @ lab) ** 3) ** (1 / 2.2)
    return np.asarray(rgb.T, np.float32).reshape(-1, 3, 1, 1)


@dataclass(frozen=True)
class _Scene:
    """What one image shows: class, texture, nuisance values, and the generator of its noise fields."""

    label: int
    texture: int
    at: dict[str, float]
    rng: np.random.Generator
    size: int

    @property
    def side(self) -> int:
        """+1 when the figure is lighter than its ground, -1 when darker."""
        return 1 if self.at["side"] > 0.5 else -1

    def noise(self, knots: int) -> Field:
        stretch = _stretch(knots, self.size)
        return stretch @ self.rng.random((knots, knots), np.float32) @ stretch.T

    def cover(self, distance: Field) -> Field:
        """Share of each pixel that lies inside (0 to 1, anti-aliased), from a signed distance."""
        return _unit(0.5 - distance * (self.size / 2))

    def local(self, x: Field, y: Field) -> tuple[Field, Field]:
        """The coordinates from the figure's centre."""
        room = 1 - 0.95 * self.at["radius"]
        return x - self.at["x"] * room, y - self.at["y"] * room

    def figure(self, x: Field, y: Field) -> Field:
        """Signed distance to the figure."""
        radius = self.at["radius"]
        return _DISTANCE[SHAPES[self.label]](*_turned(*self.local(x, y), self.at["turn"], radius)) * radius

    def weave(self, texture: int, name: str, x: Field, y: Field) -> Field:
        """The texture's pattern, with the direction and period of `name` ("weave" or "ground")."""
        u, v = _turned(*self.local(x, y), self.at[f"{name}_turn"], self.at[f"{name}_period"])
        shift = self.at["weave_shift"]
        return _WEAVE[TEXTURES[texture]](u + shift, v + shift, self.noise(24 if TEXTURES[texture] == "speckled" else 6))

    def strokes(self, count: int, half_width: float, x: Field, y: Field) -> Field:
        """(count, size, size) signed distances to clutter: short strokes with round ends."""
        start_x, start_y, dx, dy = self.rng.random((4, count, 1, 1), np.float32) * 2 - 1
        dx, dy, px, py = 0.6 * dx, 0.6 * dy, x - start_x, y - start_y
        along = _unit((px * dx + py * dy) / (dx * dx + dy * dy + 1e-3))
        return _length(px - along * dx, py - along * dy) - half_width

    def occluder(self, x: Field, y: Field) -> Field:
        """Signed distance to a bar across the figure, a blob on its rim, or nothing."""
        at, radius = self.at, self.at["radius"]
        if at["occluder"] >= 0.4:
            return np.full_like(x, 2)
        u, v = _turned(*self.local(x, y), at["occluder_turn"])
        if at["occluder"] < 0.2:
            return _size(u - at["occluder_shift"] * radius) - at["occluder_width"]
        return _disc(u - 0.85 * radius, v, 0.4 * radius)


# Painters: the picture (3, size, size), not yet cut to [0, 1], and how much of each pixel shows the figure.


def _photo(scene: _Scene) -> tuple[Field, Field]:
    at, side, (x, y) = scene.at, scene.side, _grid(scene.size)
    near, far = 0.58 + side * at["gap"] / 2, 0.58 - side * at["gap"] / 2
    figure, figure_weave, ground, ground_weave, occluder, *clutter = _colours(
        (near, at["chroma"], at["hue"]),
        (near + 0.19 * side, 0.7 * at["chroma"], at["hue"] + 0.7),
        (far, at["ground_chroma"], at["ground_hue"]),
        (far - 0.12 * side, at["ground_chroma"], at["ground_hue"] + 0.8),
        (0.58, 0.1, at["clutter_hue"] - 1.2),
        (far + 0.1 * side, 0.1, at["clutter_hue"]),
        (0.62, 0.12, at["clutter_hue"] + 1.5),
        (0.45, 0.08, at["clutter_hue"] + 3),
    )
    weave = scene.weave(int(at["ground_texture"] * len(TEXTURES)), "ground", x, y)
    picture = _over(ground, ground_weave, 0.6 * scene.noise(6) + at["ground_contrast"] * weave)
    for colour, stroke in zip(clutter, scene.strokes(len(clutter), 0.05, x, y), strict=True):
        picture = _over(picture, colour, scene.cover(stroke))
    distance = scene.figure(x, y)
    drop = max(1, scene.size // 24)
    picture[:, drop:, drop:] *= 1 - 0.35 * _unit(0.5 - 4 * distance[:-drop, :-drop])  # the figure's shadow
    weave = scene.weave(scene.texture, "weave", x, y)
    shown, hidden = scene.cover(distance), scene.cover(scene.occluder(x, y))
    picture = _over(_over(picture, _over(figure, figure_weave, weave), shown), occluder, hidden)
    light = at["exposure"] + at["light_slope"] * _turned(x, y, at["light"])[0]
    return picture * light, shown * (1 - hidden)


def _sketch(scene: _Scene) -> tuple[Field, Field]:
    x, y = _grid(scene.size)
    paper, pencil = _colours((0.9, 0.025, 1.4), (0.33, 0.02, scene.at["hue"]))
    distance, tremor, grit = scene.figure(x, y), scene.noise(6) - 0.5, scene.noise(32)
    inside = scene.cover(distance)
    ink = scene.cover(np.abs(distance + 0.06 * tremor) - 0.03)
    again = scene.cover(np.abs(distance - 0.1 * tremor) - 0.018)
    hatching = inside * (0.45 + 0.35 * scene.weave(scene.texture, "weave", x, y))
    clutter = scene.cover(scene.strokes(2, 0.012, x, y).min(0)) * (1 - inside)
    ink = np.maximum(np.maximum(ink, 0.6 * again), np.maximum(hatching, 0.5 * clutter))
    return _over(paper * (0.97 + 0.06 * grit), pencil, ink * _unit(0.7 + 0.4 * grit)), inside


def _rendition(scene: _Scene) -> tuple[Field, Field]:
    at, side, (x, y) = scene.at, scene.side, _grid(scene.size)
    bend_x, bend_y = scene.noise(8) - 0.5, scene.noise(8) - 0.5
    x, y = x + 0.16 * bend_x, y + 0.16 * bend_y
    figure, figure_weave, ground, ground_weave, ink = _colours(
        (0.62 + 0.16 * side, 0.17, at["hue"]),
        (0.62 + 0.3 * side, 0.12, at["hue"] + 1),
        (0.62 - 0.12 * side, 0.14, at["hue"] + math.pi),
        (0.62 - 0.24 * side, 0.12, at["hue"] + math.pi - 0.9),
        (0.25, 0.03, at["hue"]),
    )
    distance = scene.figure(x, y)
    shown = scene.cover(distance)
    picture = _over(ground, ground_weave, np.rint(2.5 * scene.noise(5)) / 2)
    picture = _over(picture, _over(figure, figure_weave, scene.weave(scene.texture, "weave", x, y)), shown)
    picture = _over(picture, ink, 0.8 * scene.cover(np.abs(distance) - 0.025))
    bristles = np.sin(40 * _turned(x, y, at["light"])[0] + 12 * scene.noise(12))
    return picture * (0.97 + 0.09 * bristles), shown


_PAINTER: dict[Split, Callable[[_Scene], tuple[Field, Field]]] = {
    "train": _photo,
    "val": _photo,
    "sketch": _sketch,
    "rendition": _rendition,
    "cue-conflict": _photo,
}


@dataclass(frozen=True)
class Shapes:
    """The image source `shapes`: image i of a split is a pure function of (seed, split, i), in any process and order.

    train and val draw texture and colour independently of the class. Three shifted splits share the classes:
    sketch (pencil on paper), rendition (bent outlines, loud colours, brush) and cue-conflict, whose figures carry the texture
    that stands for another class: the texture is never TEXTURE_OF_CLASS[label]. Classes take turns: label = i mod 10.

    Args: split; length in images; size, the side in pixels (at least 16); seed (not negative).
    Raises: ValueError for an argument out of range; IndexError outside 0 <= index < length.
    """

    split: Split = "train"
    length: int = 20_000
    size: int = 64
    seed: int = 0
    classes: ClassVar[tuple[str, ...]] = SHAPES

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"shapes has no split {self.split!r}: choose one of {', '.join(SPLITS)}")
        for name, value, low in (("length", self.length, 1), ("size", self.size, 16), ("seed", self.seed, 0)):
            if value < low:
                raise ValueError(f"shapes: {name} is {value}, but must be at least {low}")

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"shapes/{self.split}/{index}"

    def read(self, index: int) -> torch.Tensor:
        """Image (3, size, size) uint8 RGB."""
        picture, _ = self._paint(index)
        return torch.from_numpy(np.rint(_unit(picture) * 255).astype(np.uint8))

    def label(self, index: int) -> int:
        return self._within(index) % len(SHAPES)

    def mask(self, index: int) -> torch.Tensor:
        """Segmentation (size, size) uint8: 1 + label where the figure is seen, 0 for ground, clutter and occluder."""
        _, shown = self._paint(index)
        return torch.from_numpy(((shown >= 0.5) * (1 + self.label(index))).astype(np.uint8))

    def texture(self, index: int) -> int:
        """Index in TEXTURES of the figure's texture."""
        return self._scene(index).texture

    def caption(self, index: int) -> str:
        """For example "a striped triangle"."""
        scene = self._scene(index)
        return f"a {TEXTURES[scene.texture]} {SHAPES[scene.label]}"

    def fingerprint(self) -> str:
        """sha256, 16 hex digits, of the generator's parameters and version."""
        return hashlib.sha256(f"v{_VERSION} {self!r}".encode()).hexdigest()[:16]

    def _within(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length} in shapes/{self.split}")
        return index

    def _scene(self, index: int) -> _Scene:
        stream = np.random.Philox(key=[self.seed, SPLITS.index(self.split)], counter=[0, self._within(index), 0, 0])
        rng = np.random.Generator(stream)
        at = dict(zip(_RANGES, (_LOW + _SPAN * rng.random(len(_RANGES))).tolist(), strict=True))
        label = self.label(index)
        if self.split == "cue-conflict":
            others = [texture for texture in range(len(TEXTURES)) if texture != TEXTURE_OF_CLASS[label]]
            texture = others[int(at["texture"] * len(others))]
        else:
            texture = int(at["texture"] * len(TEXTURES))
        return _Scene(label, texture, at, rng, self.size)

    def _paint(self, index: int) -> tuple[Field, Field]:
        return _PAINTER[self.split](self._scene(index))
