"""The numbers behind a chart: round ticks, ranges, smoothing and thinning. Arrays are (n,) float64, NaN for a gap."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LARGEST = 1e30  # beyond this a value is as good as infinite, and differences would overflow
_MAX_POINTS = 300


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers within [low, high], 1, 2 or 5 times a power of ten apart, about `target` of them."""
    step = _step(low, high, target)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _step(low: float, high: float, target: int) -> float:
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def tick_labels(values: Sequence[float]) -> list[str]:
    """The shortest labels that tell `values`, evenly spaced, apart."""
    step = min((b - a for a, b in pairwise(values)), default=abs(values[0]) or 1.0)
    largest = max(abs(value) for value in values)
    if largest >= 1e7 or step < 1e-4:
        return [f"{value:.3g}".replace("-", "−") for value in values]
    if step >= 1000:
        return [f"{value / 1000:g}k".replace("-", "−") if value else "0" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def finite(values: Sequence[float]) -> Floats:
    """`values` (n,) as float64 with everything that cannot be drawn turned into NaN, and the invisible into 0."""
    array = np.asarray(values, dtype=np.float64)
    array = np.where(np.abs(array) < 1.0 / _LARGEST, 0.0, array)
    return np.where(np.abs(array) <= _LARGEST, array, np.nan)


def smooth(values: Floats, window: int) -> Floats:
    """Centred moving mean of `values` (n,) over `window` points, fewer at the ends. NaN stays NaN and is left out."""
    if not len(values):
        return values
    known = np.isfinite(values)
    weights = np.ones(min(2 * (window // 2) + 1, 2 * len(values) - 1))
    half = len(weights) // 2

    def moving_sum(x: Floats) -> Floats:
        return np.convolve(x, weights)[half : half + len(x)]

    counts = moving_sum(known.astype(np.float64))
    return np.where(known, moving_sum(np.where(known, values, 0.0)) / np.maximum(counts, 1.0), np.nan)


def bounds(arrays: Sequence[Floats]) -> tuple[float, float]:
    """Lowest and highest finite value, widened where they (nearly) coincide; (0, 1) without any."""
    values = np.concatenate([np.empty(0), *arrays])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = max(abs(low), abs(high)) * 0.5 or 1.0
        return low - margin, high + margin
    return low, high


def thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most `_MAX_POINTS` points that keep the extremes of every stretch, so a spike survives."""
    if len(x) <= _MAX_POINTS:
        return x, y
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), _MAX_POINTS // 2):
        known = np.isfinite(y[part])
        found = part[known]
        if len(found):
            keep |= {int(found[y[found].argmin()]), int(found[y[found].argmax()])}
        keep |= {int(i) for i in part[~known][:1]}
    index = np.array(sorted(keep))
    return x[index], y[index]
