"""How a recipe is run changes none of its first twenty losses, for every registered recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .every import STEPS, distinct, main, names
from .worker import column, together

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "parts of 2 images, recomputed, 2 workers": (1, {"micro_batch": 2, "recompute": True, "workers": 2}),
    "compiled": (1, {"compile": True}),
    "ddp on 2": (2, {}),
    "fsdp on 2, parts of 2, teachers sharded": (2, {"parallel": "fsdp", "micro_batch": 2, "shard_teachers": True}),
}
TOLERANCE = 2e-6


@pytest.fixture(scope="session")
def as_it_is(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """Every recipe in one process, eager, a step a batch."""
    folder = tmp_path_factory.mktemp("one")
    main(folder, tiny_clip)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile
@pytest.mark.parametrize("way", WAYS)
def test_the_same_losses_however_it_is_run(
    way: str, as_it_is: Path, tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    procs, options = WAYS[way]
    if procs == 1:
        main(tmp_path, tiny_clip, **options)
    else:
        together(main, tmp_path, tiny_clip, **options)
    off = {}
    for name in (recipes := distinct(tiny_clip)):
        one, other = (column(folder / name, "loss") for folder in (as_it_is, tmp_path))
        assert len(one) == len(other) == STEPS
        off[name] = max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))
    worst = max(recipes, key=lambda name: off[name])
    with capsys.disabled():
        print(
            f"\n{way}: {STEPS} losses of {len(names())} recipes ({len(off)} distinct) off by {off[worst]:.1e} ({worst})"
        )
    assert all(value < TOLERANCE for value in off.values()), off
