"""MSN's parts: contracts, laws, recipes, and several processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from unimim_msn.loss import MSN, sinkhorn

from unimim import Encoded, Objective, Query, TargetSpec, load, testing

SMALL = (
    "student.image_size=16",
    "student.patch_size=4",
    "student.dim=16",
    "student.depth=1",
    "student.num_heads=2",
    "views.focal_size=8",
    "head.hidden=8",
    "teacher.head_dim=6",
    "loss.num_prototypes=5",
    "precision=float32",
)


def loss(**fields: Any) -> Any:
    torch.manual_seed(0)
    return MSN.Config(**({"num_prototypes": 5} | fields)).build(TargetSpec(6))


def vectors(count: int, seed: int = 0, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_contracts() -> None:
    testing.check_head({"name": "msn", "hidden": 8})
    testing.check_loss({"name": "msn", "num_prototypes": 5})
    testing.check_loss({"name": "msn", "num_prototypes": 5, "sinkhorn": 0, "me_max": 0})


@pytest.mark.parametrize("more", [(), ("views.num_focal=0", "masks={main: {name: random, ratio: 0.5}}")])
def test_a_recipe_trains(more: tuple[str, ...]) -> None:
    testing.check_recipe("msn-micro", [*SMALL, *more])


@given(st.integers(2, 30), st.integers(2, 9), st.integers(0, 1000))
def test_balanced_rows_sum_to_one_and_columns_become_equal(n: int, k: int, seed: int) -> None:
    shares = vectors(n, seed, k).double().softmax(1)
    balanced = sinkhorn(shares, 200)
    assert_close(balanced.sum(1), torch.ones(n, dtype=torch.float64))
    assert_close(balanced.sum(0), torch.full((k,), n / k, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(sinkhorn(shares[order], 3), sinkhorn(shares, 3)[order])


def test_anchors_that_all_say_the_same_cost_as_much_as_they_leave_unused() -> None:
    """One prototype for all: log K - 0 of me-max; all alike: nothing."""
    one = loss(temperature=1e-3, sinkhorn=0)
    with torch.no_grad():
        one.prototypes.copy_(torch.eye(5, 6))
    anchors = torch.eye(1, 6).repeat(8, 1).unsqueeze(1)
    value = one(anchors, anchors)
    assert value.item() == pytest.approx(math.log(5), rel=1e-5)
    assert one.health["prototypes_used"].item() == pytest.approx(1 / 5)
    assert one.health["prototypes_perplexity"].item() == pytest.approx(1)
    spread = torch.eye(5, 6).unsqueeze(1)
    assert one(spread, spread).item() == pytest.approx(0, abs=1e-5)
    assert one.health["prototypes_perplexity"].item() == pytest.approx(5)


def test_the_target_teaches_and_does_not_learn() -> None:
    both, target = loss(me_max=0), vectors(8, 1).unsqueeze(1).requires_grad_()
    both(vectors(8).unsqueeze(1), target).backward()
    assert target.grad is None
    assert both.prototypes.grad is not None
    wanted, logits = both.assign(target.detach().flatten(0, 1)), both.logits(vectors(8))
    (expected,) = torch.autograd.grad(-(wanted * logits.log_softmax(1)).sum(1).mean(), both.prototypes)
    assert_close(both.prototypes.grad, expected)


def test_views_of_one_size_are_normalized_together() -> None:
    objective = Objective(load("msn-micro", SMALL))
    head: Any = objective.terms["mim"].head.train()

    def encoded(seed: int, side: int) -> Encoded:
        return Encoded(torch.zeros(4, side * side, 16), vectors(4, seed, 16).unsqueeze(1), (side, side))

    steps = [encoded(0, 4), encoded(1, 2), encoded(2, 2)]
    large, *small = head.forward_all(steps, [Query(None)] * 3)
    assert_close(large, head(steps[0], Query(None)))
    together = Encoded(torch.zeros(8, 4, 16), torch.cat([step.prefix for step in steps[1:]]), (2, 2))
    assert_close(torch.cat(small), head(together, Query(None)))
    assert (small[0] - head(steps[1], Query(None))).abs().max() > 1e-4


def test_the_prototypes_are_the_losss_and_not_decayed() -> None:
    recipe = load("msn-micro", SMALL)
    objective = Objective(recipe)
    assert recipe.optimization.no_decay == ("prototypes",)
    names = [name for name, _ in objective.named_parameters() if name.endswith("prototypes")]
    assert names == ["branches.mim.loss.prototypes"]


@pytest.mark.slow
def test_two_processes_compute_what_one_does() -> None:
    testing.check_processes("msn-micro", SMALL)
