"""Arrays that the official code computed, from tests/parity/data or the folder named by UNIMIM_GOLDENS.

Every size is read from the files, so other files of the same names and other sizes run unchanged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unimim import Batch, Mask, View
from unimim.objective import Objective

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
FAMILIES: dict[str, Callable[[str], bool]] = {
    "mae": lambda name: name.startswith("mae"),
    "beit": lambda name: name == "beit" or name.startswith("beit_"),
    "data2vec": lambda name: name.startswith("data2vec"),
}


class Golden(Mapping[str, Tensor]):
    """One file: its arrays as tensors, and its config."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def config(self) -> dict[str, Any]:
        return self.json("config")

    def json(self, name: str) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(str(self.arrays[name]))
        return decoded

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def batch(self) -> Batch:
        """Stored images and mask; the images are normalized already."""
        mask = Mask.from_hidden(self["mask"])
        return Batch({"main": View(self["images"])}, {"main": (mask,)}, torch.arange(len(self["images"])))

    @property
    def unnormalized(self) -> list[str]:
        """Overrides that keep a student from normalizing the stored images again."""
        channels = self.config["in_chans"]
        return [f"student.mean={[0.0] * channels}", f"student.std={[1.0] * channels}"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for family, belongs in FAMILIES.items():
        if f"{family}_golden" in metafunc.fixturenames:
            names = [path.stem for path in sorted(FOLDER.glob("*.npz")) if belongs(path.stem)]
            metafunc.parametrize(f"{family}_golden", names or [family], indirect=True)


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


@pytest.fixture
def mae_golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture
def beit_golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture
def data2vec_golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture
def piece() -> Callable[[str], Golden]:
    """piece("mae_patchnorm") is the file piece_mae_patchnorm.npz."""
    return lambda name: read(f"piece_{name}")


@pytest.fixture
def same_gradients() -> Callable[[Objective, Mapping[str, str], Mapping[str, Tensor]], None]:
    """Every stored gradient, by official name, within 1e-4 of its largest entry; all parameters that train have one."""

    def compare(objective: Objective, loaded: Mapping[str, str], stored: Mapping[str, Tensor]) -> None:
        assert stored
        ours = {name: parameter.grad for name, parameter in objective.named_parameters()}
        names = {official: name for name, official in loaded.items()}
        for official, gradient in stored.items():
            own = ours[names[official]]
            assert own is not None, official
            worst = float((own - gradient).abs().max() / gradient.abs().max())
            assert worst <= 1e-4, f"{official}: off by {worst:.1e} of its largest entry"

    return compare
