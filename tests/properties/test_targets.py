"""Rounding a target twice is rounding it once, and a row of bytes gives back what was rounded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from unimim import Target
from unimim.targets import Layout, decode, encode, rounded

PRECISIONS = ("float32", "bfloat16", "int8")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = arrays("float32", array_shapes(min_dims=3, max_dims=3, max_side=5), elements=FLOATS).map(torch.from_numpy)


def same(one: Target, two: Target) -> bool:
    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None:
            return x is y
        return x.dtype == y.dtype and x.shape == y.shape and bool(torch.equal(x.nan_to_num(7), y.nan_to_num(7)))

    return all(equal(value, vars(two)[name]) for name, value in vars(one).items())


@given(VECTORS, st.sampled_from(PRECISIONS), st.booleans())
def test_rounding_is_idempotent_and_survives_as_bytes(tokens: Tensor, precision: Any, more: bool) -> None:
    target = rounded(Target(tokens, tokens[:, :1] if more else None, tokens[..., 0] if more else None), precision)
    assert same(rounded(target, precision), target)
    layout = Layout.of(target, precision, None)
    rows = layout.pack(target)
    assert rows.shape == (len(tokens), layout.num_bytes)
    assert same(layout.unpack(rows), target)


@given(VECTORS)
def test_int8_is_off_by_half_a_level_of_the_vector(x: Tensor) -> None:
    largest = x.abs().amax(-1, keepdim=True).double()
    error = (decode(encode(x, "int8")).double() - x.double()).abs()
    tiny = torch.finfo(torch.float32).smallest_normal
    assert (error <= largest / 254 * (1 + 1e-5) + tiny * 2**-23).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_stays_zero_and_what_is_no_number_is_not_hidden(precision: Any) -> None:
    x = torch.tensor([[[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [2.0, -1.0]]])
    y = rounded(Target(x), precision).tokens
    assert y[0, 0].tolist() == [0, 0]
    assert y.isfinite().all(-1).tolist() == [[True, False, False, True]]
    if precision != "int8":
        assert y[0, 2:].float().equal(x[0, 2:])
        assert y[0, 1].isnan().tolist() == [True, False]
    layout = Layout.of(Target(x), precision, None)
    assert same(layout.unpack(layout.pack(Target(x))), Target(y))


@given(st.sampled_from([2, 256, 257, 2**15, 2**15 + 1, 2**20]), st.data())
def test_ids_are_exact_in_the_fewest_bytes(vocabulary: int, data: Any) -> None:
    ids = st.integers(0, vocabulary - 1)
    tokens = torch.tensor(data.draw(st.lists(st.lists(ids, min_size=3, max_size=3), min_size=1, max_size=3)))
    target = rounded(Target(tokens), "int8")
    layout = Layout.of(target, "int8", vocabulary)
    assert layout.num_bytes == 3 * (1 if vocabulary <= 256 else 2 if vocabulary <= 2**15 else 4)
    assert same(layout.unpack(layout.pack(target)), Target(tokens))
