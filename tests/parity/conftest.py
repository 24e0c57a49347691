"""Arrays that the official code computed, from tests/parity/data or the folder named by UNIMIM_GOLDENS.

Every size is read from the files, so other files of the same names and other sizes run unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unimim.testing import Golden

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
FAMILIES: dict[str, Callable[[str], bool]] = {
    "mae": lambda name: name.startswith("mae"),
    "beit": lambda name: name == "beit" or name.startswith("beit_"),
    "data2vec": lambda name: name.startswith("data2vec"),
    "simmim": lambda name: name.startswith("simmim"),
}


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
def simmim_golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture
def piece() -> Callable[[str], Golden]:
    """piece("mae_patchnorm") is the file piece_mae_patchnorm.npz."""
    return lambda name: read(f"piece_{name}")
