"""Which recipe is best, by how much, and whether the numbers allow saying so."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from unimim.report import text
from unimim.report.data import Entry, Report, Score

# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; the last one serves, cautiously, beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

_ABSURD = 1e12  # no score is this large; comparisons with it are false for NaN and infinity too


@dataclass(frozen=True)
class Task:
    """A column of the leaderboard: scores are comparable if and only if all three agree."""

    name: str
    metric: str
    unit: str

    @property
    def label(self) -> str:
        return f"{self.name} {self.metric}".strip()


@dataclass(frozen=True)
class Estimate:
    """The mean score of one entry over its seeds, with a 95 % interval if there is one."""

    value: float
    interval: tuple[float, float] | None
    values: tuple[float, ...]

    @property
    def num_seeds(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """Score of one entry minus that of another, in units of the task."""

    value: float
    interval: tuple[float, float] | None
    unit: str

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies above zero."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def is_off_zero(self) -> bool:
        """Whether the interval leaves zero out, on either side."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def size(self) -> str:
        """Without sign and interval, e.g. "3.1 points"."""
        points = "points" if self.unit == "%" else self.unit
        return f"{text.number(abs(self.value), self.unit)}\u00a0{points}".rstrip()

    def __str__(self) -> str:
        if self.interval is None:
            return self.size
        return f"{self.size} (95 % interval {text.interval(*self.interval, self.unit)})"


@dataclass(frozen=True)
class Verdict:
    """One headline, the sentences that qualify it, and how sure it is."""

    status: Literal["clear", "one seed", "tie", "unjudged", "alone", "none"]
    headline: str
    remarks: tuple[str, ...] = ()


def tasks(report: Report) -> list[Task]:
    """Every task of the report, the main one first: the linear probe, else the first in the order of the entries."""
    found = list(dict.fromkeys(Task(s.task, s.metric, s.unit) for entry in report.entries for s in entry.scores))
    return sorted(found, key=lambda task: "linear" not in task.name.lower())


def scores(entry: Entry, task: Task) -> list[Score]:
    """The scores of `entry` at `task`, one a seed, without those that are not numbers."""
    key = (task.name, task.metric, task.unit)
    return [s for s in entry.scores if (s.task, s.metric, s.unit) == key and abs(s.value) < _ABSURD]


def estimate(entry: Entry, task: Task) -> Estimate | None:
    """Mean and 95 % interval of `entry` at `task`; None without a finite score.

    One seed has the interval of the test sample. Several seeds have mean +- t * s / sqrt(n), widened to the mean
    interval of the test sample where that is wider: three equal seeds do not make a certain result.
    """
    found = scores(entry, task)
    if not found:
        return None
    values = tuple(score.value for score in found)
    mean = fmean(values)
    bounds = [(s.interval[0] - s.value, s.interval[1] - s.value) for s in found if s.interval is not None]
    bounds = [(low, high) for low, high in bounds if abs(low) < _ABSURD and abs(high) < _ABSURD]
    offsets = [(fmean(low for low, _ in bounds), fmean(high for _, high in bounds))] if bounds else []
    if len(values) > 1:
        half = _T95[min(len(values) - 1, len(_T95)) - 1] * stdev(values) / math.sqrt(len(values))
        offsets.append((-half, half))
    interval = (mean + min(o[0] for o in offsets), mean + max(o[1] for o in offsets)) if offsets else None
    return Estimate(mean, interval, values)


def difference(a: Estimate, b: Estimate, unit: str) -> Difference:
    """a - b with Newcombe's interval, which keeps asymmetric intervals asymmetric.

    low = d - sqrt((a - low_a)^2 + (high_b - b)^2), high = d + sqrt((high_a - a)^2 + (b - low_b)^2)

    Source: Newcombe, Statistics in Medicine 17 (1998), method 10. It treats a and b as independent; both were measured
    on the same test images, so it is on the wide side.
    """
    value = a.value - b.value
    if a.interval is None or b.interval is None:
        return Difference(value, None, unit)
    low = value - math.hypot(a.value - a.interval[0], b.interval[1] - b.value)
    high = value + math.hypot(a.interval[1] - a.value, b.value - b.interval[0])
    return Difference(value, (low, high), unit)


def ranking(report: Report, task: Task) -> list[tuple[Entry, Estimate]]:
    """Recipes with a finite score at `task`, best first, ties in the order of the report."""
    found = [(entry, estimate(entry, task)) for entry in report.recipes]
    return sorted(((entry, e) for entry, e in found if e is not None), key=lambda pair: -pair[1].value)


