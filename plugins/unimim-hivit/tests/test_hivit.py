"""HiViT's student: the contract, what is hidden, where tokens land, sizes, rates of layers, imports, refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from unimim_hivit.importer import HiViT as Importer
from unimim_hivit.layers import RelativeAttention

from unimim import Batch, Mask, Objective, Query, Recipe, RecipeError, TargetSpec, View, load, plugins, testing
from unimim.layers import gather, relative_index, sincos_2d

TOY = {"name": "hivit", "image_size": (16, 32), "patch_size": 4, "stem_depths": (1, 2), "dim": 16, "depth": 2}
TOY |= {"num_heads": 2}
SMALL = ["student.image_size=32", "student.patch_size=4", "student.depth=1", "student.dim=16", "student.num_heads=2"]
SMALL += ["head.dim=8", "head.depth=1", "head.num_heads=2"]


def build(**fields: Any) -> Any:
    torch.manual_seed(0)
    return plugins()["students"]["hivit"].Config(**(TOY | fields)).build()


def picture(size: tuple[int, int] = (16, 32), batch: int = 2) -> View:
    return View(torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)))


def hide(count: int, num_tokens: int = 32, batch: int = 2, seed: int = 2) -> Mask:
    noise = torch.rand(batch, num_tokens, generator=torch.Generator().manual_seed(seed))
    return Mask.from_hidden(noise.argsort(1).argsort(1) < count, count)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"patch_size": 8, "stem_depths": (3, 1), "stem_mlp_ratio": 1.5, "mlp_ratio": 2.0},
        {"relative_positions": "per_block"},
        {"image_size": 48, "patch_size": 16, "channels": 2, "mean": (0.5, 0.5), "std": (0.2, 0.3)},
        {"masking": "none", "relative_positions": "per_block"},
        {"drop_path": 0.3, "depth": 1},
    ],
)
def test_keeps_the_contract_of_a_student(fields: Any) -> None:
    testing.check_student(TOY | fields)


@pytest.mark.parametrize(
    "overrides", [[], ["student.relative_positions=per_block"], ["student.image_size=64", "student.patch_size=8"]]
)
def test_trains(overrides: list[str]) -> None:
    testing.check_recipe("hivit-micro", [*SMALL, *overrides])


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 31), seed=st.integers(0, 2**16), relative=st.sampled_from(["none", "per_block"]))
def test_hidden_pixels_change_nothing_at_all(count: int, seed: int, relative: str) -> None:
    student, view, mask = build(relative_positions=relative).eval(), picture(), hide(count, seed=seed)
    pixels = mask.hidden.view(2, 1, 4, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = View(torch.where(pixels, 7 - 3 * view.image, view.image))
    assert student(view, mask).tokens.equal(student(other, mask).tokens)


def test_a_mask_that_hides_nothing_gives_the_tokens_of_the_whole_image() -> None:
    student, view = build().eval(), picture()
    torch.testing.assert_close(student(view, hide(0)).tokens, student(view).tokens, rtol=0, atol=1e-6)


def test_nothing_crosses_a_unit_before_the_main_stage() -> None:
    """The first 6 of the 7 dim numbers of a token, before the norm, are functions of its own pixels."""
    student, view = build().eval(), picture(batch=1)
    student.norm = torch.nn.Identity()
    brighter = View(view.image.clone())
    brighter.image[:, :, :4, 4:8] += 0.5  # unit 1
    changed = (student(view).tokens != student(brighter).tokens)[0]
    assert changed[1].all()
    others = changed[torch.arange(32) != 1]
    assert not others[:, : 6 * 16].any()
    assert others[:, 6 * 16 :].any(1).all()


def silent(student: Any) -> Any:
    """Blocks of the main stage add nothing, so that a token is a function of its own unit and position."""
    for name, parameter in student.named_parameters():
        if re.search(r"\.attn\.proj\.", name):
            torch.nn.init.zeros_(parameter)
    return student


def test_each_visible_token_lands_on_its_own_slot() -> None:
    """Every patch has a grey value of its own and no block mixes them: what the decoder says at a visible position must be
    what it says there of the whole image, and at a hidden one what it says of the mask token."""
    objective = Objective(load("hivit-micro", [*SMALL, "head.depth=0", "where=all"])).eval()
    student, head = silent(objective.student), objective.terms["mim"].head
    grey = torch.rand(1, 64, generator=torch.Generator().manual_seed(3)).view(1, 1, 8, 8)
    view = View(grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(2, 3, -1, -1))
    mask, everywhere = hide(40, 64), Query(torch.arange(64).expand(2, -1))
    whole, masked = head(student(view), everywhere), head(student(view, mask), everywhere)
    distinct = torch.cdist(whole, whole) + torch.eye(64)
    assert distinct.detach().min() > 1e-3
    torch.testing.assert_close(gather(masked, mask.visible_index), gather(whole, mask.visible_index), rtol=0, atol=1e-6)
    token = head.proj(head.norm(head.mask_token + head.positions)).expand(2, -1, -1)
    torch.testing.assert_close(gather(masked, mask.hidden_index), gather(token, mask.hidden_index), rtol=0, atol=1e-6)


def test_relative_positions_are_those_of_the_kept_tokens() -> None:
    """With keys at zero the weights are softmax(bias), read here from the table one pair at a time."""
    torch.manual_seed(0)
    attention, kept = RelativeAttention(8, 2, (2, 4)), torch.tensor([[0, 3, 6], [1, 2, 7]])
    torch.nn.init.normal_(attention.bias.table)
    torch.nn.init.zeros_(attention.qkv.weight[8:16].detach())
    torch.nn.init.zeros_(attention.qkv.bias[8:16].detach())
    x, index, table = torch.randn(2, 3, 8), relative_index((2, 4), 0), attention.bias.table
    value = attention.qkv(x)[:, :, 16:].view(2, 3, 2, 4)
    mixed = torch.zeros(2, 3, 2, 4)
    for b in range(2):
        for i in range(3):
            logits = torch.stack([table[index[kept[b, i], kept[b, j]]] for j in range(3)])
            mixed[b, i] = (logits.softmax(0).unsqueeze(-1) * value[b]).sum(0)
    expected = attention.proj(mixed.flatten(2))
    torch.testing.assert_close(attention(x, kept), expected, rtol=0, atol=1e-6)


def test_predicting_zero_loses_p_minus_one_over_p() -> None:
    """767 / 768 for 16 x 16 x 3 pixels: the target's variance over P - 1 is one."""
    objective = Objective(load("hivit-micro", [*SMALL, "student.image_size=64", "student.patch_size=16"]))
    torch.nn.init.zeros_(objective.terms["mim"].head.proj.weight)
    torch.nn.init.zeros_(objective.terms["mim"].head.proj.bias)
    batch = Batch({"main": picture((64, 64))}, {"main": (hide(12, 16),)}, torch.arange(2))
    assert objective(batch)["loss"].item() == pytest.approx(767 / 768, abs=1e-5)


