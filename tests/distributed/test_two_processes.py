"""Two processes over gloo compute what one computes at the same global batch, whole or sharded, and resume each other."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.toys import SMOOTH

from .worker import column, launch, main, state

CASES = {
    "mae-micro": (SMOOTH,),
    "beit-micro": (SMOOTH, "student.drop_path=0"),
    "data2vec-micro": (SMOOTH, "norm=batch"),
    "mae-micro contrasting": (SMOOTH, "loss={name: info_nce, negatives: world}"),
}
OF_A_BATCH = ("data2vec-micro", "mae-micro contrasting")
"""Their value is a function of the images that are passed at once, which micro-batches would change."""


def assert_same(one: Path, two: Path) -> None:
    """Losses within 2e-5, weights within what AdamW makes of that."""
    for key in ("loss", "grad_norm"):
        assert column(two, key) == pytest.approx(column(one, key), rel=2e-5)
    other = state(two)
    for key, value in state(one).items():
        torch.testing.assert_close(other[key], value, atol=5e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def assert_equal(one: Path, two: Path) -> None:
    """The same bits."""
    assert column(one, "loss") == column(two, "loss")
    other = state(two)
    assert [key for key, value in state(one).items() if not torch.equal(other[key], value)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_equal_one_and_sharded_equal_whole(tmp_path: Path, name: str) -> None:
    recipe, parts = name.split()[0], {} if name in OF_A_BATCH else {"micro_batch": 2}
    main(recipe, tmp_path / "one", *CASES[name])
    launch(recipe, tmp_path / "ddp", *CASES[name])
    launch(recipe, tmp_path / "fsdp", *CASES[name], parallel="fsdp", shard_teachers=True, **parts)
    assert_same(tmp_path / "one", tmp_path / "ddp")
    assert_same(tmp_path / "one", tmp_path / "fsdp")


WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "ddp 1": (1, {}),
    "fsdp 1": (1, {"parallel": "fsdp"}),
    "ddp 2": (2, {}),
    "fsdp 2": (2, {"parallel": "fsdp"}),
}


def train(way: str, out: Path, **options: Any) -> None:
    procs, own = WAYS[way]
    if procs == 1:
        main("data2vec-micro", out, SMOOTH, **own, **options)
    else:
        launch("data2vec-micro", out, SMOOTH, procs=procs, **own, **options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_number_of_processes_goes_on_where_any_other_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R5. The same bits when nothing changed, otherwise within 2e-5 in every loss."""
    for way in WAYS:
        train(way, tmp_path / "whole" / way)
        train(way, tmp_path / "begun" / way, stop_after=4)
    bitwise = 0
    for first, second in product(WAYS, WAYS):
        out = tmp_path / f"{first}, {second}"
        shutil.copytree(tmp_path / "begun" / first, out)
        train(second, out)
        assert_same(tmp_path / "whole" / second, out)
        if first == second:
            assert_equal(tmp_path / "whole" / first, out)
            bitwise += 1
    with capsys.disabled():
        print(
            f"\nR5 loads {len(WAYS) ** 2}, later losses within 2e-5 in all; unchanged way {bitwise}/{len(WAYS)} bitwise"
        )
