"""BatchNorm of tokens: torch's numbers on one process, and one process's numbers on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.distributed.worker import together
from unimim.engine.distributed import process_group
from unimim.engine.run import Run
from unimim.layers import BatchNorm
from unimim.world import rank, world_size


def made(**options: bool) -> BatchNorm:
    norm = BatchNorm(5, **options)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 1.5, 5))
            norm.bias.copy_(torch.linspace(-1, 1, 5))
    return norm


def tokens() -> Tensor:
    return 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("affine", [True, False])
def test_it_is_torchs_over_all_tokens_in_both_modes(affine: bool) -> None:
    ours, theirs = made(affine=affine), torch.nn.BatchNorm1d(5, affine=affine)
    theirs.load_state_dict({**theirs.state_dict(), **ours.state_dict()})
    x = tokens()
    assert_close(ours(x), theirs(x.flatten(0, 1)).view(x.shape))
    for name in ("running_mean", "running_var"):
        assert_close(ours.get_buffer(name), theirs.get_buffer(name))
    assert_close(ours.eval()(x), theirs.eval()(x.flatten(0, 1)).view(x.shape))


def test_half_precision_is_normalized_in_float32_and_comes_back() -> None:
    x = tokens().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = made()(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, made()(x.float()).bfloat16())


def share(norm: BatchNorm, x: Tensor) -> dict[str, Tensor]:
    """This process's part of the batch: what it becomes, the gradients of a loss of all of it, the running statistics."""
    x = x.chunk(world_size())[rank()].clone().requires_grad_()
    y = norm(x)
    (y * torch.arange(y.numel()).view(y.shape).sin()).sum().backward()
    assert x.grad is not None
    statistics = {name: norm.get_buffer(name) for name in ("running_mean", "running_var")}
    return {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad} | statistics


def main(folder: str) -> None:
    with process_group(Run(out=Path(folder), device="cpu")):
        torch.save(share(made(world=True), torch.cat([tokens(), tokens().flip(0)])), f"{folder}/{rank()}.pt")


@pytest.mark.slow
def test_two_processes_have_the_statistics_and_gradients_of_one(tmp_path: Path) -> None:
    together(main, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2))
    norm, x = made(world=True), torch.cat([tokens(), tokens().flip(0)]).requires_grad_()
    y = norm(x)
    weights = torch.arange(y.numel() // 2).view(4, 6, 5).sin().repeat(2, 1, 1)
    (y * weights).sum().backward()
    assert_close(torch.cat([first["y"], second["y"]]), y.detach())
    assert_close(torch.cat([first["x"], second["x"]]), x.grad, rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias"):
        assert_close(first[name] + second[name], norm.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var"):
        assert_close(first[name], norm.get_buffer(name))
        assert_close(second[name], norm.get_buffer(name))
