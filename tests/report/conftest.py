from collections.abc import Callable

import numpy as np
import pytest

from unimim.report import Axes, Cost, Curve, Entry, Figure, Panel, Picture, Provenance, Report, Score, Series, Skipped

AXES = Axes("CLIP ViT-B/16", "LayerNorm", "ViT-S/16", "FC", "Smooth-ℓ1")


def linear(value: float, half: float | None = 1.0, seed: int = 0, protocol: str = "mean of patch tokens") -> Score:
    interval = None if half is None else (value - half, value + half)
    return Score("linear probe", "top-1", value, "%", interval, protocol, seed)


def recipe(name: str, *scores: Score) -> Entry:
    return Entry(name, name.upper(), AXES, scores=scores)


def comparison(*entries: Entry, skipped: tuple[Skipped, ...] = ()) -> Report:
    return Report("Comparison", "unimim compare mae beit", "today", "shapes", "100 steps", {}, entries, skipped)


def picture(seed: int, caption: str, side: int = 24) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Picture(caption, pixels)


def worded(text: str) -> Report:
    """A report with every part present and `text` in every place a person, a plugin or a file can put text."""
    images = tuple(picture(i, f"{text}{i}") for i in range(2))
    entries = tuple(
        Entry(
            name=f"{text}{i}",
            title=text,
            axes=Axes(text, text, text, text, text),
            scores=tuple(Score(text, text, 60.0 + i + k, text, (59.0, 63.5), f"{text}{i}", k) for k in range(2)),
            curves=(Curve(text, (0, 1, 2), (2.0, float("nan"), 1.0)), Curve(text, (0, 1, 2), (3.0, 2.0, 1.0))),
            cost=Cost(12.0, 100.0, 900.0, 10, 1000),
            panels=(Panel(text, images, text), Panel(text, images[: 1 + i], text)),
            warnings=(text,),
            config_yaml=text,
            provenance=(Provenance(text, text, text),),
        )
        for i in range(2)
    )
    floor = Entry("floor", text, kind="random", scores=(Score(text, text, 30.0, text, (29.0, 31.0), text),))
    environment = {text: text}
    figure = Figure(text, text, text, (Series(text, (0.0, 1.0), (1.0, 2.0)),), note=text, paper=text)
    skipped = (Skipped(text, text),)
    return Report(text, text, text, text, text, environment, (*entries, floor), skipped, (figure,))


@pytest.fixture(name="linear", scope="session")
def _linear() -> Callable[..., Score]:
    return linear


@pytest.fixture(name="recipe", scope="session")
def _recipe() -> Callable[..., Entry]:
    return recipe


@pytest.fixture(name="comparison", scope="session")
def _comparison() -> Callable[..., Report]:
    return comparison


@pytest.fixture(name="picture", scope="session")
def _picture() -> Callable[..., Picture]:
    return picture


@pytest.fixture(name="worded", scope="session")
def _worded() -> Callable[[str], Report]:
    return worded
