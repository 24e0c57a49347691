"""Shape bias: where outline and texture say different things, how often is the outline believed?"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..engine.data.shapes import TEXTURE_OF_CLASS, Shapes
from ..engine.data.sources import ImageSource
from .finetuned import ask, finetuned, open_tests
from .protocol import Protocol, Setting, Subject
from .robustness import Given
from .score import Score, accuracy
from .sixteen import SIXTEEN, is_imagenet_1k

COLUMNS = ("object_response", "category", "imagename")
"""What must be in a CSV of decisions; the published ones also hold subj, session, trial, rt and condition."""


@dataclass(frozen=True)
class Answer:
    """What was said of one image (a file name), and what its outline and its texture show."""

    image: str
    shape: str
    texture: str
    said: str


@dataclass(frozen=True)
class Count:
    """Answers that named the shape and the texture, of all to images whose cues differ."""

    shape: int
    texture: int
    shown: int

    @property
    def bias(self) -> float | None:
        """shape / (shape + texture); None where no answer named a cue."""
        named = self.shape + self.texture
        return self.shape / named if named else None


@dataclass(frozen=True)
class Counted:
    """One who answered: all answers together, and by the category of the shape."""

    pooled: Count
    categories: Mapping[str, Count]

    def box(self) -> tuple[float, ...]:
        """What a box plot is made of: the bias of each category that has one."""
        return tuple(count.bias for count in self.categories.values() if count.bias is not None)


def shape_bias(given: Iterable[Answer]) -> Counted:
    """bias = #shape / (#shape + #texture) over images whose cues differ; answers that name neither cue do not count.

    Images of the same shape and texture are left out: 80 of the 1280 of model-vs-human. The pooled value is not the mean
    of the categories' values.
    Source: bethgelab/model-vs-human @ 79ed7cd, modelvshuman/plotting/analyses.py.
    """
    found: dict[str, list[Answer]] = {}
    for answer in given:
        if answer.shape != answer.texture:
            found.setdefault(answer.shape, []).append(answer)
    categories = {name: _count(found[name]) for name in sorted(found)}
    return Counted(_count([answer for some in found.values() for answer in some]), categories)


def _count(given: Sequence[Answer]) -> Count:
    shape, texture = (sum(answer.said == getattr(answer, cue) for answer in given) for cue in ("shape", "texture"))
    return Count(shape, texture, len(given))


def category_probabilities(logits: Tensor, groups: Iterable[Sequence[int]]) -> Tensor:
    """p_g = mean over the classes c of group g of softmax(logits)_c: (n, C) -> (n, G).

    The softmax is over all C. Mean, not sum: a dog has 109 classes, a knife one.
    Source: bethgelab/model-vs-human @ 79ed7cd, modelvshuman/datasets/decision_mappings.py.
    """
    probabilities = logits.softmax(-1)
    return torch.stack([probabilities[:, list(group)].mean(-1) for group in groups], 1)


def ranking(probabilities: Tensor) -> Tensor:
    """Columns of probabilities (n, G), the most probable first; of equal ones the last, as in the official code."""
    return probabilities.argsort(dim=-1, stable=True).flip(-1)


def groups_of(classes: Sequence[str], categories: Iterable[str], where: str) -> dict[str, tuple[int, ...]]:
    """{category: places of its classes}: each category its own class, or the 16 of model-vs-human for ImageNet-1k.

    Raises ValueError for categories that the classifier cannot answer with.
    """
    wanted = sorted(set(categories))
    if set(wanted) <= set(classes):
        return {category: (list(classes).index(category),) for category in wanted}
    known = SIXTEEN if is_imagenet_1k(classes) else dict.fromkeys(classes)
    strange = ", ".join(category for category in wanted if category not in known)
    if strange:
        raise ValueError(
            f"{where} shows {strange}, of which the classifier of {len(classes)} classes knows nothing: it needs a "
            "classifier of these classes, or of the 1000 of ImageNet in folders by WordNet id"
        )
    return dict(SIXTEEN)


_CUES = re.compile(r"([^\W\d_]+)\d+-([^\W\d_]+)\d+")


def cues(name: str) -> tuple[str, str]:
    """Shape and texture in the name of a stimulus: airplane1-bear2.png, with a path or words and a _ before it."""
    found = _CUES.fullmatch(PurePath(name).stem.rpartition("_")[2])
    if not found:
        raise ValueError(f"{name}: not named by its cues, shapeN-textureM, as in airplane1-bear2.png")
    return found[1], found[2]


def cues_of(source: ImageSource, where: str) -> list[tuple[str, str]]:
    """Shape and texture of every image of a source: by the names of its files, or as `shapes` has drawn them."""
    if not isinstance(source, Shapes):
        return [cues(source.name(index)) for index in range(len(source))]
    if source.split != "cue-conflict":
        raise ValueError(f"{where}: its textures stand for no class; use shapes:split=cue-conflict")
    texture_class = {texture: source.classes[label] for label, texture in enumerate(TEXTURE_OF_CLASS)}
    return [(source.classes[source.label(i)], texture_class[source.texture(i)]) for i in range(len(source))]


def decide(given: Given, classes: Sequence[str], source: ImageSource, where: str) -> list[Answer]:
    """The answers that logits `given` to images of a source amount to, among all categories that the source shows."""
    shown = cues_of(source, where)
    groups = groups_of(classes, (cue for pair in shown for cue in pair), where)
    names, found = list(groups), []
    for indices, logits in given:
        best = ranking(category_probabilities(logits, groups.values()))[:, 0].tolist()
        found += [Answer(_image(source, i, *shown[i]), *shown[i], names[n]) for i, n in zip(indices, best, strict=True)]
    return found


def _image(source: ImageSource, index: int, shape: str, texture: str) -> str:
    return f"{shape}{index}-{texture}{index}.png" if isinstance(source, Shapes) else PurePath(source.name(index)).name


def read_answers(path: Path) -> list[Answer]:
    """The answers in a CSV of decisions, or in all CSVs of a folder, as model-vs-human publishes them in raw-data.

    Rows of `object_response`, `category` (of the shape) and `imagename`; other columns are passed over. Raises ValueError.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"{path}: no CSV of decisions there")
    return [answer for file in files for answer in _read(file)]


