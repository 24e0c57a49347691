"""The contract of a head, and which token may change which prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from unimim_milan.prompting_decoder import PromptingDecoder

from unimim import Encoded, Query, load, plugins, testing

DROP = {**testing.TOY, "masking": "drop", "positions": "sincos"}
HEAD = {"name": "prompting_decoder", "dim": 16, "depth": 2, "num_heads": 4}
NUM_TOKENS, NUM_KEPT = 24, 6


def make(seed: int = 0, **config: Any) -> Any:
    """The head with moved weights, so that nothing is zero."""
    torch.manual_seed(seed)
    student = (
        plugins()["students"]["vit"].Config(**{key: value for key, value in DROP.items() if key != "name"}).build()
    )
    head = PromptingDecoder.Config(**{**HEAD, **config}).build(student, 5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head.eval()


def encoded(seed: int = 0) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    index = torch.rand(2, NUM_TOKENS, generator=draw).argsort(1)[:, :NUM_KEPT].sort(1).values
    return Encoded(torch.randn(2, NUM_KEPT, 16, generator=draw), torch.randn(2, 1, 16, generator=draw), (4, 6), index)


def everywhere(include_class: bool = True) -> Query:
    return Query(torch.arange(NUM_TOKENS).expand(2, -1), include_class=include_class)


@pytest.mark.parametrize("changes", [{}, {"depth": 1, "mlp_ratio": 2.0, "eps": 1e-5}, {"dim": 8, "num_heads": 1}])
@pytest.mark.parametrize("student", [DROP, DROP | {"num_registers": 2}])
def test_keeps_the_contract_of_a_head(changes: dict[str, Any], student: dict[str, Any]) -> None:
    testing.check_head(HEAD | changes, student)


def test_predictions_have_length_one() -> None:
    assert_close(make()(encoded(), everywhere()).norm(dim=-1), torch.ones(2, NUM_TOKENS + 1))


def test_fixed_tokens_are_not_updated() -> None:
    head, given_tokens = make(), encoded()
    preds = head(given_tokens, everywhere())
    assert given_tokens.index is not None

    def read(x: Tensor) -> Tensor:
        return F.normalize(head.proj(head.norm(x)), dim=-1)

    assert_close(preds[:, :1], read(head.embed(given_tokens.prefix)))
    visible = head.embed(given_tokens.tokens) + head.positions[given_tokens.index]
    assert_close(preds[:, 1:].gather(1, given_tokens.index[..., None].expand(-1, -1, 5)), read(visible))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(row=st.integers(0, NUM_KEPT - 1), seed=st.integers(0, 5))
def test_a_visible_token_changes_its_own_prediction_and_the_hidden_ones(row: int, seed: int) -> None:
    head, before = make(), encoded(seed)
    assert before.index is not None
    tokens = before.tokens.clone()
    tokens[:, row] += 1
    after = Encoded(tokens, before.prefix, before.grid, before.index)
    moved = (head(before, everywhere(False)) - head(after, everywhere(False))).abs().amax(-1) > 0
    expected = torch.ones(2, NUM_TOKENS, dtype=torch.bool).scatter(1, before.index, False)
    expected.scatter_(1, before.index[:, row : row + 1], True)
    assert moved.equal(expected)


def test_the_order_of_the_visible_tokens_does_not_matter() -> None:
    head, given_tokens = make(), encoded()
    assert given_tokens.index is not None
    turned = Encoded(given_tokens.tokens.flip(1), given_tokens.prefix, (4, 6), given_tokens.index.flip(1))
    assert_close(head(turned, everywhere()), head(given_tokens, everywhere()), rtol=0, atol=1e-6)


def test_hidden_tokens_differ_by_their_position_alone() -> None:
    head, given_tokens = make(), encoded()
    head.positions.zero_()
    hidden = torch.ones(2, NUM_TOKENS, dtype=torch.bool).scatter(1, given_tokens.index, False)  # type: ignore[arg-type]
    preds = head(given_tokens, everywhere(False))[hidden].view(2, NUM_TOKENS - NUM_KEPT, 5)
    assert_close(preds, preds[:, :1].expand_as(preds), rtol=0, atol=1e-6)


def test_nothing_hidden_leaves_a_norm_and_a_projection() -> None:
    head = make()
    tokens, prefix = torch.randn(2, NUM_TOKENS, 16), torch.randn(2, 1, 16)
    preds = head(Encoded(tokens, prefix, (4, 6)), everywhere(False))
    assert_close(preds, F.normalize(head.proj(head.norm(head.embed(tokens) + head.positions)), dim=-1))


def test_nothing_is_read_back_from_the_device() -> None:
    """Tensors without data: a value that is read, or a shape that depends on one, raises."""
    head, known = make().to("meta"), encoded()
    shapes = Encoded(known.tokens.to("meta"), known.prefix.to("meta"), (4, 6), known.index.to("meta"))  # type: ignore[union-attr]
    query = Query(torch.arange(NUM_TOKENS, device="meta").expand(2, -1), include_class=True)
    assert head(shapes, query).shape == (2, NUM_TOKENS + 1, 5)


def test_predictions_are_float32_under_autocast() -> None:
    head = make()
    exact = head(encoded(), everywhere())
    with torch.autocast("cpu", torch.bfloat16):
        short = head(encoded(), everywhere())
    assert short.dtype == torch.float32
    assert_close(short, exact, rtol=0, atol=0.05)
    assert_close(short.norm(dim=-1), torch.ones(2, NUM_TOKENS + 1))


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="student 'vit' has its own there; use masking: drop"):
        PromptingDecoder.Config().build(plugins()["students"]["vit"].Config(size="micro").build(), 5)
    with pytest.raises(ValueError, match="dim 18 must divide into num_heads 4"):
        load("milan-micro", ["head.dim=18"])
