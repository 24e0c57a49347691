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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile
def test_the_same_losses_however_it_is_run(tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path / "one", tiny_clip)
    table, recipes = {}, distinct(tiny_clip)
    for way, (procs, options) in WAYS.items():
        out = tmp_path / way.replace(" ", "-")
        if procs == 1:
            main(out, tiny_clip, **options)
        else:
            together(main, out, tiny_clip, **options)
        for name in recipes:
            one, other = (column(folder / name, "loss") for folder in (tmp_path / "one", out))
            assert len(one) == len(other) == STEPS
            table[name, way] = max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))
    with capsys.disabled():
        print(f"\nlargest relative difference of {STEPS} losses over {len(names())} recipes ({len(recipes)} distinct)")
        for way in WAYS:
            name = max(recipes, key=lambda name: table[name, way])
            print(f"  {way:42} {table[name, way]:.1e} ({name})")
    assert all(value < TOLERANCE for value in table.values()), table
