"""ConvMAE's student: the contract, what is hidden, where tokens land, sizes, rates of layers, imports, refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from unimim_convmae.importer import ConvMAE as Importer
from unimim_convmae.layers import UnitConv, from_units

from unimim import Batch, Mask, Objective, Query, Recipe, RecipeError, TargetSpec, View, load, plugins, testing
from unimim.layers import gather, sincos_2d, to_units

TOY = {
    "name": "convmae",
    "image_size": (16, 32),
    "patch_size": 4,
    "conv_dims": (6, 8),
    "conv_depths": (1, 2),
    "dim": 16,
}
TOY |= {"depth": 2, "num_heads": 2}
SMALL = ["student.image_size=32", "student.patch_size=4", "student.depth=1", "student.dim=16", "student.num_heads=2"]
SMALL += ["student.conv_dims=[6, 8]", "head.dim=8", "head.depth=1", "head.num_heads=2"]


def build(**fields: Any) -> Any:
    torch.manual_seed(0)
    return plugins()["students"]["convmae"].Config(**(TOY | fields)).build()


def picture(size: tuple[int, int] = (16, 32), batch: int = 2) -> View:
    return View(torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)))


def hide(count: int, num_tokens: int = 32, batch: int = 2, seed: int = 2) -> Mask:
    noise = torch.rand(batch, num_tokens, generator=torch.Generator().manual_seed(seed))
    return Mask.from_hidden(noise.argsort(1).argsort(1) < count, count)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"patch_size": 8, "conv_dims": (8, 4), "conv_mlp_ratios": (1.0, 3.0)},
        {"image_size": 48, "patch_size": 16, "channels": 2, "mean": (0.5, 0.5), "std": (0.2, 0.3)},
        {"masking": "none"},
        {"drop_path": 0.3, "depth": 1},
    ],
)
def test_keeps_the_contract_of_a_student(fields: Any) -> None:
    testing.check_student(TOY | fields)


@pytest.mark.parametrize("overrides", [[], ["student.image_size=64", "student.patch_size=8"]])
def test_trains(overrides: list[str]) -> None:
    testing.check_recipe("convmae-micro", [*SMALL, *overrides])


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 31), seed=st.integers(0, 2**16))
def test_hidden_pixels_change_nothing_at_all(count: int, seed: int) -> None:
    student, view, mask = build().eval(), picture(), hide(count, seed=seed)
    pixels = mask.hidden.view(2, 1, 4, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = View(torch.where(pixels, 7 - 3 * view.image, view.image))
    assert student(view, mask).tokens.equal(student(other, mask).tokens)


def test_a_mask_that_hides_nothing_gives_the_tokens_of_the_whole_image() -> None:
    student, view = build().eval(), picture()
    torch.testing.assert_close(student(view, hide(0)).tokens, student(view).tokens, rtol=0, atol=1e-6)


def test_visible_neighbours_reach_a_token_and_hidden_ones_do_not() -> None:
    """The 5 x 5 convolution sees across units: with the transformer silent, only through it can a neighbour be felt."""
    student, view = silent(build(), "blocks").eval(), picture(batch=1)
    brighter = View(view.image.clone())
    brighter.image[:, :, :4, 4:8] += 0.5  # unit 1, beside unit 0
    hidden = torch.zeros(1, 32, dtype=torch.bool)
    hidden[0, 5] = True
    seen = Mask.from_hidden(hidden, 1)
    felt = (student(view, seen).tokens - student(brighter, seen).tokens)[0, 0]
    assert felt.detach().abs().max() > 1e-4
    blind = Mask.from_hidden(hidden.roll(-4, 1), 1)
    assert student(view, blind).tokens.equal(student(brighter, blind).tokens)


def silent(student: Any, *parts: str) -> Any:
    """Blocks of these parts add nothing, so that a token is a function of its own unit and position."""
    for name, parameter in student.named_parameters():
        if name.startswith(parts) and re.search(r"\.(conv2|attn\.proj|mlp\.fc2)\.", name):
            torch.nn.init.zeros_(parameter)
    return student


def test_each_visible_token_lands_on_its_own_slot() -> None:
    """Every patch has a grey value of its own and no block mixes them: what the decoder says at a visible position must be
    what it says there of the whole image, and at a hidden one what it says of the mask token."""
    data = load("convmae-micro", [*SMALL, "head.depth=0", "where=all"])
    objective = Objective(data).eval()
    student, head = silent(objective.student, "stages", "blocks"), objective.terms["mim"].head
    grey = torch.rand(1, 64, generator=torch.Generator().manual_seed(3)).view(1, 1, 8, 8)
    view = View(grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(2, 3, -1, -1))
    mask, everywhere = hide(40, 64), Query(torch.arange(64).expand(2, -1))
    whole, masked = head(student(view), everywhere), head(student(view, mask), everywhere)
    distinct = torch.cdist(whole, whole) + torch.eye(64)
    assert distinct.detach().min() > 1e-3
    torch.testing.assert_close(gather(masked, mask.visible_index), gather(whole, mask.visible_index), rtol=0, atol=1e-6)
    token = head.proj(head.norm(head.mask_token + head.positions)).expand(2, -1, -1)
    torch.testing.assert_close(gather(masked, mask.hidden_index), gather(token, mask.hidden_index), rtol=0, atol=1e-6)


def test_predicting_zero_loses_p_minus_one_over_p() -> None:
    """767 / 768 for 16 x 16 x 3 pixels: the target's variance over P - 1 is one."""
    recipe = load("convmae-micro", [*SMALL, "student.image_size=64", "student.patch_size=16"])
    objective = Objective(recipe)
    torch.nn.init.zeros_(objective.terms["mim"].head.proj.weight)
    torch.nn.init.zeros_(objective.terms["mim"].head.proj.bias)
    batch = Batch({"main": picture((64, 64))}, {"main": (hide(12, 16),)}, torch.arange(2))
    assert objective(batch)["loss"].item() == pytest.approx(767 / 768, abs=1e-5)


