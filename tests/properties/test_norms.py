"""Laws of the normalizations, on random shapes and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimim.norms import L2, Batch, Chain, Identity, Instance, Layer

seeds = st.integers(0, 2**31)
batches = st.integers(1, 4)
tokens = st.integers(2, 8)
dims = st.integers(2, 9)
scales = st.floats(0.1, 50)
shifts = st.floats(-20, 20)


def build(kind: type[Any], **fields: Any) -> Any:
    return kind.Config(**fields).build()


def noise(b: int, n: int, d: int, seed: int) -> Tensor:
    """Values whose deviation over any axis is at least 1 / 4, so that eps cannot dominate."""
    steps = torch.arange(b * n * d, dtype=torch.float64).view(b, n, d)
    generator = torch.Generator().manual_seed(seed)
    jitter = 0.1 * torch.rand(b, n, d, generator=generator, dtype=torch.float64)
    return steps[:, torch.randperm(n, generator=generator)] + jitter


LAYERS = [
    build(Layer),
    build(Layer, unbiased=True, eps=1e-6),
    build(Layer, eps_place="outside"),
    build(Layer, unbiased=True, eps_place="outside"),
]
STANDARDIZING = [(norm, (2,)) for norm in LAYERS] + [(build(Instance), (1,)), (build(Batch), (0, 1))]
"""Each norm and the axes it takes its statistics over."""
ALL = [norm for norm, _ in STANDARDIZING] + [build(Identity), build(L2), build(Chain, norms=["instance", "l2"])]


@given(st.sampled_from(STANDARDIZING), batches, tokens, dims, seeds)
def test_standardizing_gives_mean_0_and_variance_1_over_its_axes(
    case: tuple[Any, tuple[int, ...]], b: int, n: int, d: int, seed: int
) -> None:
    norm, axes = case
    x = noise(b, n, d, seed)
    out = norm(x)
    torch.testing.assert_close(out.mean(axes), torch.zeros_like(out.mean(axes)), rtol=0, atol=1e-7)
    count = torch.Size(x.shape[axis] for axis in axes).numel()
    variance = out.var(axes, correction=int(getattr(norm.config, "unbiased", False)))
    assert count > 1
    # var / (var + eps) <= variance <= 1, and var >= 1/16
    assert (variance < 1 + 1e-9).all()
    assert (variance > 1 - 2 * norm.config.eps * 16).all()


@given(st.sampled_from(STANDARDIZING), batches, tokens, dims, seeds, scales, shifts)
def test_standardizing_forgets_scale_and_shift_up_to_eps(
    case: tuple[Any, tuple[int, ...]], b: int, n: int, d: int, seed: int, scale: float, shift: float
) -> None:
    """With eps inside, N(a x) / N(x) = sqrt((v + eps) / (v + eps / a^2)), so they differ by at most eps (1 + 1/a^2) / v."""
    norm, axes = case
    x = noise(b, n, d, seed)
    variance = x.var(axes, correction=0, keepdim=True).min()
    slack = 2 * norm.config.eps * (1 + scale**-2 + scale**-1) / min(float(variance), float(variance) ** 0.5)
    torch.testing.assert_close(norm(scale * x + shift), norm(x), rtol=slack + 1e-9, atol=1e-9)


@given(st.sampled_from(STANDARDIZING), batches, tokens, dims, seeds)
def test_standardizing_twice_changes_nothing_but_eps(
    case: tuple[Any, tuple[int, ...]], b: int, n: int, d: int, seed: int
) -> None:
    norm, _ = case
    once = norm(noise(b, n, d, seed))
    torch.testing.assert_close(norm(once), once, rtol=4 * norm.config.eps, atol=1e-7)


@given(batches, tokens, dims, seeds)
def test_unbiased_is_biased_times_sqrt_of_n_minus_1_over_n(b: int, n: int, d: int, seed: int) -> None:
    x, tiny = noise(b, n, d, seed), 1e-12
    biased, unbiased = build(Layer, eps=tiny)(x), build(Layer, eps=tiny, unbiased=True)(x)
    torch.testing.assert_close(unbiased, biased * ((d - 1) / d) ** 0.5, rtol=1e-9, atol=1e-9)


@given(batches, tokens, dims, seeds, st.floats(1e-7, 10))
def test_the_default_layer_is_torch_layer_norm_and_eps_stands_where_it_says(
    b: int, n: int, d: int, seed: int, eps: float
) -> None:
    x = noise(b, n, d, seed)
    torch.testing.assert_close(build(Layer, eps=eps)(x), F.layer_norm(x, (d,), eps=eps))
    centered, variance = x - x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
    inside, outside = (build(Layer, eps=eps, unbiased=True, eps_place=place)(x) for place in ("inside", "outside"))
    torch.testing.assert_close(inside, centered / (variance + eps).sqrt())
    torch.testing.assert_close(outside, centered / (variance.sqrt() + eps))


@given(batches, tokens, dims, seeds)
def test_instance_and_batch_are_torch_normalizations_without_parameters(b: int, n: int, d: int, seed: int) -> None:
    x = noise(b, n, d, seed)
    channels_first = x.mT
    torch.testing.assert_close(build(Instance)(x).mT, F.instance_norm(channels_first))
    torch.testing.assert_close(build(Batch)(x).mT, F.batch_norm(channels_first, None, None, training=True))


@given(batches, tokens, dims, seeds)
def test_what_a_norm_mixes(b: int, n: int, d: int, seed: int) -> None:
    """layer and l2 act token by token, instance image by image, batch over all; each is equivariant along the rest."""
    x = noise(b, n, d, seed)
    for norm in [*LAYERS, build(L2)]:
        torch.testing.assert_close(norm(x)[:, :1], norm(x[:, :1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(build(Instance)(x)[:1], build(Instance)(x[:1]), rtol=1e-12, atol=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for norm in ALL:
        torch.testing.assert_close(norm(x[:, order]), norm(x)[:, order], rtol=1e-9, atol=1e-9)


@given(batches, tokens, dims, seeds, scales)
def test_l2_gives_unit_length_whatever_the_scale_and_twice_is_once(
    b: int, n: int, d: int, seed: int, scale: float
) -> None:
    x, norm = noise(b, n, d, seed) + 1, build(L2)
    torch.testing.assert_close(norm(x).norm(dim=-1), torch.ones(b, n, dtype=torch.float64))
    torch.testing.assert_close(norm(scale * x), norm(x))
    torch.testing.assert_close(norm(norm(x)), norm(x))


@given(batches, tokens, dims, seeds)
def test_a_chain_is_the_composition_in_order(b: int, n: int, d: int, seed: int) -> None:
    x = noise(b, n, d, seed)
    chain = build(Chain, norms=["instance", {"name": "layer", "unbiased": True}, "l2"])
    assert torch.equal(chain(x), build(L2)(build(Layer, unbiased=True)(build(Instance)(x))))
    assert torch.equal(build(Chain, norms=["identity"])(x), x)


@pytest.mark.parametrize("norm", ALL, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_constant_tokens_have_finite_values_and_gradients(norm: Any, value: float) -> None:
    x = torch.full((2, 3, 4), value, requires_grad=True)
    out = norm(x)
    (out * torch.arange(24.0).view(2, 3, 4)).sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("norm", [norm for norm, _ in STANDARDIZING], ids=str)
def test_a_constant_token_becomes_exactly_zero(norm: Any) -> None:
    assert not norm(torch.full((2, 3, 4), 2.5)).any()


@pytest.mark.parametrize("norm", ALL, ids=str)
def test_gradients_agree_with_differences(norm: Any) -> None:
    assert torch.autograd.gradcheck(norm, noise(2, 3, 4, 1).requires_grad_())


@pytest.mark.parametrize("norm", ALL, ids=str)
def test_float32_stays_float32(norm: Any) -> None:
    x = noise(2, 3, 4, 1)
    assert norm(x.float()).dtype == torch.float32
    torch.testing.assert_close(norm(x.float()), norm(x).float(), rtol=1e-4, atol=1e-4)
