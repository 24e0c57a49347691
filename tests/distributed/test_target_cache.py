"""Two processes fill one cache and read it, and train as one process without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.toys import SMOOTH

from .test_two_processes import assert_equal, assert_same
from .worker import launch, main

CHANGES = (SMOOTH, "student.drop_path=0", "replay.crops=1")


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_read_it(tmp_path: Path) -> None:
    main("beit-micro", tmp_path / "one", *CHANGES)
    for out in ("filling", "reading"):
        launch("beit-micro", tmp_path / out, *CHANGES, target_cache=tmp_path / "cache")
        (sums,) = (tmp_path / "cache").glob("*/sums")
        assert np.count_nonzero(np.fromfile(sums, dtype=np.uint32)) >= 24  # of 26 images each epoch leaves two out
    assert_equal(tmp_path / "filling", tmp_path / "reading")
    assert_same(tmp_path / "one", tmp_path / "reading")
    launch("beit-micro", tmp_path / "whole", *CHANGES, target_cache=tmp_path / "cache", parallel="fsdp")
    assert_same(tmp_path / "one", tmp_path / "whole")
