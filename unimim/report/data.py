"""What a report says, as plain immutable data. Nothing here knows about HTML, terminals or torch.

A `Report` holds one `Entry` for each recipe that ran and one for each baseline. Several `Score`s of one entry that
share task and metric are repetitions with different seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["recipe", "random", "pixels"]


@dataclass(frozen=True)
class Axes:
    """L(N(T(I_full)), H(S(I_masked))): one row of the paper's Table 1, each axis in the words shown to the reader."""

    teacher: str
    norm: str
    student: str
    head: str
    loss: str


@dataclass(frozen=True)
class Score:
    """One measured value, larger is better.

    Args:
        task: what was evaluated, e.g. "linear probe".
        metric: what was counted, e.g. "top-1".
        value: in `unit`; NaN if the evaluation did not yield a number.
        unit: "%" for percentages (0 to 100), otherwise any short unit or "".
        interval: 95 % interval (low, high) of `value` over the choice of test images, in `unit`; None if not measured.
        protocol: everything a reader needs to measure the same, e.g. "k = 20, T = 0.07, mean of patch tokens".
        seed: of the pretraining run.

    Raises:
        ValueError: low > high.
    """

    task: str
    metric: str
    value: float
    unit: str = "%"
    interval: tuple[float, float] | None = None
    protocol: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"score {self.task!r}: interval {self.interval} has low > high; give it as (low, high)")


@dataclass(frozen=True)
class Curve:
    """A logged quantity over optimiser steps. Values may be NaN or infinite: a diverged run is shown, not hidden.

    Raises:
        ValueError: `steps` and `values` differ in length.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"curve {self.name!r}: {len(self.steps)} steps but {len(self.values)} values")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image with its caption.

    Args:
        caption: what tells this image from its neighbours, e.g. its class or file name; "" for none.
        pixels: (H, W, 3) uint8, RGB.

    Raises:
        ValueError: `pixels` has another shape or type, or is empty.
    """

    caption: str
    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"picture {self.caption!r}: expected (H, W, 3) uint8, got {shape} {dtype}")


@dataclass(frozen=True)
class Panel:
    """One row of the gallery: the same kind of picture for every sample image, in the same order in each panel.

    Args:
        title: "input", "masked input", "target", "prediction", "PCA of the teacher", ...
        images: one picture a sample image; the reader is told that column i is the same image for all recipes.
        note: what a reader must know to judge the row, e.g. "uses the target's mean and variance".
    """

    title: str
    images: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What pretraining took, the teacher included and evaluation left out. None where it was not measured.

    Args:
        seconds: wall time.
        images_per_second: training throughput.
        peak_memory_mb: largest memory in use on one device, in MB (1e6 bytes).
        steps: optimiser steps.
        images_seen: images drawn, repetitions counted.
    """

    seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    steps: int | None = None
    images_seen: int | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the value of one setting comes from, e.g. ("optimizer.lr", "1.5e-3", "paper, Table 11")."""

    setting: str
    value: str
    source: str


@dataclass(frozen=True)
class Entry:
    """One recipe or one baseline.

    Args:
        name: unique key, as typed on the command line.
        title: as shown.
        axes: None for baselines.
        kind: "recipe", or the baseline "random" (a randomly initialised student) or "pixels" (no network).
        scores: of all tasks and seeds.
        curves: losses; the first is the total.
        cost: None if nothing was trained.
        panels: rows of the gallery.
        warnings: what happened that a reader should know.
        config_yaml: the full resolved configuration.
        provenance: the source of each setting.
    """

    name: str
    title: str
    axes: Axes | None = None
    kind: Kind = "recipe"
    scores: tuple[Score, ...] = ()
    curves: tuple[Curve, ...] = ()
    cost: Cost | None = None
    panels: tuple[Panel, ...] = ()
    warnings: tuple[str, ...] = ()
    config_yaml: str = ""
    provenance: tuple[Provenance, ...] = ()

    @property
    def is_baseline(self) -> bool:
        return self.kind != "recipe"


@dataclass(frozen=True)
class Series:
    """Points of one line of a figure, in the order they are joined. Values may be NaN: such points are left out.

    Args:
        name: as shown.
        x, y: one of each for every point.
        intervals: 95 % interval (low, high) of each y, or None; () if none was measured.
        level: one value on the x axis for the whole series, drawn as a vertical line; None for none.

    Raises:
        ValueError: the lengths differ.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()
    level: float | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), len(self.intervals) or len(self.y)}
        if len(lengths) > 1:
            raise ValueError(
                f"series {self.name!r}: {len(self.x)} x, {len(self.y)} y and {len(self.intervals)} intervals; "
                "give one of each for every point"
            )


@dataclass(frozen=True)
class Figure:
    """A chart of points, such as the paper's Figure 2 (lines) or, with `rows`, its Figure 3 (one row a category).

    Args:
        title: as shown above it.
        x_label, y_label: what the axes measure, with the unit.
        series: the lines.
        rows: names of rows from top to bottom; y of a point is then the number of its row, and points are not joined.
        x_range: what the x axis shows; None for what the points need.
        top_label: what the upper edge measures when it is the lower one read backwards, as 1 - x; "" for nothing.
        note: what a reader must know of how it was measured.
        paper: what the paper's figure shows, to stand beside it.

    Raises:
        ValueError: a point lies on a row that is not named.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    rows: tuple[str, ...] = ()
    x_range: tuple[float, float] | None = None
    top_label: str = ""
    note: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        known = range(len(self.rows))
        lost = [series.name for series in self.series if self.rows and not all(y in known for y in series.y)]
        if lost:
            raise ValueError(
                f"figure {self.title!r}: points of {lost} lie on rows other than 0 to {len(self.rows) - 1}"
            )


@dataclass(frozen=True)
class Skipped:
    """A recipe that was asked for and has no result, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """A finished comparison.

    Args:
        title: of the page.
        command: the exact command that repeats it.
        created: date and time, as shown.
        data: what the recipes were trained and evaluated on.
        budget: what every recipe was given.
        environment: versions, device, seeds, ... as shown.
        entries: recipes and baselines in any order.
        skipped: recipes without a result.
        figures: shown beside those that follow from the entries by themselves.

    Raises:
        ValueError: two entries share a name.
    """

    title: str
    command: str
    created: str
    data: str
    budget: str
    environment: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"report {self.title!r}: several entries are named {repeated}; names must be unique")

    @property
    def recipes(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if not entry.is_baseline)

    @property
    def baselines(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.is_baseline)
