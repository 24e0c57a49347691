"""The contracts, the recipes, and laws that need no stored numbers."""

from __future__ import annotations

import math
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Geometry, Mask, Objective, Rendition, View, load, plugins, testing

VQGAN = {
    "name": "vqgan",
    "dim": 32,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention": (1,),
    "latent_dim": 6,
    "num_codes": 16,
    "code_dim": 4,
}
OVERRIDE = "teacher={name: vqgan, dim: 32, multipliers: [1, 2], num_res_blocks: 1, attention: [1], latent_dim: 6, num_codes: 16}"
SMALL = ["student.image_size=32", "student.patch_size=4"]
TINY = [*SMALL, "student.dim=16", "student.depth=2", "student.num_heads=2"]
GEOMETRY = Geometry((16, 24), (4, 6), 16)


@pytest.mark.parametrize(
    "changed",
    [{}, {"multipliers": (1,), "attention": ()}, {"multipliers": (2, 1, 1), "num_res_blocks": 2, "attention": (0, 2)}],
    ids=["two levels", "one level", "three levels"],
)
def test_keeps_the_contract_of_a_teacher(changed: dict[str, Any]) -> None:
    testing.check_teacher(VQGAN | changed)


@pytest.mark.parametrize("overrides", [[], SMALL], ids=["64 pixels", "32 pixels"])
@pytest.mark.parametrize(
    "teacher",
    ["teacher={name: kmeans, teacher: pixel, num_codes: 16, normalize: true}", OVERRIDE],
    ids=["codes", "vqgan"],
)
def test_the_micro_recipe_trains(overrides: list[str], teacher: str) -> None:
    testing.check_recipe("peco-micro", [teacher, "student.depth=2", *overrides])


def test_the_recipe_trains() -> None:
    testing.check_recipe("peco", [*TINY, "mask.count=25", "mask.min_block=4", OVERRIDE])


def test_the_recipe_is_beit_but_for_the_teacher() -> None:
    ours, beit = load("peco"), load("beit")
    assert {key for key, value in ours.axes().items() if value != beit.axes()[key]} == {"teacher"}
    for part in ("student", "masks", "views", "optimization", "batch", "epochs"):
        assert getattr(ours, part) == getattr(beit, part), part


def test_official_sizes() -> None:
    """29,298,176 parameters of the encoder with 16 pixels a code, counted in the official code."""
    recipe = load("peco")
    with torch.device("meta"):
        teacher: Any = recipe.terms["mim"].teacher.build(recipe.student.geometry)
    assert sum(p.numel() for p in teacher.encoder.parameters()) == 29_298_176
    assert teacher.codes.shape == (8192, 256)
    assert teacher.rendition == Rendition((224, 224), "bicubic")


def test_uniform_predictions_lose_log_k() -> None:
    recipe = load("peco", [*TINY, "mask.count=25", "mask.min_block=4", OVERRIDE])
    objective: Any = Objective(recipe)
    torch.nn.init.zeros_(objective.terms["mim"].head.proj.weight)
    image = torch.rand(2, 3, 32, 32)
    cuts = {Rendition((16, 16), "bicubic"): image[..., ::2, ::2]}
    mask = Mask.from_hidden(torch.arange(64).expand(2, -1) < 25, 25)
    batch = Batch({"main": View(image, cuts)}, {"main": (mask,)}, torch.arange(2))
    assert objective(batch)["loss"].item() == pytest.approx(math.log(16), rel=1e-6)


def teacher(**fields: Any) -> Any:
    """A teacher whose codes are latents of other images, so that many are used."""
    torch.manual_seed(0)
    built = plugins()["teachers"]["vqgan"].Config(**(VQGAN | fields)).build(GEOMETRY)
    built.freeze()
    if "checkpoint" not in fields:
        built.codes.copy_(built.features(view(pixels(16, 1))).flatten(0, 1)[:: 24 * 16 // built.config.num_codes])
    return built


def pixels(batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def view(image: Tensor) -> View:
    return View(torch.zeros(1), {Rendition((8, 12), "bicubic"): image})


def test_ids_do_not_depend_on_the_batch() -> None:
    built, image = teacher(), pixels(6)
    ids = built(view(image)).tokens
    assert len(ids.unique()) > 8
    assert built(view(image.flip(0))).tokens.equal(ids.flip(0))
    for alone, together in zip(image, ids, strict=True):
        assert built(view(alone[None])).tokens[0].equal(together)


def test_stays_in_eval_mode() -> None:
    built = teacher()
    before = built(view(pixels(2))).tokens
    assert not any(module.training for module in built.train().modules())
    assert built(view(pixels(2))).tokens.equal(before)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 15))
def test_a_shift_of_the_codes_shifts_the_ids(shift: int) -> None:
    built = teacher()
    before = built(view(pixels(2))).tokens
    built.codes.copy_(built.codes.roll(shift, 0))
    assert built(view(pixels(2))).tokens.equal((before + shift) % 16)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4))
def test_moving_codes_and_latents_together_changes_no_id(by: list[float]) -> None:
    built = teacher().double()
    before = built(view(pixels(2).double())).tokens
    offset = torch.tensor(by, dtype=torch.float64)
    built.codes.add_(offset)
    built.quant_conv.bias.add_(offset)
    assert built(view(pixels(2).double())).tokens.equal(before)


def test_the_code_is_the_nearest_and_the_first_of_equal_ones() -> None:
    built = teacher(num_codes=64)
    z = built.features(view(pixels(8)))
    ids = torch.cdist(z.double(), built.codes.double()).argmin(-1)
    assert built(view(pixels(8))).tokens.equal(ids)
    assert ids.max() >= 32
    built.codes[32:] = built.codes[:32].clone()
    assert built(view(pixels(8))).tokens.max() < 32