def test_a_convolution_over_units_is_the_convolution() -> None:
    torch.manual_seed(0)
    conv, x = UnitConv(3, 5, 2, side=4), torch.randn(2, 8, 12, 3)
    grid = (2, 3)
    dense = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(to_units(x, grid)), to_units(dense, grid), rtol=0, atol=1e-5)
    assert from_units(to_units(x, grid), grid, 4, 3).equal(x)


def test_has_the_official_number_of_parameters() -> None:
    """Alpha-VL/ConvMAE @ 4c97b4c: 115.041 million with the two fixed position tables, which are buffers here."""
    recipe = load("convmae")
    with torch.device("meta"):
        student = recipe.student.build()
        loss = recipe.terms["mim"].loss.build(TargetSpec(768))
        head = recipe.terms["mim"].head.build(student, loss.out_dim)
    count = sum(p.numel() for module in (student, head) for p in module.parameters()) + 196 * (768 + 512)
    assert round(count / 1000) == 115_041


def test_starts_as_the_official_code_does() -> None:
    """Xavier with zero biases in the transformer and the last patch embedding's weight, torch's own before it."""
    student = build(dim=64, conv_dims=(32, 48))
    for parts, eps in (((student.embeds, student.stages), 1e-5), ((student.blocks, student.norm), 1e-6)):
        norms = [m for part in parts for m in part.modules() if isinstance(m, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {eps}
    assert not any(block.mlp.fc1.bias.any() for block in student.blocks)
    assert not student.proj.bias.any()
    assert student.embeds[2].proj.bias.any()
    for weight, bound in [
        (student.embeds[2].proj.weight, (6 / (64 + 48 * 4)) ** 0.5),
        (student.blocks[0].mlp.fc1.weight, (6 / (64 + 256)) ** 0.5),
        (student.stages[0][0].mlp.fc1.weight, 32**-0.5),
        (student.stages[0][0].mlp.fc1.bias, 32**-0.5),
        (student.fusions[0].weight, (32 * 16) ** -0.5),
    ]:
        assert 0.9 * bound < weight.detach().abs().max() <= bound + 1e-6


OFFICIAL = {
    r"embeds\.0\.(.*)": r"patch_embed1.\1",
    r"embeds\.1\.(.*)": r"patch_embed2.\1",
    r"embeds\.2\.(.*)": r"patch_embed3.\1",
    r"proj\.(.*)": r"patch_embed4.\1",
    r"stages\.0\.(.*)": r"blocks1.\1",
    r"stages\.1\.(.*)": r"blocks2.\1",
    r"blocks\.(.*)": r"blocks3.\1",
    r"fusions\.0\.(.*)": r"stage1_output_decode.\1",
    r"fusions\.1\.(.*)": r"stage2_output_decode.\1",
    r"(norm\..*)": r"\1",
}


def official_name(name: str) -> str:
    (found,) = [match.expand(name_) for rule, name_ in OFFICIAL.items() if (match := re.fullmatch(rule, name))]
    return found


def test_rates_of_layers_follow_the_official_fine_tuning() -> None:
    student = build(depth=3)
    for name, _ in student.named_parameters():
        official = official_name(name)
        layer = int(official.split(".")[1]) + 1 if official.startswith("blocks3") else 0
        later = official.startswith(("norm", "stage1_output_decode", "stage2_output_decode"))
        assert student.layer_of(name) == (4 if later else layer), name


def test_published_sizes_need_no_overrides() -> None:
    recipe = load("convmae")
    with torch.device("meta"):
        state = {official_name(name): x for name, x in recipe.student.build().state_dict().items()}
        state |= {"pos_embed": torch.empty(1, 196, 768)}
    assert state["blocks3.10.mlp.fc2.weight"].shape == (768, 3072)
    data = recipe.data()["student"]
    told = {path.removeprefix("student."): value for path, value in Importer().infer(state).items()}
    assert told == {name: data[name] for name in told}
    assert {"patch_size", "image_size", "conv_dims", "conv_depths", "conv_mlp_ratios", "depth", "num_heads"} < {*told}


def checkpoint(overrides: list[str]) -> tuple[Recipe, dict[str, Tensor]]:
    """The small recipe, and its start values under official names and in official shapes."""
    recipe = load("convmae-micro", [*SMALL, *overrides])
    objective, state = Objective(recipe), {}
    for name, x in objective.state_dict().items():
        part, _, rest = name.removeprefix("branches.mim.head.").partition(".")
        if part == "student":
            pointwise = re.search(r"stages\.\d\.\d+\.(conv|mlp)", name) and x.ndim == 2
            state[official_name(rest)] = x[:, :, None, None] if pointwise else x
        elif part == "mask_token":
            state[part] = x
        else:
            state[f"decoder_{'pred' if part == 'proj' else part}.{rest}"] = x
    for name, width in (("pos_embed", 16), ("decoder_pos_embed", 8)):
        state[name] = sincos_2d(recipe.student.geometry.grid, width).unsqueeze(0)
    return recipe, state


TOLD = ["student.num_heads=2", "head.num_heads=2"]


@pytest.mark.parametrize("overrides", [[], ["student.patch_size=8", "student.conv_depths=[3, 2]", "student.depth=2"]])
def test_the_tensors_tell_the_recipe(overrides: list[str]) -> None:
    recipe, state = checkpoint(overrides)
    found = Importer().read(state, TOLD)
    assert found.recipe.student == recipe.student
    assert found.recipe.terms == recipe.terms
    assert {*found.ignored} == {"pos_embed", "decoder_pos_embed"}


def test_what_the_tensors_do_not_tell_must_be_given() -> None:
    _, state = checkpoint([])
    with pytest.raises(ValueError, match=r"do not tell student.num_heads, head.num_heads"):
        Importer().read(state)


def test_other_positions_and_fine_tuned_files_are_refused() -> None:
    _, state = checkpoint([])
    with pytest.raises(ValueError, match=r"pos_embed is not the fixed table of this method"):
        Importer().read(state | {"pos_embed": state["pos_embed"].flip(-1)}, TOLD)
    tuned = {name: x for name, x in state.items() if "decode" not in name and name != "mask_token"}
    with pytest.raises(ValueError, match=r"take the pre-training checkpoint"):
        Importer().read(tuned, TOLD)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.patch_size=6", r"strides are patch_size / 4, 2 and 2; nearest 8"),
        (
            "student.image_size=30",
            r"image_size 30x30, patch_size 4x4: the image is not whole patches; nearest image_size \[32, 32\]",
        ),
        ("student.image_size=[32, 10000]", r"each side is 1 to 8192"),
        ("student.num_heads=3", r"dim 16 must divide into num_heads 3"),
        ("student.conv_dims=[0, 8]", r"student.conv_dims.0: input should be greater than 0"),
        ("student.std=[1, 1, 0]", r"std positive"),
        ("student.masking=none", r"cannot \(masking: none\)"),
        ("head=fc", r"reads the student's tokens at hidden positions"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("convmae-micro", [*SMALL, override])
