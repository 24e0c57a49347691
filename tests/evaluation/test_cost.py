"""Operations are those of a count by hand, parts make up the whole, and watching changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine import toys
from unimim import Recipe
from unimim.evaluation import protocol_of
from unimim.evaluation.cost import SHARES, Case, Cost, Timing, ratios
from unimim.evaluation.training_cost import scores
from unimim.evaluation.workload import Ledger, Workload, matmul_rate, watched
from unimim.recipe import Replay

CPU = torch.device("cpu")
B, N, D, PIXELS = 8, 16, 16, 48
"""Of the toys: images, patches of an image, width, numbers in a patch."""


def blocks(tokens: int, depth: int = 2, asked: int | None = None) -> int:
    """Forward of `depth` blocks: k and v have 2 D x D matrices; q, projection and MLP have 1, 1 and 8, then come q k^T and
    the mixing of v, and in the last block all of this is only for the tokens asked."""
    rows = (depth - 1) * tokens + (tokens if asked is None else asked)
    return depth * 2 * B * tokens * 2 * D * D + rows * (2 * B * 10 * D * D + 2 * 2 * B * tokens * D)


EMBED = 2 * B * N * PIXELS * D
"""Forward of the patch embedding, which sees every patch."""


def flops(recipe: Recipe) -> dict[str, int]:
    return Workload(Case(recipe), CPU).flops()


def test_operations_of_mae_equal_a_count_by_hand() -> None:
    seen, hidden = 1 + N // 4, 3 * N // 4
    into, decoder, out = 2 * B * seen * D * D, blocks(1 + N, depth=1, asked=hidden), 2 * B * hidden * D * PIXELS
    student = 2 * EMBED + 3 * blocks(seen)  # pixels have no gradient
    assert flops(toys.recipe("mae-micro")) == {"T": 0, "S": student, "H": 3 * (into + decoder + out)}


def test_operations_of_a_momentum_teacher_are_a_forward_pass_of_the_student() -> None:
    forward = EMBED + blocks(1 + N)
    recipe = toys.recipe("data2vec-micro", "mask.exact=true")
    hidden = recipe.masks["main"].num_hidden(recipe.student.geometry.grid)
    assert hidden is not None
    student = 2 * EMBED + 3 * blocks(1 + N, asked=1 + hidden)
    found = flops(recipe)
    assert (found["T"], found["S"]) == (forward, student)
    live = ("teacher.weights=live", "teacher.decay=1.0", "mask.exact=true")
    assert flops(toys.recipe("data2vec-micro", *live)) == found  # the student itself, when its teacher asks it
    both = flops(toys.recipe("data2vec-micro", *live, "teacher.differentiable_target=true"))
    assert (both["S"], both["H"]) == (found["S"], found["H"])
    assert both["T"] == 2 * EMBED + 3 * blocks(1 + N)


def test_blocks_that_are_recomputed_are_computed_once_more() -> None:
    recipe = toys.recipe("mae-micro")
    plain, again = (Workload(Case(recipe, options=options), CPU).flops() for options in ({}, {"recompute": True}))
    whole = {"S": blocks(1 + N // 4), "H": blocks(1 + N, depth=1, asked=3 * N // 4)}
    for axis, forward in whole.items():  # torch stops once it has what the backward pass needs
        assert plain[axis] + forward / 2 < again[axis] <= plain[axis] + forward


def test_fused_attention_of_a_teacher_is_counted(tiny_clip: Path) -> None:
    clip = (f"teacher.model=local-dir:{tiny_clip}", "mask.ratio=0.5")
    recipe = toys.load("maskdistill-micro", [*toys.SMALL, *clip])
    assert flops(recipe)["T"] == 2 * B * N * (3 * 8 * 8) * D + blocks(1 + N)


@pytest.fixture(scope="module")
def cost() -> Cost:
    workload = Workload(Case(toys.recipe("data2vec-micro"), model="toy"), CPU)
    workload.step()
    return workload.cost([workload.timed() for _ in range(4)], matrix=64)


def test_parts_make_up_the_whole(cost: Cost) -> None:
    assert sum(cost.shares.values()) == pytest.approx(1)
    assert {*cost.shares} == {*SHARES}
    assert all(0 < share < 1 for share in cost.shares.values())
    assert cost.flops_per_step == sum(cost.flops.values())
    assert cost.teacher_share == cost.shares["teacher"]
    assert cost.images_per_s * cost.step_time_median_s == pytest.approx(cost.batch) == 8
    assert (cost.recipe, cost.model, cost.dtype, cost.steps) == ("data2vec-micro", "toy", "fp32", 4)
    assert cost.peak_rss_mb > 50
    assert (cost.cuda_allocated_mb, cost.cuda_reserved_mb) == (None, None)
    assert cost.matmul_share * cost.matmul_gflops_per_s == pytest.approx(cost.gflops_per_s)
    assert Cost.of(json.loads(json.dumps(cost.data()))) == cost


def test_scores_say_what_they_are(cost: Cost) -> None:
    found = {score.metric: score for score in scores(cost)}
    assert found["step time"].value == cost.step_time_median_s
    assert (found["memory"].value, found["memory"].unit) == (cost.peak_rss_mb, "MB")
    assert sum(found[f"share of {part}"].value for part in SHARES) == pytest.approx(100)
    assert "memory, reserved" not in found
    assert all("batch 8, fp32, cpu, 1 threads" in score.protocol for score in found.values())
    settings = protocol_of("cost").of(toys.recipe(), ("batch=4",))
    assert settings.model_dump() == {"batch": 4, "steps": 20}
    with pytest.raises(ValueError, match=r"cost\.steps: input should be greater than or equal to 2, got 1"):
        protocol_of("cost").of(toys.recipe(), ("steps=1",))


def test_a_case_survives_json() -> None:
    case = Case(toys.recipe(), "cpu", 2, "toy", {"recompute": True})
    assert Case.of(json.loads(json.dumps(case.data()))) == case
    with pytest.raises(ValueError, match="batch 8 does not divide over 3 processes"):
        Case(toys.recipe(), procs=3)


def test_watching_changes_no_number_and_leaves_no_hook() -> None:
    plain, seen = (Workload(Case(toys.recipe("data2vec-micro")), CPU) for _ in range(2))
    plain.step()
    plain.step()
    with watched(seen.objective, Ledger(lambda: 0.0)):
        seen.step()
    seen.step()
    for name, value in plain.objective.state_dict().items():
        assert torch.equal(value, seen.objective.state_dict()[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in seen.objective.modules())


def test_replayed_targets_lie_in_the_batch() -> None:
    recipe = toys.recipe("mae-micro", "teacher={name: timm, model: test_vit, pretrained: false}", "norm=identity")
    asking = Workload(Case(recipe), CPU).flops()
    replaying = Workload(Case(recipe.model_copy(update={"replay": Replay(crops=1)})), CPU).flops()
    assert asking["T"] > replaying["T"] == 0
    assert (asking["S"], asking["H"]) == (replaying["S"], replaying["H"])


def test_a_codebook_is_fitted_first() -> None:
    Workload(Case(toys.recipe("beit-micro")), CPU).step()


def made(cost: Cost, name: str, walls: list[float], clean: list[bool]) -> Cost:
    timings = tuple(Timing(wall, 2 * wall, well) for wall, well in zip(walls, clean, strict=True))
    return dataclasses.replace(cost, recipe=name, timings=timings)


def test_ratios_are_of_rounds_and_leave_out_disturbed_ones(cost: Cost) -> None:
    well = [True] * 5
    mae = made(cost, "mae", [1.0, 10.0, 1.0, 2.0, 1.0], well)
    slow = dataclasses.replace(made(cost, "slow", [2.0, 20.0, 2.1, 4.0, 90.0], [*well[:4], False]), peak_rss_mb=1e3)
    found = ratios([slow, mae], to="mae")
    assert [(ratio.recipe, ratio.to, ratio.rounds) for ratio in found] == [("slow", "mae", 4), ("mae", "mae", 5)]
    assert found[0].time == found[0].low == 2
    assert found[0].high == pytest.approx(2.025)
    assert (found[0].cpu, found[0].flops) == (2, 1)
    assert found[0].memory == 1e3 / cost.peak_rss_mb
    assert (found[1].time, found[1].low, found[1].high, found[1].memory) == (1, 1, 1, 1)
    noisy = ratios([mae, made(cost, "noisy", [3.0, 30.0, 3.0, 6.0, 3.0], [False] * 5)])[1]
    assert (noisy.time, noisy.rounds) == (3, 5)  # nothing is left without them
    with pytest.raises(ValueError, match="'beit' was not measured, only mae"):
        ratios([mae], to="beit")


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 100)), max_size=20))
def test_a_ledger_loses_nothing(entries: list[tuple[str, int]]) -> None:
    total = 0
    ledger = Ledger(lambda: total)
    for part, amount in entries:
        ledger.to(part)
        total += amount
    ledger.to("")
    assert sum(ledger.amounts.values()) == total
    for part in "abc":
        assert ledger.amounts[part] == sum(amount for name, amount in entries if name == part)


def test_a_matmul_rate_is_a_number() -> None:
    assert matmul_rate(torch.float32, CPU, 32, seconds=0) > 1e6
