"""Laws of random numbers by address."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from unimim.address import rng, uniform

addresses = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)
indices = st.lists(st.integers(0, 2**62), min_size=1, max_size=8)


@given(addresses)
def test_a_generator_is_a_function_of_its_address(address: list[int]) -> None:
    assert np.array_equal(rng(*address).random(8), rng(*address).random(8))


@given(addresses, st.data())
def test_generators_of_different_addresses_differ(address: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(address) - 1))
    other = [*address]
    other[place] += data.draw(st.integers(1, 100))
    assert not np.array_equal(rng(*address).random(4), rng(*other).random(4))
    index = torch.arange(4)
    assert not torch.equal(uniform(index, 4, *address), uniform(index, 4, *other))


@given(indices, st.integers(1, 20), addresses)
def test_a_row_does_not_depend_on_the_batch_around_it(index: list[int], count: int, address: list[int]) -> None:
    rows = uniform(torch.tensor(index), count, *address)
    assert rows.shape == (len(index), count)
    assert rows.dtype == torch.float32
    assert ((rows >= 0) & (rows < 1)).all()
    assert torch.equal(uniform(torch.tensor(index[::-1]), count, *address), rows.flip(0))
    assert torch.equal(uniform(torch.tensor(index[:1]), count, *address), rows[:1])
    assert torch.equal(uniform(torch.tensor(index), count + 3, *address)[:, :count], rows)


def test_uniform_is_uniform_along_rows_columns_and_addresses() -> None:
    """Means within five standard errors of 1/2, and a chi-square of 64 bins within five deviations of 63."""
    for x in (
        uniform(torch.arange(500), 500, 3),
        torch.stack([uniform(torch.tensor([7]), 500, s)[0] for s in range(500)]),
    ):
        x = x.double()
        for axis in (0, 1):
            assert (x.mean(axis) - 0.5).abs().max() < 5 / (12 * 500) ** 0.5
        counts = torch.histc(x, 64, 0, 1)
        expected = x.numel() / 64
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 63) < 5 * (2 * 63) ** 0.5
        shifted = (x[:, 1:] - 0.5) * (x[:, :-1] - 0.5)
        assert abs(float(shifted.mean())) < 5 / 12 / x.numel() ** 0.5
