"""What every measurement is: settings, checked against what is measured, that give scores."""

from __future__ import annotations

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from .. import weights
from ..axes import Student
from ..engine.checkpoint import write_text
from ..engine.data.sources import ImageSource, Split, in_memory, open_source
from ..engine.run import Run
from ..recipe import Recipe, override
from ..registry import did_you_mean
from ..schedule import Frozen
from .features import Features, Reading, student_features, teacher_features
from .score import Score, score_of
from .sources import spread


@dataclass(frozen=True)
class Subject:
    """What is measured: a student on the CPU in eval mode, and the recipe that trained it.

    home: the folder that was named; what a protocol trains is kept in home/eval.  folder: its weights folder.
    momentum: it is the momentum copy of the student that was trained.
    """

    home: Path
    folder: Path
    recipe: Recipe
    student: Student
    momentum: bool = False

    def start(self, task: str, changes: Mapping[str, Any], from_scratch: bool, **more: Any) -> Student:
        """The student that `task` trains: these weights, or start values, in a config with `changes` and `more`.

        ValueError for a field it does not have, or that its weights cannot follow.
        """
        config = self.recipe.student
        unknown = [field for field in changes if field not in type(config).model_fields]
        if unknown:
            raise ValueError(f"{task}.student: {config.name} has no {', '.join(unknown)}")
        student: Student = config.build() if from_scratch else self.student
        return student.adapt(**{**more, **changes})

    def about(self) -> dict[str, Any]:
        """What it is, in plain data."""
        return {"recipe": self.recipe.name, "hash": self.recipe.hash, "momentum": self.momentum}

    def place(self, protocol: Protocol, fingerprint: str) -> Path:
        """The folder for what `protocol` trains from these weights on data of that fingerprint; another one for any other."""
        about = [
            type(protocol).task,
            protocol.model_dump(mode="json"),
            self.recipe.hash,
            _digest(self.folder),
            self.momentum,
            fingerprint,
        ]
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        return self.home / "eval" / f"{type(protocol).task}-{key}"


def on_labels(recipe: Recipe, drop_path: float) -> dict[str, Any]:
    """What training on labels changes of the student: its own wishes, and drop path where it has that."""
    own = {"drop_path": drop_path} if "drop_path" in type(recipe.student).model_fields else {}
    return {**own, **recipe.student.on_labels}


@cache
def _digest(folder: Path) -> str:
    with (folder / weights.TENSORS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Setting:
    """On what, and how: what may differ between a laptop and a cluster.

    data: what `open_source` takes.  run: devices and pace; its folder is replaced by a protocol's own.  cached: keep decoded
    images in memory.  max_images: read at most so many training images for probes of frozen features (None: all).
    """

    data: str
    run: Run
    cached: bool
    max_images: int | None
    say: Callable[[str], None]
    seen: dict[Any, Features] = field(default_factory=dict, compare=False)
    opened: dict[Split, ImageSource] = field(default_factory=dict, compare=False)

    def features(self, subject: Subject, reading: Reading) -> tuple[Features, Features]:
        """Features of the training images (at most max_images) and of the test images; read once a command."""
        source, test = self.open("train"), self.open("val")
        return self.read(subject, reading, spread(source, self.max_images)), self.read(subject, reading, test)

    def read(self, subject: Subject, reading: Reading, source: ImageSource) -> Features:
        """Features of the images of a source, as its recipe's precision computes them; read once a command."""
        key = (subject.folder, subject.momentum, reading, source.fingerprint())
        if key not in self.seen:
            self.say(f"reading features of {len(source)} images by the {reading.of}")
            self.seen[key] = self._features(subject, reading, source)
        return self.seen[key]

    def _features(self, subject: Subject, reading: Reading, source: ImageSource) -> Features:
        device, precision = self.run.device, subject.recipe.precision
        if reading.of == "student":
            return student_features(subject.student, source, reading.pool, reading.block, device, precision)
        teacher = next(iter(weights.load(subject.folder).terms.values())).teacher[0]
        return teacher_features(teacher, subject.student.geometry.image, source, device, precision)

    def open(self, split: Split) -> ImageSource:
        """One split of the labelled images, opened once. ValueError if they have no labels."""
        if split in self.opened:
            return self.opened[split]
        source = open_source(self.data, split)
        if not source.classes:
            raise ValueError(f"{self.data} has no labels, which the task needs; put the images into folders by class")
        self.opened[split] = in_memory(source) if self.cached else source
        return self.opened[split]


def explained(error: ValidationError, model: type[Frozen], prefix: str = "") -> list[str]:
    """What is wrong with the values for `model`, a line each: the field, the reason, what was given."""
    lines = []
    for item in error.errors():
        place = f"{prefix}{'.'.join(map(str, item['loc']))}"
        if item["type"] == "extra_forbidden":
            near = did_you_mean(str(item["loc"][-1]), model.model_fields) if len(item["loc"]) == 1 else ""
            lines.append(f"{place}: no such setting{near}")
        else:
            lines.append(f"{place}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r:.80}")
    return lines


class Protocol(Frozen):
    """A measurement, `--task` of `unimim eval`. Its fields are all that may change the result."""

    task: ClassVar[str]
    trains: ClassVar[bool] = False
    """Trains by the engine, and so runs in any number of processes."""
    reads_data: ClassVar[bool] = True
    """Reads --data."""
    labelled: ClassVar[bool] = True
    """Needs a class for each image."""

    @classmethod
    def defaults(cls, recipe: Recipe) -> Mapping[str, Any]:
        """Settings that depend on what is measured, such as those the paper has for a size of student."""
        return {}

    @classmethod
    def of(cls, recipe: Recipe, assignments: tuple[str, ...] = ()) -> Self:
        """The settings for what `recipe` trained, with key=value changes. ValueError that lists what is wrong with them."""
        try:
            base = cls.model_validate(dict(cls.defaults(recipe)))
            return cls.model_validate(override(base.model_dump(mode="json"), assignments))
        except ValidationError as error:
            raise ValueError("\n".join(explained(error, cls, f"{cls.task}."))) from None

    def check(self, subject: Subject, setting: Setting) -> None:
        """ValueError for what cannot be measured, before anything is started."""

    @abstractmethod
    def measure(self, subject: Subject, setting: Setting) -> list[Score]: ...


SCORES = "scores.json"
"""The last file that a protocol writes into its folder: with it, nothing is trained again."""


def finished(folder: Path) -> list[Score]:
    """The scores of a folder that is done; [] of one that is not."""
    path = folder / SCORES
    if not path.is_file():
        return []
    return [score_of(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def finish(folder: Path, scores: Sequence[Score]) -> None:
    write_text(folder / SCORES, json.dumps([score.data() for score in scores], indent=1))


def keep(subject: Subject, measured: Protocol, scores: Sequence[Score], images: Mapping[str, Any]) -> None:
    """Append scores to eval.jsonl in the subject's home, with the settings and what is told of the images."""
    about = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), **subject.about(), **images}
    rows = [{**about, **score.data(), "settings": measured.model_dump(mode="json")} for score in scores]
    with (subject.home / "eval.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
