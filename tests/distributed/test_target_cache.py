"""Two processes fill one cache and read it, and train as one process without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.toys import SMOOTH

from .test_two_processes import assert_same
from .worker import launch, main

DVAE = "teacher={name: dvae, weights: null, num_hidden: 4, vocab_size: 32, blocks_per_group: 1}"

CHANGES = (SMOOTH, "student.drop_path=0", "replay.crops=1")


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_read_it(tmp_path: Path) -> None:
    main("beit-micro", tmp_path / "one", *CHANGES)
    for out, parallel in (("filling", "ddp"), ("reading", "fsdp")):
        launch("beit-micro", tmp_path / out, *CHANGES, target_cache=tmp_path / "cache", parallel=parallel)
        assert_same(tmp_path / "one", tmp_path / out)
        (sums,) = (tmp_path / "cache").glob("*/sums")
        assert np.count_nonzero(np.fromfile(sums, dtype=np.uint32)) >= 24  # of 26 images each epoch leaves two out


def test_a_sharded_teacher_cannot_be_asked_by_one_process_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a teacher that is sharded must be asked by all processes"):
        main("beit-micro", tmp_path, DVAE, "replay.crops=1", target_cache=tmp_path / "cache", parallel="fsdp")