@pytest.mark.parametrize(("levels", "stride"), [(1, 1), (3, 4), (5, 16)])
def test_reads_a_crop_of_its_own_stride(levels: int, stride: int) -> None:
    config = plugins()["teachers"]["vqgan"].Config(**(VQGAN | {"multipliers": (1,) * levels, "attention": ()}))
    built = config.build(GEOMETRY)
    assert built.rendition == Rendition((4 * stride, 6 * stride), "bicubic")
    assert built.encoder(torch.zeros(1, 3, *built.rendition.size)).shape == (1, 6, 4, 6)


def test_halving_adds_zeros_below_and_on_the_right() -> None:
    halve = teacher().encoder.down[0].downsample
    torch.nn.init.ones_(halve.conv.weight[:1])
    torch.nn.init.zeros_(halve.conv.bias)
    places = halve(torch.ones(1, 32, 4, 4))[0, 0]
    assert places.tolist() == [[288.0, 192.0], [192.0, 128.0]]


def test_attention_that_cannot_tell_places_apart_adds_their_mean() -> None:
    attention = teacher().encoder.mid.attn_1
    torch.nn.init.zeros_(attention.q.weight)
    torch.nn.init.zeros_(attention.q.bias)
    for layer in (attention.v, attention.proj_out):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(2, 64, 4, 6, generator=torch.Generator().manual_seed(0))
    assert_close(attention(x) - x, attention.norm(x).mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-6)


def official(built: Any) -> dict[str, Tensor]:
    """The tensors of a teacher by their official names, with what only its training needs."""
    state = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    state["quantize.embedding.weight"] = state.pop("codes")
    spare = ("decoder.conv_in.weight", "post_quant_conv.bias", "loss.perceptual_loss.lin0.model.1.weight")
    return state | {name: torch.zeros(1) for name in (*spare, "loss.discriminator.main.3.num_batches_tracked")}


def test_reads_an_official_file(tmp_path: Path) -> None:
    source, path = teacher(), tmp_path / "last.ckpt"
    lightning = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.0.8", "callbacks": {}}
    moments = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 4.5e-6}]}
    torch.save(lightning | {"state_dict": official(source), "optimizer_states": [moments]}, path)
    built = teacher(checkpoint=str(path))
    assert all(tensor.equal(built.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert built(view(pixels(2))).tokens.equal(source(view(pixels(2))).tokens)
    assert built.config.reloads
    testing.check_teacher(built.config)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path, state = tmp_path / "last.ckpt", official(teacher())

    def refused(match: str, changed: dict[Any, Any], **fields: Any) -> None:
        torch.save({"state_dict": changed}, path)
        with pytest.raises(ValueError, match=match):
            teacher(checkpoint=str(path), **fields)

    def without(name: str) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in state.items() if key != name}

    sizes = r"set teacher\.dim=32 teacher\.multipliers=\[1,2\] teacher\.num_res_blocks=1 teacher\.attention=\[1\] "
    others = {"dim": 64, "multipliers": (1, 1, 4), "num_res_blocks": 2, "attention": (), "latent_dim": 8, "code_dim": 8}
    refused(sizes + r"teacher\.latent_dim=6 teacher\.num_codes=16 teacher\.code_dim=4$", state, num_codes=8, **others)
    refused(r"set teacher\.num_codes=1024$", state | {"quantize.embedding.weight": torch.zeros(1024, 4)})
    unknown = {"encoder.down.0.attn.0.norm.weight": torch.zeros(32), "quantize.cluster_size": torch.zeros(16)}
    for name, tensor in unknown.items():
        refused(rf"(?s)does not fit.*Unexpected key.*{name}", state | {name: tensor})
    refused(r"(?s)does not fit.*Missing key.*mid\.attn_1\.q\.bias", without("encoder.mid.attn_1.q.bias"))
    refused(r"(?s)does not fit.*size mismatch for quant_conv\.bias", state | {"quant_conv.bias": torch.zeros(5)})
    gumbel = without("quantize.embedding.weight") | {"quantize.embed.weight": torch.zeros(16, 4)}
    refused(r"no VQGAN with a plain codebook: .*quantize\.embedding\.weight", gumbel)
    path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer at .*last\.ckpt; train"):
        teacher(checkpoint=str(path))


def test_a_file_that_names_code_is_refused(tmp_path: Path) -> None:
    """Old Lightning files key the state of callbacks by their classes."""
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": official(teacher()), "callbacks": {PurePath: {}}}, path)
    with pytest.raises(ValueError, match=r"it holds pathlib\.PurePath.* save only its state dict"):
        teacher(checkpoint=str(path))


def test_reads_rgb_alone() -> None:
    with pytest.raises(ValueError, match="RGB, not 1 channels"):
        plugins()["teachers"]["vqgan"].Config(**VQGAN).build(Geometry((16, 24), (4, 6), 16, channels=1))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"multipliers": (1, 1, 2)}, r"attention \[4\]: levels are 0 to 2.*set attention=\[2\]"),
        ({"attention": (1, 0)}, r"attention \[1,0\]"),
        ({"attention": (1, 1)}, r"attention \[1,1\]"),
        ({"attention": (-1,)}, r"attention \[-1\]"),
        ({"dim": 48}, "multiple of 32"),
        ({"multipliers": ()}, "at least 1 item"),
        ({"multipliers": (1, 0, 2, 2, 2)}, "greater than 0"),
    ],
)
def test_fields(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        plugins()["teachers"]["vqgan"].Config(**fields)