def ordered(report: Report) -> list[Entry]:
    """Every entry as the leaderboard lists it: recipes by rank at the main task, those without a score, baselines."""
    columns = tasks(report)
    ranked = [entry for entry, _ in ranking(report, columns[0])] if columns else []
    names = {entry.name for entry in ranked}
    return [*ranked, *(entry for entry in report.recipes if entry.name not in names), *report.baselines]


def leads(report: Report, task: Task) -> list[tuple[Entry, Difference]]:
    """By how much the best recipe at `task` leads every other scored entry, as the leaderboard lists them."""
    ranked = ranking(report, task)
    if not ranked:
        return []
    floors = [(entry, estimate(entry, task)) for entry in report.baselines]
    others = [*ranked[1:], *((entry, e) for entry, e in floors if e is not None)]
    return [(entry, difference(ranked[0][1], e, task.unit)) for entry, e in others]


def verdict(report: Report) -> Verdict:
    """The first line of the report, decided at the main task."""
    columns = tasks(report)
    ranked = ranking(report, columns[0]) if columns else []
    if not ranked:
        return Verdict("none", "No recipe finished with a score.", tuple(_left_out(report, ranked)))
    task = columns[0]
    best, top = ranked[0]
    value = f"{text.with_unit(top.value, task.unit)} {task.metric}".strip()
    gaps = leads(report, task)
    rivals = [(entry, gap) for entry, gap in gaps if not entry.is_baseline]
    remarks = (
        *_over_rivals(best, rivals),
        *(_over_baseline(best, entry, gap) for entry, gap in gaps if entry.is_baseline),
        *_caveats(ranked, task),
        *_left_out(report, ranked),
    )
    if not rivals:
        return Verdict("alone", f"{best.title} reaches {value} at {task.name}.", remarks)
    second, gap = rivals[0]
    lead = f"{value}, {gap.size} above {second.title}"
    highest = f"{best.title} scores highest at {task.name}: {lead}"
    if any(gap.interval is None for _, gap in rivals):
        return Verdict("unjudged", f"{highest}; without intervals that is no evidence.", remarks)
    if not all(gap.is_clear for _, gap in rivals):
        headline = f"No recipe is clearly best at {task.name}: {best.title} has {lead}, which is within the interval."
        return Verdict("tie", headline, remarks)
    if min(e.num_seeds for _, e in ranked) == 1:
        return Verdict("one seed", f"{highest}; this rests on a single seed.", remarks)
    return Verdict("clear", f"{best.title} is best at {task.name}: {lead}.", remarks)


def _over_rivals(best: Entry, rivals: list[tuple[Entry, Difference]]) -> list[str]:
    level = [f"{entry.title} by {gap}" for entry, gap in rivals if not gap.is_clear]
    clear = [f"{entry.title} by {gap}" for entry, gap in rivals if gap.is_clear]
    if len(clear) > 3:
        clear = [clear[0], f"{len(clear) - 1} others by more"]
    remarks = [f"{best.title} leads, but not clearly, {text.join(level)}."] if level else []
    return [*remarks, f"{best.title} clearly leads {text.join(clear)}."] if clear else remarks


def _over_baseline(best: Entry, baseline: Entry, gap: Difference) -> str:
    name = "raw pixels" if baseline.kind == "pixels" else "the randomly initialised student"
    if gap.value <= 0:
        return f"No recipe beats {name}, {gap.size} above {best.title}."
    if gap.interval is not None and not gap.is_clear:
        return f"{best.title} is not clearly above {name}: {gap}."
    return f"{best.title} is {gap} above {name}."


def _caveats(ranked: list[tuple[Entry, Estimate]], task: Task) -> list[str]:
    fewest = min(e.num_seeds for _, e in ranked)
    if fewest > 1:
        remarks = [
            f"At least {fewest} seeds for each recipe; an interval is that of the seeds or of the test sample, "
            "whichever is wider."
        ]
    elif any(e.interval is not None for _, e in ranked):
        remarks = [
            "One seed: differences under the interval are not evidence, and the interval covers the choice of test "
            "images, not the luck of one training run."
        ]
    else:
        remarks = ["One seed and no interval: nothing here shows how much another run would differ."]
    if len({score.protocol for entry, _ in ranked for score in scores(entry, task)}) > 1:
        remarks.append(f"The {task.name} protocol differs between recipes: their values are not directly comparable.")
    return remarks


def _left_out(report: Report, ranked: list[tuple[Entry, Estimate]]) -> list[str]:
    scored = {entry.name for entry, _ in ranked}
    unscored = [entry.title for entry in report.recipes if entry.name not in scored]
    skipped = [skipped.name for skipped in report.skipped]
    remarks = [f"Skipped, with reasons in section 8: {text.join(skipped)}."] if skipped else []
    return [*remarks, f"Left out for want of a score: {text.join(unscored)}."] if ranked and unscored else remarks
