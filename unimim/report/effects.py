"""What one axis is worth: pairs of recipes that differ in that axis and in nothing else."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, variance

from unimim.report.data import Entry, Report
from unimim.report.verdict import Difference, Estimate, Task, difference, estimate, tasks

AXES = {"teacher": "T", "norm": "N", "student": "S", "head": "H", "loss": "L", "mask": "mask"}
"""The axes of Eq. 1 and the mask, with their letters."""


@dataclass(frozen=True)
class Change:
    """A setting by its path, and its values in the two recipes; "" where it does not exist."""

    setting: str
    before: str
    after: str


@dataclass(frozen=True)
class Gain:
    """Score of the second recipe minus that of the first at one task.

    size: Hedges' g of the difference over the spread between seeds; None without several seeds of both.
    """

    task: Task
    difference: Difference
    size: float | None


@dataclass(frozen=True)
class Effect:
    """Two recipes that differ in `axis` alone, how, and what it changes at each task that scored both."""

    axis: str
    first: Entry
    second: Entry
    changes: tuple[Change, ...]
    gains: tuple[Gain, ...]

    @property
    def told(self) -> tuple[Change, ...]:
        """The changes of settings that both recipes have; where a part is another, its own settings go without saying."""
        shared = tuple(change for change in self.changes if change.before and change.after)
        return shared or self.changes


def effects(report: Report) -> list[Effect]:
    """Every pair of recipes whose settings differ in one axis alone, by axis, then in the order of the report.

    Seeds are repetitions, not settings. Entries without recorded settings are in no pair.
    """
    columns, found = tasks(report), []
    for first, second in combinations([entry for entry in report.recipes if entry.provenance], 2):
        changes = changed(first, second)
        axes = {axis_of(change.setting) for change in changes}
        if len(axes) == 1 and "" not in axes:
            gains = [_gain(first, second, task) for task in columns]
            found.append(Effect(axes.pop(), first, second, changes, tuple(gain for gain in gains if gain)))
    order = list(AXES)
    return sorted(found, key=lambda effect: order.index(effect.axis))


def settings(entry: Entry, ignored: Iterable[str] = ()) -> dict[str, str]:
    """{path: value} of everything that may change the result but the seed and what is `ignored`."""
    left_out = {"seed", *ignored}
    return {row.setting: row.value for row in entry.provenance if row.setting not in left_out}


def changed(first: Entry, second: Entry) -> tuple[Change, ...]:
    """The settings in which two recipes differ."""
    before, after = settings(first), settings(second)
    paths = [path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path)]
    return tuple(Change(path, before.get(path, ""), after.get(path, "")) for path in paths)


def axis_of(setting: str) -> str:
    """The axis a setting belongs to; "" for those that are none, such as the batch."""
    parts = setting.split(".")
    if parts[0] == "terms" and len(parts) > 2 and parts[2] in AXES:
        return parts[2]
    return {"student": "student", "masks": "mask"}.get(parts[0], "")


def hedges(first: Estimate, second: Estimate) -> float | None:
    """g = J (mean_2 - mean_1) / s, s the pooled deviation between seeds, J = 1 - 3 / (4 (n_1 + n_2 - 2) - 1).

    None with fewer than two seeds of either, or if the seeds do not differ at all.

    Source: Hedges, Journal of Educational Statistics 6 (1981).
    """
    a, b = first.values, second.values
    if min(len(a), len(b)) < 2:
        return None
    freedom = len(a) + len(b) - 2
    spread = math.sqrt(((len(a) - 1) * variance(a) + (len(b) - 1) * variance(b)) / freedom)
    if spread == 0:
        return None
    return (1 - 3 / (4 * freedom - 1)) * (fmean(b) - fmean(a)) / spread


def _gain(first: Entry, second: Entry, task: Task) -> Gain | None:
    a, b = estimate(first, task), estimate(second, task)
    return None if a is None or b is None else Gain(task, difference(b, a, task.unit), hedges(a, b))
