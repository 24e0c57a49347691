"""The command line as a person meets it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unimim.cli import main

TINY = [
    "student.image_size=16",
    "student.patch_size=4",
    "student.depth=1",
    "student.dim=16",
    "student.num_heads=2",
    "head.dim=16",
    "head.depth=1",
    "head.num_heads=2",
    "batch=8",
    "epochs=2",
    "precision=float32",
]
"""mae-micro as small as it goes."""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Unimim = Callable[..., Ran]


@pytest.fixture
def unimim(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Unimim:
    """unimim("train", "mae", ...) runs the command in this process."""

    def run(*arguments: object) -> Ran:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["unimim", *words])
        capsys.readouterr()
        code = main(words)
        return Ran(code, *capsys.readouterr())

    return run


def draw(folder: Path, count: int, seed: int) -> None:
    """`count` images of 16 pixels in two classes: dark above or bright above."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = rng.integers(0, 80, (16, 16, 3), dtype=np.uint8)
        upper = slice(0, 8) if number % 2 else slice(8, 16)
        image[upper] += 150
        path = folder / ("bright" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 32 training and 8 test images."""
    folder = tmp_path_factory.mktemp("images")
    draw(folder / "train", 32, seed=0)
    draw(folder / "val", 8, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is done."""
    out = tmp_path_factory.mktemp("runs") / "mae"
    assert main(["train", "mae-micro", *TINY, "--data", str(images), "--out", str(out), "--workers", "0"]) == 0
    return out