def test_has_the_official_number_of_parameters_and_widths() -> None:
    """zhangxiaosong18/hivit @ 2718339: 87.041 million with the decoder's fixed position table, which is a buffer here."""
    recipe = load("hivit")
    with torch.device("meta"):
        student = recipe.student.build()
        loss = recipe.terms["mim"].loss.build(TargetSpec(768))
        head = recipe.terms["mim"].head.build(student, loss.out_dim)
    assert student.dim == recipe.student.geometry.dim == 3584
    count = sum(p.numel() for module in (student, head) for p in module.parameters()) + 196 * 512
    assert round(count / 1000) == 87_041


def test_starts_as_the_official_code_does() -> None:
    """Normal matrices of deviation 0.02 and zero biases; the trainable position table at the sin-cos code."""
    student = build(dim=64, depth=1)
    assert student.pos_embed.requires_grad
    assert student.pos_embed[0].equal(sincos_2d((4, 8), 64))
    linears = [module for module in student.modules() if isinstance(module, torch.nn.Linear)]
    assert not any(linear.bias.any() for linear in linears if linear.bias is not None)
    weights = torch.cat([linear.weight.detach().flatten() for linear in linears])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert student.patch_embed.bias.any()
    assert {module.eps for module in student.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


def test_rates_of_layers_follow_the_official_fine_tuning() -> None:
    """28 layers in HiViT-B: MLP blocks count, merges (4 and 9 of the list) belong to the block before them."""
    with torch.device("meta"):
        student = load("hivit").student.build()
    assert student.config.num_layers == 28
    merges, layers = (4, 9), {}
    for name, _ in student.named_parameters():
        part, _, rest = name.partition(".")
        if part == "blocks":
            number = int(rest.partition(".")[0])
            before = sum(merge <= number for merge in merges)
            layers[number] = number + 1 - before
            assert student.layer_of(name) == layers[number], name
        else:
            assert student.layer_of(name) == (29 if part == "norm" else 0), name
    assert (layers[3], layers[4], layers[5], layers[9], layers[10], layers[29]) == (4, 4, 5, 8, 9, 28)


def official_name(name: str) -> str:
    named = {
        r"pos_embed": "absolute_pos_embed",
        r"patch_embed\.": "patch_embed.proj.",
        r"patch_norm\.": "patch_embed.norm.",
    }
    for ours, theirs in named.items():
        name = re.sub(f"^{ours}", theirs, name)
    return name.replace("attn.bias.table", "attn.relative_position_bias_table")


def test_published_sizes_need_no_overrides() -> None:
    """Shapes as the official hivit_base has them."""
    recipe = load("hivit")
    with torch.device("meta"):
        state = {official_name(name): x for name, x in recipe.student.build().state_dict().items()}
    shapes = {name: tuple(state[name].shape) for name in ("blocks.9.reduction.weight", "blocks.29.attn.qkv.weight")}
    assert shapes == {"blocks.9.reduction.weight": (512, 1024), "blocks.29.attn.qkv.weight": (1536, 512)}
    data = recipe.data()["student"]
    told = {path.removeprefix("student."): value for path, value in Importer().infer(state).items()}
    assert told == {name: data[name] for name in told}
    assert {"patch_size", "image_size", "stem_depths", "stem_mlp_ratio", "depth", "num_heads"} < {*told}


def checkpoint(overrides: list[str]) -> tuple[Recipe, dict[str, Tensor]]:
    """The small recipe, and its start values under official names, with the official fixed tables."""
    recipe = load("hivit-micro", [*SMALL, *overrides])
    grid, state = recipe.student.geometry.grid, {}
    for name, x in Objective(recipe).state_dict().items():
        part, _, rest = name.removeprefix("branches.mim.head.").partition(".")
        if part == "student":
            state[official_name(rest)] = x
        elif part == "mask_token":
            state[part] = x
        else:
            state[f"decoder_{'pred' if part == 'proj' else part}.{rest}"] = x
    state["decoder_pos_embed"] = sincos_2d(grid, 8).unsqueeze(0)
    if recipe.data()["student"]["relative_positions"] != "none":
        state["relative_position_index"] = relative_index(grid, 0)
    return recipe, state


TOLD = ["student.num_heads=2", "head.num_heads=2"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["student.patch_size=8", "student.stem_depths=[3, 2]", "student.depth=2", "student.stem_mlp_ratio=2"],
        ["student.relative_positions=per_block", "student.mlp_ratio=3"],
    ],
)
def test_the_tensors_tell_the_recipe(overrides: list[str]) -> None:
    recipe, state = checkpoint(overrides)
    relative = "relative_position_index" in state
    found = Importer().read(state, TOLD[relative:])
    assert found.recipe.student == recipe.student
    assert found.recipe.terms == recipe.terms
    assert {*found.ignored} == {"decoder_pos_embed"} | ({"relative_position_index"} if relative else set())


