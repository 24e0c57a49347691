"""The projector's contract, what enters its statistics, the size of the loss, and steps of the recipe, in one process and two."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from unimim_conmim.projector import Projector, shares

from unimim import Encoded, Objective, Progress, Query, load, plugins, testing

SCRIPT = Path(__file__).with_name("worker.py")
worker: Any = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def projector(hidden_dim: int = 12) -> Any:
    """In training mode, with moved weights."""
    torch.manual_seed(0)
    toy = {key: value for key, value in testing.TOY.items() if key != "name"}
    head = Projector.Config(hidden_dim=hidden_dim).build(plugins()["students"]["vit"].Config(**toy).build(), 5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head.train()


def encoded(seed: int = 0) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    return Encoded(torch.randn(2, 24, 16, generator=draw), torch.randn(2, 1, 16, generator=draw), (4, 6))


def everywhere(include_class: bool = True) -> Query:
    return Query(torch.arange(24).expand(2, -1), include_class=include_class)


@pytest.mark.parametrize("hidden_dim", [1, 24])
@pytest.mark.parametrize("num_registers", [0, 2])
def test_keeps_the_contract_of_a_head(hidden_dim: int, num_registers: int) -> None:
    head = {"name": "projector", "hidden_dim": hidden_dim}
    testing.check_head(head, {**testing.TOY, "num_registers": num_registers})


def test_predictions_of_all_tokens_have_mean_0_and_variance_1() -> None:
    preds = projector()(encoded(), everywhere()).flatten(0, 1)
    assert_close(preds.mean(0), torch.zeros(5), rtol=0, atol=1e-6)
    assert_close(preds.var(0, correction=0), torch.ones(5), rtol=1e-3, atol=0)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(row=st.integers(-1, 23), seed=st.integers(0, 5))
def test_a_token_changes_what_is_said_of_every_other_in_training_and_only_its_own_in_eval(row: int, seed: int) -> None:
    """row -1 is the class token, which nobody asks about."""
    head, before = projector(), encoded(seed)
    sequence = torch.cat([before.prefix, before.tokens], 1)
    sequence[0, row + 1] += 1
    after = replace(before, prefix=sequence[:, :1], tokens=sequence[:, 1:])

    def moved() -> Any:
        return (head(before, everywhere(False)) - head(after, everywhere(False))).abs().amax(-1) > 0

    assert moved().all()
    head.eval()
    assert moved().nonzero().tolist() == ([] if row < 0 else [[0, row]])


def test_what_is_asked_about_does_not_change_the_answers() -> None:
    head, tokens = projector(), encoded()
    some = torch.tensor([[3, 1], [20, 5]])
    whole = head(tokens, everywhere(False))
    assert head(tokens, Query(some)).equal(whole.gather(1, some.unsqueeze(-1).expand(-1, -1, 5)))
    assert head(tokens, Query(None)).equal(head(tokens, everywhere())[:, :1])


def test_shares_of_variance() -> None:
    draw = torch.Generator().manual_seed(0)
    position, image = torch.randn(24, 5, generator=draw), torch.randn(8, 5, generator=draw)
    for tokens, expected in (
        (position.expand(8, -1, -1), (1.0, 0.0)),
        (image.unsqueeze(1).expand(-1, 24, -1), (0.0, 1.0)),
        (torch.zeros(8, 24, 5), (0.0, 0.0)),
        (torch.randn(8, 24, 5000, generator=draw), (23 / 191, 7 / 191)),  # degrees of freedom
    ):
        found = shares(tokens)
        assert (found["position"].item(), found["image"].item()) == pytest.approx(expected, abs=2e-3)


def test_statistics_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        preds = projector()(encoded(), everywhere())
    assert preds.dtype == torch.bfloat16
    assert_close(preds.float().flatten(0, 1).var(0, correction=0), torch.ones(5), rtol=5e-3, atol=0)


def test_trains_at_both_sizes() -> None:
    testing.check_recipe("conmim-micro", worker.SMALL)
    testing.check_recipe("conmim-micro", ["student.dim=16", "student.depth=1", "student.num_heads=2"])


def test_the_student_sees_the_clean_view_and_the_teacher_the_recoloured_one() -> None:
    made = worker.objective()
    (batch,) = worker.batches(made, 1)
    assert made.hides == {"main": True}
    assert made.recipe.terms["mim"].view == "other"
    assert batch.views["main"].box.equal(batch.views["other"].box)
    assert batch.views["main"].flip.equal(batch.views["other"].flip)
    (before,) = made.predictions(batch)["mim"]
    recoloured = replace(
        batch, views={**batch.views, "other": replace(batch.views["other"], image=batch.views["main"].image)}
    )
    (after,) = made.predictions(recoloured)["mim"]
    assert before.preds[0].equal(after.preds[0])
    assert not before.dense.equal(after.dense)


def test_hidden_pixels_change_nothing_but_the_target() -> None:
    made = worker.objective()
    (batch,) = worker.batches(made, 1)
    hidden = batch.masks["main"][0].hidden.view(-1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    main = batch.views["main"]
    blind = replace(main, image=torch.where(hidden, 255 - main.image, main.image))
    other = replace(batch, views={**batch.views, "main": blind})
    assert made(batch)["loss"].equal(made(other)["loss"])


def test_masks_hide_148_of_196_patches_in_whole_squares_of_32_pixels() -> None:
    recipe = load("conmim")
    mask = recipe.masks["main"]
    assert mask.num_hidden(recipe.student.geometry.grid) == 148
    hidden = mask.build().sample((14, 14), np.random.default_rng(0)).reshape(7, 2, 7, 2)
    assert (hidden.any((1, 3)) == hidden.all((1, 3))).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_patches_that_look_alike_cost_the_logarithm_of_their_number(temperature: float) -> None:
    made = worker.objective(f"loss.temperature={temperature}")
    loss = made.terms["mim"].loss
    same = torch.ones(2, 48, 12)
    assert loss(same, same, None, keys=torch.ones(2, 64, 12)).mean().item() == pytest.approx(math.log(64), abs=1e-5)


def test_the_copy_answers_with_batch_statistics_in_training_and_running_ones_in_eval() -> None:
    made = worker.objective()
    (batch,) = worker.batches(made, 1)
    teacher = made.teachers["mim"]
    tokens = teacher(batch.views["other"]).tokens.flatten(0, 1)
    assert tokens.var(0, correction=0).mean().item() == pytest.approx(1, abs=0.1)  # but for the class tokens
    made.eval()
    running = {name: value.clone() for name, value in teacher.named_buffers()}
    assert not teacher(batch.views["other"]).tokens.flatten(0, 1).equal(tokens)
    assert all(value.equal(running[name]) for name, value in teacher.named_buffers())


def test_the_health_of_a_step_names_the_shares() -> None:
    made = worker.objective()
    made(worker.batches(made, 1)[0])
    assert {"head/mim/position", "head/mim/image", "target/mim/cosine", "target/mim/variance"} <= {*made.health}


def test_the_momentum_rises_to_one() -> None:
    decay = load("conmim").terms["mim"].teacher.decay
    assert [decay(fraction) for fraction in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1.0])
    made = worker.objective()
    before = [parameter.clone() for parameter in made.teachers.parameters()]
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.add_(1)
    made.on_step_end(Progress(10, 10, 5))
    assert all(a.equal(b) for a, b in zip(before, made.teachers.parameters(), strict=True))


@pytest.mark.timeout(280)
def test_two_processes_are_two_halves_each_with_its_own_statistics(tmp_path: Path) -> None:
    testing.in_processes(SCRIPT, tmp_path)
    made = worker.objective()
    by_hand = worker.step(made, worker.batches(made, 2))
    first, second = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2))
    assert {*by_hand} == {*first}
    for name, value in by_hand.items():
        assert first[name].equal(second[name]), name
        assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    whole = worker.objective()
    other = worker.step(whole, worker.batches(whole, 1))
    assert abs(other["loss"] - by_hand["loss"]) > 1e-3, "one process over all images has other statistics"


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="head 'projector' reads the student's tokens at hidden positions"):
        load("conmim", ["student.masking=drop"])
    with pytest.raises(ValueError, match="hidden_dim"):
        load("conmim", ["head.hidden_dim=0"])


def test_the_base_size_has_the_official_number_of_parameters() -> None:
    """BEiT's 91,965,776 without its head over 8192 ids, and the projector's three matrices and two affine norms."""
    with torch.device("meta"):
        made: Any = Objective(load("conmim"))
    count = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    beit, ids, norms = 91_965_776, 8192 * 769, 4 * 4096
    assert count == beit - ids + 768 * 4096 + 4096 * 4096 + 4096 * 256 + norms
