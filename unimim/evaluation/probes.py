"""k-NN and the linear probe on one set of images, with results that are kept and found again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..address import rng
from ..axes import Student
from ..engine.data.sources import ImageSource
from ..recipe import Recipe
from ..types import Size
from .features import Features, pixel_features, student_features
from .knn import knn
from .linear import linear_probe
from .score import Score


class Results:
    """results.jsonl: one score a line, keyed by what was evaluated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, key: str) -> list[Score]:
        rows = [{**row} for row in self.rows if row["key"] == key]
        fields = Score.__dataclass_fields__
        return [
            Score(**{name: row[name] for name in fields if name != "interval"}, interval=tuple(row["interval"]))
            for row in rows
        ]

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


class Spread:
    """At most `count` images of a source, drawn once and for all: a stride would miss classes that alternate."""

    def __init__(self, source: ImageSource, count: int | None) -> None:
        self.source, self.classes = source, source.classes
        drawn = rng(len(source)).permutation(len(source))[: count or len(source)]
        self.places = sorted(int(place) for place in drawn)

    def __len__(self) -> int:
        return len(self.places)

    def _place(self, index: int) -> int:
        return self.places[index]

    def name(self, index: int) -> str:
        return self.source.name(self._place(index))

    def read(self, index: int) -> Tensor:
        return self.source.read(self._place(index))

    def label(self, index: int) -> int:
        return self.source.label(self._place(index))

    def fingerprint(self) -> str:
        return self.source.fingerprint()
