"""Contracts, and laws of the parts: which token may change which prediction, what is hidden and what it counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from unimim_bootmae.decoder import InjectedDecoder
from unimim_bootmae.mask import RolledBlock

from unimim import Batch, Encoded, Objective, Query, Sampling, Tap, TargetSpec, View, load, plugins, testing

DROP = {**testing.TOY, "masking": "drop", "positions": "sincos_row", "qkv_bias": "qv"}
HEAD = {"name": "injected_decoder", "inject": 1, "dim": 16, "depth": 2, "num_heads": 3}
SMALL = ["student.dim=16", "student.depth=2", "student.num_heads=2", "student.image_size=32"]
SMALL += ["terms.features.teacher.layers=[1]"]
SMALL += [f"terms.features.head={HEAD}", f"terms.pixels.head={HEAD | {'inject': 0, 'dim': 12}}"]
SMALL += ["mask={name: rolled_block, min_block: 3, max_block: 5, roll: 1}"]
MASK = {"name": "rolled_block", "min_block": 4, "max_block": 20}
NUM_TOKENS, NUM_KEPT = 24, 6


def norm(**config: Any) -> Any:
    return plugins()["norms"]["layer_by_channel"].Config(**config).build()


def loss(dim: int = 8) -> Any:
    return plugins()["losses"]["layer_l2"].Config().build(TargetSpec(dim))


def make(student: dict[str, Any] = DROP, **config: Any) -> Any:
    """The head with moved weights, so that nothing is zero."""
    torch.manual_seed(0)
    fields = {key: value for key, value in student.items() if key != "name"}
    head = InjectedDecoder.Config(**{**HEAD, **config}).build(plugins()["students"]["vit"].Config(**fields).build(), 5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head.eval()


def encoded(seed: int = 0) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    index = torch.rand(2, NUM_TOKENS, generator=draw).argsort(1)[:, :NUM_KEPT].sort(1).values
    tokens, prefix = (torch.randn(2, count, 16, generator=draw) for count in (NUM_KEPT, 1))
    return Encoded(tokens, prefix, (4, 6), index, {Tap(1): torch.randn(2, 1 + NUM_KEPT, 16, generator=draw)})


def everywhere() -> Query:
    return Query(torch.arange(NUM_TOKENS).expand(2, -1))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_the_contract_of_a_norm(channels: int) -> None:
    testing.check_norm({"name": "layer_by_channel", "channels": channels})


@pytest.mark.parametrize("changes", [{}, {"depth": 1, "num_heads": 4, "mlp_ratio": 2.0}, {"inject": 0, "dim": 8}])
@pytest.mark.parametrize("student", [DROP, DROP | {"num_registers": 2}, testing.TOY])
def test_the_contract_of_a_head(changes: dict[str, Any], student: dict[str, Any]) -> None:
    testing.check_head(HEAD | changes, student)


@pytest.mark.parametrize("changes", [{}, {"roll": 0, "weighted": False}, {"ratio": 0.5, "blocks": 0.5}])
def test_the_contracts_of_loss_and_mask(changes: dict[str, Any]) -> None:
    testing.check_loss("layer_l2", distance=False)  # least where the normalized prediction is the target
    testing.check_mask(MASK | changes)
    testing.check_mask({"name": "rolled_block"} | changes, grids=[(14, 14), (12, 16)])


@pytest.mark.parametrize(
    "changes", [[], ["student.masking=replace"], ["mask.weighted=false"], ["terms.features.where=all"]]
)
def test_the_micro_recipe_trains(changes: list[str]) -> None:
    testing.check_recipe("bootmae-micro", [*SMALL, *changes])


def test_the_recipe_at_32_pixels_has_the_same_grid() -> None:
    recipe = load("bootmae-micro", ["student.image_size=32", "student.patch_size=4"])
    assert recipe.grid_of("main") == load("bootmae-micro").grid_of("main") == (8, 8)
    assert recipe.masks["main"].num_hidden((8, 8)) == 48


def test_row_of_the_table() -> None:
    for name in ("bootmae", "bootmae-large", "bootmae-micro"):
        assert [*load(name).axes().values()] == ["EMA & Pixel", "ViT", "Decoders", "LayerNorm", "l2"]


def test_only_the_base_size_rises_a_second_time() -> None:
    decays = {name: load(name).terms["features"].teacher.decay for name in ("bootmae", "bootmae-large")}  # type: ignore[attr-defined]
    at_end = {name: decay(0.999) for name, decay in decays.items()}
    assert at_end == {"bootmae": pytest.approx(0.99999), "bootmae-large": pytest.approx(0.9999)}


@settings(max_examples=30, deadline=None)
@given(channels=st.sampled_from([1, 3, 4]), pixels=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_norm_of_each_channel_of_each_patch(channels: int, pixels: int, seed: int) -> None:
    x = torch.randn(2, 3, pixels * channels, generator=torch.Generator().manual_seed(seed))
    out = norm(channels=channels)(x)
    patch = x.double().numpy().reshape(2, 3, pixels, channels)
    deviation = np.sqrt(patch.var(2, keepdims=True) + 1e-5)
    expected = (patch - patch.mean(2, keepdims=True)) / deviation
    lost = 4 * np.finfo(np.float32).eps * np.abs(patch).max(2, keepdims=True) / deviation  # pixels that nearly agree
    assert (np.abs(out.numpy().reshape(patch.shape) - expected) < lost + 1e-6).all()


def test_tokens_that_are_no_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens of 8 numbers are not pixels of 3 channels; use teacher pixel"):
        norm()(torch.zeros(1, 1, 8))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.25, 16), shift=st.floats(-4, 4), seed=st.integers(0, 99))
def test_scale_and_mean_of_a_prediction_do_not_matter(scale: float, shift: float, seed: int) -> None:
    pred, target = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)).unbind()
    assert_close(loss()(scale * pred + shift, target), loss()(pred, target), rtol=1e-3, atol=1e-4)


def test_known_losses() -> None:
    """A constant prediction costs the target's mean square, the target itself nothing, its negative four times that."""
    target = F.layer_norm(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)), (8,), eps=1e-6)
    square = target.square().mean(-1)
    assert_close(loss()(torch.full_like(target, 3.0), target), square)
    assert_close(loss()(target, target), torch.zeros(3, 5), rtol=0, atol=1e-10)
    assert_close(loss()(-target, target), 4 * square)


