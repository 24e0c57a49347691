"""Arrays that the official code computed, from tests/data or the folder that UNIMIM_GOLDENS names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unimim.testing import Golden

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


@pytest.fixture(
    params=sorted(path.stem for path in FOLDER.glob("sdae*.npz")) or ["sdae"],
    scope="session",
)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture
def piece() -> Callable[[str], Golden]:
    """piece("momentum_schedules") is the file piece_momentum_schedules.npz."""
    return lambda name: read(f"piece_{name}")


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)