def test_what_the_tensors_do_not_tell_must_be_given() -> None:
    _, state = checkpoint([])
    with pytest.raises(ValueError, match=r"do not tell student.num_heads, head.num_heads"):
        Importer().read(state)


def test_other_files_are_refused() -> None:
    _, state = checkpoint([])
    with pytest.raises(ValueError, match=r"decoder_pos_embed is not the fixed table of this method"):
        Importer().read(state | {"decoder_pos_embed": state["decoder_pos_embed"].flip(-1)}, TOLD)
    tuned = {name: x for name, x in state.items() if "decode" not in name and name != "mask_token"}
    with pytest.raises(ValueError, match=r"take the pre-training checkpoint"):
        Importer().read(tuned, TOLD)
    plain = {name: x for name, x in state.items() if "reduction" not in name}
    with pytest.raises(ValueError, match=r"0 patch merges in blocks, and HiViT has 2"):
        Importer().read(plain, TOLD)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.patch_size=6", r"4 x 4 tokens of the first stage; nearest 8"),
        (
            "student.image_size=30",
            r"image_size 30x30, patch_size 4x4: the image is not whole patches; nearest image_size \[32, 32\]",
        ),
        ("student.image_size=[32, 10000]", r"each side is 1 to 8192"),
        ("student.num_heads=3", r"dim 16 must divide into num_heads 3"),
        ("student.stem_depths=[0, 8]", r"student.stem_depths.0: input should be greater than 0"),
        ("student.std=[1, 1, 0]", r"std positive"),
        ("student.masking=none", r"cannot \(masking: none\)"),
        ("teacher={name: self, layers: [0]}", r"reads blocks \[0\]"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("hivit-micro", [*SMALL, override])
