"""k-NN and the linear probe on one set of images, with results that are kept and found again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..axes import Student
from ..engine.data.sources import ImageSource
from ..recipe import Recipe
from ..types import Size
from .features import Features, pixel_features, student_features
from .knn import knn
from .linear import linear_probe
from .score import Score, score_of


class Results:
    """results.jsonl: one score a line, keyed by what was evaluated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, key: str) -> list[Score]:
        return [score_of(row) for row in self.rows if row["key"] == key]

    def add(self, key: str, scores: Sequence[Score], **about: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"key": key, **about, **score.data()} for score in scores]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.rows += rows


class Probes:
    """k-NN and the linear probe, with one set of images and one feature function for everything that is compared."""

    def __init__(
        self, train: ImageSource, test: ImageSource, results: Results, device: str, say: Callable[[str], None]
    ) -> None:
        self.train, self.test, self.results, self.device, self.say = train, test, results, device, say
        self.data = f"{train.fingerprint()}-{len(train)}-{test.fingerprint()}"

    def student(self, key: str, name: str, recipe: Recipe, make: Callable[[], Student]) -> list[Score]:
        """Scores of the student that `make` returns, which is not called if they are known under `key`."""

        def features() -> tuple[Features, Features]:
            student = make()
            read = partial(student_features, student, device=self.device, precision=recipe.precision)
            return read(self.train), read(self.test)

        return self._scores(key, name, recipe.seed, features)

    def pixels(self, size: Size) -> list[Score]:
        """Scores of the pixels themselves, at `size`."""

        def features() -> tuple[Features, Features]:
            return pixel_features(self.train, size), pixel_features(self.test, size)

        return self._scores(f"pixels-{size[0]}x{size[1]}", "raw pixels", 0, features)

    def _scores(self, key: str, name: str, seed: int, features: Callable[[], tuple[Features, Features]]) -> list[Score]:
        key = f"{key}-{self.data}"
        found = self.results.find(key)
        if not found:
            self.say(f"evaluating {name}, seed {seed}")
            train, test = features()
            found = [knn(train, test), linear_probe(train, test)]
            self.results.add(key, found, recipe=name, seed=seed)
        return found
