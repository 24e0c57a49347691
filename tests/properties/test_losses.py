"""Laws of the losses, on random shapes and values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimim import TargetSpec
from unimim.losses import L1, L2, Cosine, CrossEntropy, InfoNCE, SmoothL1, Sum, Variance

seeds = st.integers(0, 2**31)
counts = st.integers(1, 5)
dims = st.integers(2, 9)
scales = st.sampled_from([0.01, 0.5, 1.0, 7.0, 100.0])


def build(kind: type[Any], dim: int = 4, **fields: Any) -> Any:
    return kind.Config(**fields).build(TargetSpec(dim, kind is CrossEntropy))


def pair(b: int, m: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    both = torch.randn(2, b, m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return both[0], both[1]


DISTANCES = [build(L1), build(L2), build(SmoothL1), build(SmoothL1, beta=0.05), build(Cosine)]


@given(st.sampled_from(DISTANCES), counts, counts, dims, seeds)
def test_a_distance_is_zero_at_equality_positive_elsewhere_and_symmetric(
    loss: Any, b: int, m: int, d: int, seed: int
) -> None:
    x, y = pair(b, m, d, seed)
    assert loss(x, x).abs().max() < 1e-12
    assert (loss(x, y) > 0).all()
    torch.testing.assert_close(loss(x, y), loss(y, x), rtol=1e-12, atol=1e-12)


@given(st.sampled_from(DISTANCES), counts, counts, dims, seeds)
def test_queries_are_independent(loss: Any, b: int, m: int, d: int, seed: int) -> None:
    x, y = pair(b, m, d, seed)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    whole = loss(x, y)
    assert whole.shape == (b, m)
    torch.testing.assert_close(loss(x[:, order], y[:, order]), whole[:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss(x[:1, :1], y[:1, :1]), whole[:1, :1], rtol=1e-12, atol=1e-12)


@given(st.sampled_from([(L1, 1), (L2, 2), (Cosine, 0)]), counts, dims, seeds, scales)
def test_degree_of_homogeneity(case: tuple[type[Any], int], m: int, d: int, seed: int, scale: float) -> None:
    (kind, degree), (x, y) = case, pair(1, m, d, seed)
    loss = build(kind)
    torch.testing.assert_close(loss(scale * x, scale * y), scale**degree * loss(x, y), rtol=1e-9, atol=1e-9)


@given(counts, dims, seeds, scales)
def test_cosine_does_not_see_the_length_of_either_side(m: int, d: int, seed: int, scale: float) -> None:
    x, y = pair(1, m, d, seed)
    torch.testing.assert_close(build(Cosine)(scale * x, y), build(Cosine)(x, y), rtol=1e-9, atol=1e-9)
    assert (build(Cosine)(x, y) <= 2 + 1e-12).all()
    torch.testing.assert_close(build(Cosine)(x, -x), torch.full((1, m), 2.0, dtype=torch.float64))


@given(counts, dims, seeds, st.floats(0.01, 10))
def test_smooth_l1_is_l2_over_two_beta_inside_and_l1_minus_half_beta_outside(
    m: int, d: int, seed: int, beta: float
) -> None:
    x, y = pair(1, m, d, seed)
    loss, step = build(SmoothL1, beta=beta), (y - x).sign()
    near, far = x + 0.9 * beta * (y - x) / (y - x).abs().max(), y + beta * step
    torch.testing.assert_close(loss(near, x), build(L2)(near, x) / (2 * beta), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss(far, x), build(L1)(far, x) - beta / 2, rtol=1e-9, atol=1e-12)


@given(counts, dims, seeds)
def test_cross_entropy_is_minus_the_log_probability_of_the_id(m: int, d: int, seed: int) -> None:
    logits, noise = pair(2, m, d, seed)
    ids = noise.argmax(-1)
    loss = build(CrossEntropy, d)
    assert loss.out_dim == d
    probability = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -probability.log().gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss(logits, ids), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss(logits + 5, ids), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss(0 * logits, ids), torch.full((2, m), math.log(d), dtype=torch.float64))


@given(st.integers(2, 6), dims, seeds, st.floats(0.1, 3))
def test_variance_is_the_hinge_of_the_unbiased_deviation_over_valid_queries(
    m: int, d: int, seed: int, margin: float
) -> None:
    x, y = pair(2, m, d, seed)
    loss = build(Variance, margin=margin)
    deviation = (x.flatten(0, 1).var(0) + 1e-6).sqrt()
    expected = (margin - deviation).clamp_min(0).mean()
    torch.testing.assert_close(loss(x, y), expected.expand(2, m), rtol=1e-9, atol=1e-9)
    valid = torch.ones(2, m, dtype=torch.bool)
    valid[1, 1:] = False
    kept = torch.cat([x[0], x[1, :1]])
    torch.testing.assert_close(
        loss(x, y, valid)[0, 0], (margin - (kept.var(0) + 1e-6).sqrt()).clamp_min(0).mean(), rtol=1e-9, atol=1e-9
    )
    assert loss(torch.ones_like(x), y)[0, 0] == pytest.approx(margin - 1e-3)


@given(counts, counts, dims, seeds, st.floats(0.05, 5))
def test_info_nce_is_the_cross_entropy_of_finding_ones_own_key(
    b: int, m: int, d: int, seed: int, temperature: float
) -> None:
    x, y = (torch.nn.functional.normalize(part, dim=-1) for part in pair(b, m, d, seed))
    within = torch.nn.functional.cross_entropy(
        (x @ y.mT / temperature).flatten(0, 1), torch.arange(m).repeat(b), reduction="none"
    )
    flat = x.flatten(0, 1) @ y.flatten(0, 1).T / temperature
    across = torch.nn.functional.cross_entropy(flat, torch.arange(b * m), reduction="none")
    for negatives, expected in (("image", within), ("world", across)):
        loss = build(InfoNCE, d, temperature=temperature, negatives=negatives)
        torch.testing.assert_close(loss(x, y), expected.view(b, m), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(loss(3 * x, 0.5 * y), loss(x, y), rtol=1e-9, atol=1e-9)
        same = loss(x, x[:1, :1].expand(b, m, d))
        torch.testing.assert_close(
            same, torch.full((b, m), math.log(m if negatives == "image" else b * m), dtype=torch.float64)
        )


@given(counts, st.integers(2, 5), dims, seeds)
def test_info_nce_takes_all_patches_of_the_image_for_keys(b: int, n: int, d: int, seed: int) -> None:
    x, y = pair(b, n, d, seed)
    loss = build(InfoNCE, d)
    torch.testing.assert_close(loss(x[:, 1:], y[:, 1:], keys=y), loss(x, y)[:, 1:], rtol=1e-9, atol=1e-9)
    assert (loss(x[:, 1:], y[:, 1:], keys=y) > loss(x[:, 1:], y[:, 1:])).all(), "one more negative costs more"


@given(counts, dims, seeds, st.sampled_from(["image", "world"]))
def test_info_nce_leaves_padded_queries_out(m: int, d: int, seed: int, negatives: str) -> None:
    x, y = pair(2, m + 2, d, seed)
    valid = torch.arange(m + 2).expand(2, -1) < m
    loss = build(InfoNCE, d, negatives=negatives)
    torch.testing.assert_close(loss(x, y, valid)[:, :m], loss(x[:, :m], y[:, :m]), rtol=1e-9, atol=1e-9)


@given(counts, dims, seeds, st.floats(0.1, 10))
def test_sum_is_the_weighted_sum_of_its_parts(m: int, d: int, seed: int, weight: float) -> None:
    x, y = pair(2, m, d, seed)
    both = build(Sum, losses=[{"loss": "l1"}, {"loss": "cosine", "weight": weight}])
    torch.testing.assert_close(both(x, y), build(L1)(x, y) + weight * build(Cosine)(x, y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        *DISTANCES,
        build(Variance, margin=3.0),
        build(InfoNCE),
        build(InfoNCE, negatives="world", temperature=0.7),
        build(Sum, losses=[{"loss": "l2"}, {"loss": {"name": "variance", "margin": 3.0}, "weight": 0.3}]),
    ],
    ids=lambda loss: loss.config.label,
)
def test_gradients_agree_with_differences(loss: Any) -> None:
    x, y = pair(2, 3, 4, 1)
    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), y))


def test_cross_entropy_gradient_agrees_with_differences() -> None:
    logits, _ = pair(2, 3, 4, 1)
    ids = torch.tensor([[0, 3, 1], [2, 2, 0]])
    assert torch.autograd.gradcheck(build(CrossEntropy), (logits.requires_grad_(), ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [*DISTANCES, build(Variance), build(InfoNCE)], ids=lambda loss: loss.config.label)
def test_precision_is_kept(loss: Any, dtype: torch.dtype) -> None:
    x, y = pair(2, 3, 4, 1)
    assert loss(x.to(dtype), y.to(dtype)).dtype == dtype


def test_a_zero_vector_has_no_direction_but_a_finite_cosine_gradient() -> None:
    x = torch.zeros(1, 2, 4, requires_grad=True)
    build(Cosine)(x, torch.ones(1, 2, 4)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
