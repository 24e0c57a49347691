"""Our step against the plain formulation that benchmarks measure it by: the same loss and the same gradients."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plain.py"
SMALL = ("student.image_size=32", "student.patch_size=8", "student.dim=32", "student.depth=3", "student.num_heads=2")
CHANGES = {
    "mae": ("head.dim=16", "head.depth=2", "head.num_heads=2"),
    "data2vec": ("teacher.layers=[1,2]", "mask={name: block, ratio: 0.5, min_block: 4}"),
    "beit": ("teacher.num_hidden=4", "teacher.vocab_size=32", "mask={name: block, ratio: 0.4, min_block: 4}"),
}


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CHANGES)
def test_our_step_has_the_loss_and_gradients_of_the_plain_one(plain: ModuleType, name: str) -> None:
    found = plain.check(name, Namespace(batch=4, dtype="fp32", set=[*SMALL, *CHANGES[name]]))
    assert found["ours"] == pytest.approx(found["plain"], rel=1e-6)
    assert found["gradients"] < 1e-5
    assert found["compared"] > 30
