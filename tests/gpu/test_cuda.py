"""On a CUDA device: the same losses and gradients as on the CPU, and a run that ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine import toys
from tests.engine.test_loop import losses
from unimim import Progress, Sampling
from unimim.engine.guard import Guard
from unimim.engine.loop import clip
from unimim.engine.meters import Meters
from unimim.engine.optim import make_optimizer
from unimim.engine.run import Run
from unimim.training import build, train_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", ["mae-micro", "data2vec-micro"])
def test_loss_and_gradients_equal_the_cpus(name: str) -> None:
    recipe = toys.recipe(name, "student.drop_path=0")
    objective = build(recipe)
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    batch = sampling.collate([sampling(toys.Noise().read(index), 0, index) for index in range(8)])
    expected = objective(batch)["loss"]
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    objective.cuda()
    loss = objective(batch.to("cuda"))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for key, parameter in objective.named_parameters():
        if key in gradients:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad.cpu(), gradients[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["mae-micro", "beit-micro", "data2vec-micro"])
def test_no_step_waits_for_the_device(name: str) -> None:
    """The second step: in the first one parts may find out what they remember from then on."""
    recipe = toys.recipe(name, "optimization.clip_norm=1")
    objective = build(recipe)
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    batch = sampling.collate([sampling(toys.Noise().read(index), 0, index) for index in range(8)]).to("cuda")
    objective.cuda().fit([batch])
    optimizer = make_optimizer(objective, recipe.optimization, objective.depth_of)
    guard, meters = Guard(batch.index.device, 0), Meters(None, batch.index.device)
    try:
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            objective.on_step_start(Progress(1, 10, 5))
            losses = objective(batch, objective.count(batch))
            losses["loss"].backward()
            grad_norm = clip(objective, 1.0)
            meters.add(
                {k: v.detach() for k, v in losses.items()}, grad_norm, guard.judge(losses["loss"], grad_norm, optimizer)
            )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            objective.on_step_end(Progress(1, 10, 5))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_cuda_in_bfloat16_learns(tmp_path: Path, compiled: bool) -> None:
    recipe = toys.recipe("mae-micro", "precision=bfloat16", "epochs=8", "optimization.warmup_epochs=0")
    run = Run(out=tmp_path, device="cuda", workers=1, log_every=1, compile=compiled)
    assert train_recipe(recipe, "shapes:size=16,train=40,val=20", run, quiet=True).status == "done"
    values = losses(tmp_path)
    assert sum(values[-6:]) < sum(values[:6])