def _read(path: Path) -> list[Answer]:
    given = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
        for row in rows:
            said, category, image = ((row[name] or "").strip() for name in COLUMNS)
            try:
                shape, texture = cues(image)
            except ValueError as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from None
            if shape != category:
                raise ValueError(f"{path}, line {rows.line_num}: category {category!r}, but {image} shows {shape!r}")
            given.append(Answer(image, shape, texture, said))
    if not given:
        raise ValueError(f"{path}: no decisions in it")
    return given


def write_answers(path: Path, given: Sequence[Answer], who: str) -> None:
    """The answers as a CSV with the columns of model-vs-human's raw-data."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename"])
        for trial, answer in enumerate(given, 1):
            rows.writerow([who, 1, trial, "NaN", answer.said, answer.shape, "NaN", answer.image])


@dataclass(frozen=True)
class Series:
    """One who answered, in Figure 3: on the axis of texture, 1 - bias by category (None undefined) and pooled (the line)."""

    name: str
    points: tuple[tuple[str, float | None], ...]
    line: float | None


def figure3(counted: Mapping[str, Counted]) -> list[Series]:
    """{who: counts} -> the series of the paper's Figure 3."""

    def texture(count: Count) -> float | None:
        return None if count.bias is None else 1 - count.bias

    return [
        Series(
            name, tuple((category, texture(count)) for category, count in one.categories.items()), texture(one.pooled)
        )
        for name, one in counted.items()
    ]


def scores(counted: Counted, who: str, how: str) -> list[Score]:
    """The pooled shape bias in percent and each category's, of whom `who` names ("" for the classifier itself)."""
    pooled, metric = counted.pooled, f"shape bias of {who}" if who else "shape bias"
    if pooled.bias is None:
        raise ValueError(
            f"{metric}: no answer to {pooled.shown} images names their shape or texture, so it is undefined"
        )
    undefined = [name for name, count in counted.categories.items() if count.bias is None]
    words = [
        f"{pooled.shape} answers named the shape, {pooled.texture} the texture, of {pooled.shown} images where they differ",
        *([f"undefined for {', '.join(undefined)}"] if undefined else []),
        how,
    ]
    found = [accuracy("shape-bias", pooled.shape, pooled.shape + pooled.texture, "; ".join(words), metric)]
    for name, count in counted.categories.items():
        if count.bias is not None:
            told = f"{count.shape} shape, {count.texture} texture of {count.shown} images; else as the pooled value"
            named = count.shape + count.texture
            found.append(accuracy("shape-bias", count.shape, named, told, f"{metric}, {name}"))
    return found


class ShapeBias(Protocol):
    """Shape bias of a fine-tuned classifier on images whose outline and texture say different things.

    data: images named shapeN-textureM, or shapes:split=cue-conflict; None is the --data itself.  finetuned: folder of the
    classifier; None is the newest fine-tuning of the same student.  csv: decisions of others, a file or a folder of files
    for each of them, scored in the same way.
    The answers are kept as decisions.csv. Deviation from model-vs-human @ 79ed7cd: a classifier of another size than the
    stimuli's 224 is shown them resized (bicubic), never cut.
    """

    task: ClassVar[str] = "shape-bias"

    data: str | None = None
    finetuned: Path | None = None
    csv: tuple[Path, ...] = ()
    batch: int = Field(64, gt=0)

    @field_validator("csv", mode="before")
    @classmethod
    def _one_or_more(cls, csv: object) -> object:
        return (csv,) if isinstance(csv, str | Path) else csv

    def check(self, subject: Subject, setting: Setting) -> None:
        spec = self.data or setting.data
        cues_of(open_tests(spec), spec)
        for path in self.csv:
            read_answers(path)

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        trained, spec = finetuned(subject, self.finetuned), self.data or setting.data
        source = open_tests(spec)
        setting.say(f"asking about {len(source)} images of {spec}")
        found = decide(ask(trained, source, setting.run, self.batch, whole=True), trained.classes, source, spec)
        folder = subject.place(self, source.fingerprint())
        folder.mkdir(parents=True, exist_ok=True)
        write_answers(folder / "decisions.csv", found, subject.recipe.name)
        how = (
            f"mean probability of a category's classes, of {len(trained.classes)}; the whole image; {trained.described}"
        )
        result = scores(shape_bias(found), "", how)
        for path in self.csv:
            result += scores(shape_bias(read_answers(path)), path.stem, "decisions of others")
        return result
