"""Laws of masks' index forms and of reading tokens at grid positions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimim import Encoded, Mask
from unimim.types import gather, scatter

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 12)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orders(batch: int, count: int, seed: int) -> Tensor:
    """(B, count): a permutation of [0, count) in each row."""
    return noise(batch, count, seed=seed).argsort(1)


@given(st.integers(1, 4), st.integers(1, 300), st.floats(0, 1), seeds)
def test_index_forms_are_ascending_complementary_and_valid_where_they_say(
    b: int, n: int, ratio: float, seed: int
) -> None:
    hidden = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) < ratio
    mask = Mask.from_hidden(hidden)
    for row in range(b):
        parts = []
        for index, valid in ((mask.hidden_index, mask.hidden_valid), (mask.visible_index, mask.visible_valid)):
            own = index[row] if valid is None else index[row][valid[row]]
            assert own.tolist() == sorted(own.tolist())
            parts.append(own)
        assert hidden[row, parts[0]].all()
        assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert mask.hidden_index.shape[1] == hidden.sum(1).max()
    assert mask.visible_index.shape[1] == (~hidden).sum(1).max()
    assert mask.hidden_index.dtype == mask.visible_index.dtype == torch.int64


@given(st.integers(1, 4), sizes, st.data())
def test_a_promised_count_gives_the_same_indices_as_counting(b: int, n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    hidden = orders(b, n, data.draw(seeds)) < count
    counted, promised = Mask.from_hidden(hidden), Mask.from_hidden(hidden, count)
    assert torch.equal(counted.hidden_index, promised.hidden_index)
    assert torch.equal(counted.visible_index, promised.visible_index)
    assert counted.hidden_valid is promised.hidden_valid is None


@given(st.integers(1, 4), sizes, st.integers(1, 5), seeds)
def test_gather_is_indexing_row_by_row(b: int, n: int, d: int, seed: int) -> None:
    x, index = noise(b, n, d, seed=seed), orders(b, n, seed + 1)[:, : (n + 1) // 2]
    assert torch.equal(gather(x, index), torch.stack([row[where] for row, where in zip(x, index, strict=True)]))


@given(st.integers(1, 4), sizes, st.integers(1, 5), seeds)
def test_scatter_then_gather_is_the_identity_and_the_rest_is_base(b: int, n: int, d: int, seed: int) -> None:
    count = (n + 1) // 2
    order = orders(b, n, seed)
    index, rest = order[:, :count], order[:, count:]
    x, base = noise(b, count, d, seed=seed + 1), noise(b, n, d, seed=seed + 2)
    spread = scatter(x, index, base)
    assert torch.equal(gather(spread, index), x)
    assert torch.equal(gather(spread, rest), gather(base, rest))


@given(st.integers(1, 4), sizes, st.integers(1, 5), seeds)
def test_a_sparse_encoding_answers_as_the_dense_one_it_was_cut_from(b: int, n: int, d: int, seed: int) -> None:
    dense, prefix = noise(b, n, d, seed=seed), torch.zeros(b, 0, d)
    kept = orders(b, n, seed + 1)[:, : (n + 1) // 2].sort(1).values
    asked = gather(kept, orders(b, kept.shape[1], seed + 2))
    sparse = Encoded(gather(dense, kept), prefix, (1, n), kept)
    assert torch.equal(sparse.at(asked), Encoded(dense, prefix, (1, n)).at(asked))
