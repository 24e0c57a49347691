"""Linear classifiers of a few labelled images a class, on frozen features: the paper's Table 6."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..address import rng
from ..engine.checkpoint import write_text
from ..engine.data.sources import ImageSource
from .features import Features, Reading, standardize
from .protocol import Protocol, Setting, Subject, finish, finished
from .score import Score, mean_over_seeds
from .sources import Chosen


class FewShot(Protocol):
    """k images a class, drawn by seed; a linear classifier on their features; accuracy on all test images.

    Full-batch gradient descent with momentum 0.9 and a cosine from each rate of `rates` to zero in `steps` steps, from zero
    weights. The rate is the one that does best on a quarter (at least one image) of each class's k, then all k train with
    it; test images never choose. Told twice: features as they are, and standardized by the support images. The paper states
    k and "a wide range of learning rates", no more.
    The images of every (k, seed) are listed in k{k}-seed{seed}.txt of the protocol's folder. Smaller k are subsets.
    """

    task: ClassVar[str] = "fewshot"

    features: Reading = Reading()
    k: tuple[int, ...] = (2, 4, 8, 16, 32)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = tuple(10.0**power for power in range(-4, 3))
    steps: int = Field(200, gt=0)

    def check(self, subject: Subject, setting: Setting) -> None:
        self.features.check(subject.recipe)
        if not self.k or min(self.k) < 2:
            raise ValueError(
                f"fewshot.k: {list(self.k)} must be 2 or more, one image a class being held out for the rate"
            )
        if len(self.seeds) < 2:
            raise ValueError("fewshot.seeds: give at least two, or there is no interval")
        source = setting.open("train")
        counts = torch.bincount(torch.tensor(_labels(source)), minlength=len(source.classes))
        if counts.min() < max(self.k):
            name = source.classes[int(counts.argmin())]
            raise ValueError(
                f"fewshot.k: class {name} has {int(counts.min())} images, not {max(self.k)}; lower fewshot.k"
            )

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        source, tests = setting.open("train"), setting.open("val")
        folder = subject.place(self, f"{source.fingerprint()}-{tests.fingerprint()}")
        if done := finished(folder):
            return done
        test = setting.read(subject, self.features, tests)
        drawn = {seed: draw(source, max(self.k), seed) for seed in self.seeds}
        found: dict[tuple[int, bool], list[float]] = {}
        for seed, places in drawn.items():
            train = setting.read(subject, self.features, Chosen(source, [place for own in places for place in own]))
            for k in self.k:
                setting.say(f"few-shot, k = {k}, seed {seed}")
                _write(folder / f"k{k}-seed{seed}.txt", source, [own[:k] for own in places])
                for standard in (False, True):
                    share = self.accuracy(_first(train, max(self.k), k), test, k, standard, setting.run.device)
                    found.setdefault((k, standard), []).append(100 * share)
        scores = [
            mean_over_seeds(self.task, values, self._words(test, k, standard), test.metric(_metric(k, standard)))
            for (k, standard), values in found.items()
        ]
        finish(folder, scores)
        return scores

    def accuracy(self, train: Features, test: Features, k: int, standard: bool, device: str) -> float:
        """Share of test images that are right; train: k images of every class, in runs."""
        x, x_test = standardize(train.values, test.values) if standard else (train.values, test.values)
        x, y, num_classes = x.to(device), train.labels.to(device), len(train.labels) // k
        held = (torch.arange(len(y), device=device) % k) < max(1, k // 4)

        def held_out(rate: float) -> float:
            weight, bias = self.fit(x[~held], y[~held], num_classes, rate)
            return float((predict(x[held], weight, bias) == y[held]).float().mean())

        best = max(self.rates, key=held_out)
        weight, bias = self.fit(x, y, num_classes, best)
        return float((predict(x_test.to(device), weight, bias).cpu() == test.labels).float().mean())

    def fit(self, x: Tensor, y: Tensor, num_classes: int, rate: float) -> tuple[Tensor, Tensor]:
        """W (D, classes) and b (classes,) after gradient descent on the mean cross-entropy of x (n, D)."""
        weight, bias = x.new_zeros(x.shape[1], num_classes), x.new_zeros(num_classes)
        speed_w, speed_b, wanted = torch.zeros_like(weight), torch.zeros_like(bias), F.one_hot(y, num_classes).float()
        for step in range(self.steps):
            slope = ((x @ weight + bias).softmax(1) - wanted) / len(x)
            now = rate * (1 + torch.cos(torch.tensor(torch.pi * step / self.steps)).item()) / 2
            speed_w = 0.9 * speed_w + x.T @ slope
            speed_b = 0.9 * speed_b + slope.sum(0)
            weight, bias = weight - now * speed_w, bias - now * speed_b
        return weight, bias

    def _words(self, test: Features, k: int, standard: bool) -> str:
        kind = "standardized" if standard else "as they are"
        return (
            f"{test.described}, {kind}; k = {k} images a class, linear classifier, rate of {len(self.rates)} chosen on a "
            f"quarter of them; mean over {len(self.seeds)} draws, interval of that mean"
        )


def draw(source: ImageSource, k: int, seed: int) -> list[list[int]]:
    """k places of each class, by (seed, class)."""
    by_class: list[list[int]] = [[] for _ in source.classes]
    for place, label in enumerate(_labels(source)):
        by_class[label].append(place)
    return [[own[i] for i in rng(seed, label).permutation(len(own))[:k]] for label, own in enumerate(by_class)]


def predict(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x @ weight + bias).argmax(1)


def _labels(source: ImageSource) -> list[int]:
    return [source.label(index) for index in range(len(source))]


def _first(train: Features, most: int, k: int) -> Features:
    """The first k of each class's run of `most`."""
    keep = torch.arange(len(train.labels)) % most < k
    return replace(train, values=train.values[keep], labels=train.labels[keep])


def _metric(k: int, standard: bool) -> str:
    return f"top-1, k = {k}" + (", standardized" if standard else "")


def _write(path: Path, source: ImageSource, places: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{source.name(place)}\n" for own in places for place in own))
