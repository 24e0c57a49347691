"""One number and how it came about."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """task and metric by name, value in `unit`, a 95 % interval of the test set, and the protocol in words."""

    task: str
    metric: str
    value: float
    unit: str
    interval: tuple[float, float]
    protocol: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(task: str, correct: int, total: int, protocol: str) -> Score:
    """Top-1 accuracy in percent, with Wilson's 95 % interval of a proportion."""
    share, z = correct / total, 1.959964
    center = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = round(100 * (center - half), 2), round(100 * (center + half), 2)
    return Score(task, "top-1", round(100 * share, 2), "%", (low, high), protocol)