def test_each_token_stands_on_its_own_slot_and_visible_ones_without_a_position() -> None:
    """With the branches of all blocks at zero only placing, norm and projection are left."""
    head, given_tokens = make(), encoded()
    with torch.no_grad():
        for block in head.blocks:
            for part in (block.attn.proj, block.inject.attn.attn.proj, block.inject.mlp.fc2):
                part.weight.zero_()
                part.bias.zero_()
    expected = (head.mask_token + head.positions).expand(2, -1, -1).clone()
    for image, kept in enumerate(given_tokens.index):  # type: ignore[arg-type]
        expected[image, kept] = head.embed(given_tokens.tokens[image])
    assert_close(head(given_tokens, everywhere()), head.proj(head.norm(expected)), rtol=0, atol=1e-5)


def test_positions_are_row_first() -> None:
    """The first half of a code is the row's: equal along a row, different along a column."""
    code = make().positions.view(4, 6, 16)
    assert code[:, :1, :8].expand(-1, 6, -1).equal(code[..., :8])
    assert code[:1, :, 8:].expand(4, -1, -1).equal(code[..., 8:])
    assert not code[0, 0, :8].equal(code[1, 0, :8])


@settings(max_examples=8, deadline=None)
@given(row=st.integers(0, NUM_KEPT), seed=st.integers(0, 9))
def test_every_injected_token_changes_every_prediction(row: int, seed: int) -> None:
    head, before = make(), encoded(seed)
    moved = before.taps[Tap(1)].clone()
    moved[:, row] = moved[:, row].flip(-1)
    after = Encoded(before.tokens, before.prefix, before.grid, before.index, {Tap(1): moved})
    assert (head(before, everywhere()) != head(after, everywhere())).any(-1).all()


