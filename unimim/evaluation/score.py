"""One number and how it came about."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Score:
    """task and metric by name, value in `unit`, a 95 % interval if one is known, and the protocol in words."""

    task: str
    metric: str
    value: float
    unit: str
    interval: tuple[float, float] | None
    protocol: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


def score_of(row: Mapping[str, Any]) -> Score:
    """The score that `data` made, whatever else stands in the row."""
    known = {field.name: row[field.name] for field in fields(Score)}
    interval = known["interval"]
    return Score(**{**known, "interval": None if interval is None else (interval[0], interval[1])})


def accuracy(task: str, correct: int, total: int, protocol: str, metric: str = "top-1") -> Score:
    """An accuracy in percent, with Wilson's 95 % interval of a proportion."""
    share, z = correct / total, 1.959964
    center = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = max(0.0, round(100 * (center - half), 2)), min(100.0, round(100 * (center + half), 2))
    return Score(task, metric, round(100 * share, 2), "%", (low, high), protocol)


T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1 to 9 degrees of freedom; beyond that the normal's is near enough."""


def mean_over_seeds(task: str, values: Sequence[float], protocol: str, metric: str) -> Score:
    """The mean of at least two percentages, with the 95 % interval of that mean by Student's t."""
    n = len(values)
    mean, quantile = statistics.fmean(values), T975[n - 2] if n - 2 < len(T975) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(n)
    return Score(task, metric, round(mean, 2), "%", (round(mean - half, 2), round(mean + half, 2)), protocol)