def test_the_order_of_injected_tokens_and_their_scale_do_not_matter() -> None:
    head, before = make(), encoded()
    turned = Encoded(before.tokens, before.prefix, (4, 6), before.index, {Tap(1): 8 * before.taps[Tap(1)].flip(1)})
    assert_close(head(turned, everywhere()), head(before, everywhere()), rtol=0, atol=1e-5)


def test_the_published_pixel_decoder_is_narrower_inside() -> None:
    """12 heads of 42 numbers, as in the released file; and start values as wide as the official matrices'."""
    config = load("bootmae").terms["pixels"].head
    with torch.device("meta"):
        student = load("bootmae").student.build()
        state = config.build(student, 768).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if ".0." in name and "attn" in name}
    assert shapes["blocks.0.attn.q.weight"] == shapes["blocks.0.attn.k.weight"] == (504, 512)
    assert shapes["blocks.0.inject.attn.attn.k.weight"] == (504, 768)
    assert shapes["blocks.0.inject.attn.attn.proj.weight"] == (512, 504)
    fields = {key: value for key, value in DROP.items() if key != "name"}
    fresh: Any = InjectedDecoder.Config(dim=256).build(plugins()["students"]["vit"].Config(**fields).build(), 5)
    block = fresh.blocks[0]
    inner = 256 // 12 * 12
    for weight, bound in (
        (block.attn.k.weight, (6 / (inner + 256)) ** 0.5),
        (block.inject.attn.attn.v.weight, (6 / (2 * inner + 16)) ** 0.5),
    ):
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.sampled_from([(8, 8), (14, 14), (4, 12), (6, 9)]),
    roll=st.integers(0, 3),
    blocks=st.sampled_from([0.25, 0.5, 0.6125]),
    seed=st.integers(0, 2**16),
)
def test_so_many_are_hidden_and_all_blocks_but_the_rolled_ones(
    grid: tuple[int, int], roll: int, blocks: float, seed: int
) -> None:
    config = RolledBlock.Config(blocks=blocks, min_block=3, max_block=12, roll=roll)
    sampler: Any = config.build()
    drawn, hidden = (draw(grid, np.random.default_rng(seed)) for draw in (sampler.draw_blocks, sampler.sample))
    num_tokens = grid[0] * grid[1]
    assert drawn.sum() == config.num_block(grid) == int(num_tokens * blocks)
    assert hidden.sum() == config.num_hidden(grid) == num_tokens - num_tokens // 4
    assert 0 <= (drawn & ~hidden[0]).sum() <= roll


def test_as_many_patches_of_the_blocks_are_shown_as_officially() -> None:
    """Of 120, r = 0 to 3, each as often."""
    sampler: Any = RolledBlock.Config().build()
    shown = []
    for seed in range(1000):
        drawn, hidden = (draw((14, 14), np.random.default_rng(seed)) for draw in (sampler.draw_blocks, sampler.sample))
        shown.append(int((drawn & ~hidden[0]).sum()))
    counts = np.bincount(shown)
    assert len(counts) == 4
    assert np.abs(counts - 250).max() <= 5 * (1000 * 0.25 * 0.75) ** 0.5


@settings(max_examples=30, deadline=None)
@given(grid=st.sampled_from([(2, 3), (5, 4), (14, 14)]), share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_weights_are_an_average_pool(grid: tuple[int, int], share: float, seed: int) -> None:
    hidden = np.random.default_rng(seed).random((2, grid[0] * grid[1])) < share
    weight = torch.from_numpy(RolledBlock.Config().build().weight(hidden, grid))
    m = torch.from_numpy(hidden).float().view(2, 1, *grid)
    official = (m * F.avg_pool2d(m, 3, 1, 1) + m).flatten(1)
    assert weight.dtype == torch.float32
    assert_close(weight * m.flatten(1), official, rtol=0, atol=1e-6)
    assert (weight[~torch.from_numpy(hidden)] == 1).all()
    assert ((weight[torch.from_numpy(hidden)] >= 10 / 9 - 1e-6) & (weight[torch.from_numpy(hidden)] <= 2 + 1e-6)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mask.blocks=0.8", "blocks 0.8 hides more than ratio 0.75; lower blocks"),
        ("mask.min_block=30", "min_block 30 is above max_block 20"),
        ("mask={name: rolled_block, min_block: 50}", "blocks of 50 patches do not fit inside 8x8; lower min_block"),
        ("mask={name: rolled_block, min_block: 4, roll: 17}", "roll 17: no more than 16 patches can be shown again"),
        ("mask.ratio=0.99", "leaves 0 visible; choose another ratio"),
        ("terms.pixels.head.inject=6", r"head reads blocks \[6\], but student 'vit' has blocks 0 to 5"),
        ("terms.pixels.head.num_heads=65", "num_heads 65 leaves no number of dim 64 to a head"),
        ("terms.pixels.head.dim=30", "multiple of 4"),
    ],
)
def test_what_cannot_be_built_is_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("bootmae-micro", [change])


def objective_and_batch() -> tuple[Any, Batch]:
    torch.manual_seed(0)
    objective: Any = Objective(load("bootmae-micro", SMALL)).eval()
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sampling = Sampling(objective.recipe, objective.student.geometry)
    return objective, sampling.collate([sampling(image, 0, index) for index, image in enumerate(images)])


def hidden_pixels(batch: Batch) -> Tensor:
    """(B, 1, H, W) bool of 8-pixel patches."""
    (mask,), side = batch.masks["main"], batch.views["main"].image.shape[-1] // 8
    return mask.hidden.view(-1, 1, side, side).repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_hidden_pixels_change_no_prediction() -> None:
    objective, batch = objective_and_batch()
    image = batch.views["main"].image
    other = Batch({"main": View(torch.where(hidden_pixels(batch), 255 - image, image))}, batch.masks, batch.index)
    for name in ("pixels", "features"):
        (seen,), (blind,) = (objective.predictions(given)[name] for given in (batch, other))
        assert (seen.preds[0] - blind.preds[0]).abs().max().item() == 0.0
        assert not seen.target.equal(blind.target)


def test_predicting_nothing_costs_the_mean_weight() -> None:
    """Zero is one mean square away from a normalized target, times W; the mean is over patches, not over their weights."""
    objective, batch = objective_and_batch()
    (mask,) = batch.masks["main"]
    with torch.no_grad():
        for name in ("pixels", "features"):
            objective.terms[name].head.proj.weight.zero_()
            objective.terms[name].head.proj.bias.zero_()
    losses = objective(batch)
    mean = mask.weight.gather(1, mask.hidden_index).mean().item()  # type: ignore[union-attr]
    assert mean > 1.1
    for name in ("pixels", "features"):
        assert losses[name].item() == pytest.approx(mean, rel=0.01)


def test_nothing_is_read_back_from_the_device() -> None:
    """Tensors without data: a value that is read, or a shape that depends on one, raises."""
    head, known = make().to("meta"), encoded()
    taps = {tap: tensor.to("meta") for tap, tensor in known.taps.items()}
    shapes = Encoded(known.tokens.to("meta"), known.prefix.to("meta"), (4, 6), known.index.to("meta"), taps)  # type: ignore[union-attr]
    query = Query(torch.arange(NUM_TOKENS, device="meta").expand(2, -1), include_class=True)
    assert head(shapes, query).shape == (2, NUM_TOKENS + 1, 5)


def test_blocks_are_found_to_be_compiled_and_recomputed() -> None:
    """Two of the student, two a decoder, and those of the momentum copy."""
    objective, batch = objective_and_batch()
    assert len(objective.blocks()) == 2 + 2 + 2 + 2
    plain = objective.train()(batch)["loss"]
    for block in objective.blocks():
        block.recompute = True
    again = objective(batch)["loss"]
    again.backward()
    assert again.item() == plain.item()


@pytest.mark.slow
def test_two_processes_compute_what_one_does() -> None:
    testing.check_processes("bootmae-micro", [*SMALL, "precision=float32"])
