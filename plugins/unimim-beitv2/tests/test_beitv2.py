"""The contracts, the recipes, and laws that need no stored numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Geometry, Mask, Objective, Query, Rendition, Tap, View, load, plugins, testing

TOY = dict(testing.TOY)
BEIT = TOY | {"positions": "none", "relative_positions": "shared", "layer_scale": 0.1, "qkv_bias": "qv"}
VQKD = {"name": "vqkd", "patch_size": 4, "dim": 8, "depth": 1, "num_heads": 2, "num_codes": 16, "code_dim": 4}
HEAD = {"name": "aggregation", "early": 0, "last": 1, "num_blocks": 1}
SMALL = [
    *("student.image_size=32", "student.patch_size=4", "student.dim=16", "student.depth=2", "student.num_heads=2"),
    *("head.early=0", "head.last=1", "mask.count=null", "mask.ratio=0.4", "mask.min_block=4"),
]


@pytest.mark.parametrize(
    ("head", "student"),
    [
        (HEAD, TOY),
        (HEAD | {"num_blocks": 2, "early": 1}, BEIT),
        (HEAD | {"shared": False}, BEIT | {"relative_positions": "per_block"}),
        (HEAD, TOY | {"num_registers": 2, "final_norm": False, "drop_path": 0.2}),
    ],
    ids=["plain", "shared table", "nothing shared", "registers"],
)
def test_keeps_the_contract_of_a_head(head: dict[str, Any], student: dict[str, Any]) -> None:
    testing.check_head(head, student)


def test_keeps_the_contract_of_a_teacher() -> None:
    testing.check_teacher(VQKD)
    testing.check_teacher(VQKD | {"patch_size": 2, "depth": 2, "code_dim": 1})


@pytest.mark.parametrize(
    "overrides",
    [[], ["student.image_size=32", "student.patch_size=4", "head.num_blocks=2"]],
    ids=["64 pixels", "32 pixels"],
)
def test_the_micro_recipe_trains(overrides: list[str]) -> None:
    pixels = "teacher={name: kmeans, teacher: pixel, num_codes: 16, normalize: true}"
    testing.check_recipe("beitv2-micro", [pixels, "student.depth=2", "head.early=0", "head.last=1", *overrides])


def test_the_recipe_trains() -> None:
    testing.check_recipe("beitv2", [*SMALL, f"teacher={VQKD}"])


def test_official_sizes() -> None:
    """106,143,056 parameters of the base model, counted in the official code; 8192 codes of 32 numbers."""
    recipe = load("beitv2")
    term = recipe.terms["mim"]
    with torch.device("meta"):
        student = recipe.student.build()
        head = term.head.build(student, 8192)
        teacher: Any = term.teacher.build(student.geometry)
    assert sum(p.numel() for part in (student, head) for p in part.parameters()) == 106_143_056
    assert teacher.codes.shape == (8192, 32)
    assert teacher.rendition == Rendition((224, 224), "bicubic")
    assert load("beitv2-large").terms["mim"].head.taps == (Tap(20), Tap(23))


def objective(*overrides: str) -> tuple[Any, Any]:
    """A small BEiT v2 in eval mode and a batch."""
    recipe = load("beitv2", [*SMALL, f"teacher={VQKD}", "student.drop_path=0", *overrides])
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)).argsort(1) < 25
    built = Objective(recipe).eval()
    cuts = dict.fromkeys(built.renditions, images)
    batch = batch_of(View(images, cuts), Mask.from_hidden(hidden, 25))
    return built, batch


def batch_of(view: View, mask: Mask) -> Batch:
    return Batch({"main": view}, {"main": (mask,)}, torch.arange(len(view.image)))


def test_uniform_predictions_lose_log_k_twice() -> None:
    built, batch = objective()
    head = built.terms["mim"].head
    torch.nn.init.zeros_(head.proj.weight)
    assert built(batch)["loss"].item() == pytest.approx(2 * math.log(VQKD["num_codes"]), rel=1e-6)


def test_hidden_pixels_change_no_prediction() -> None:
    built, batch = objective()
    view, (mask,) = batch.views["main"], batch.masks["main"]
    under = mask.hidden.view(-1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = batch_of(replace(view, image=torch.where(under, 255 - view.image, view.image)), mask)
    for before, after in zip(*(built.predictions(given)["mim"][0].preds for given in (batch, other)), strict=True):
        assert (before - after).abs().max().item() == 0.0


def made(student: dict[str, Any], head: dict[str, Any]) -> tuple[Any, Any, Any]:
    built = plugins()["students"]["vit"].Config(**student).build().eval()
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    config = plugins()["heads"]["aggregation"].Config(**head)
    return built, config.build(built, 5).eval(), built(View(image), None, config.taps)


def test_the_branch_reads_the_early_patches_and_the_last_class_token_alone() -> None:
    _, head, encoded = made(BEIT | {"depth": 3}, HEAD | {"early": 1, "last": 2})
    query = Query(torch.arange(24).expand(1, -1))
    before = head(encoded, query)

    def moved(tap: Tap, rows: slice) -> tuple[bool, bool]:
        """Which of the two predictions change with the rows of a tap."""
        tokens = encoded.taps[tap].clone()
        tokens[:, rows] += torch.randn(tokens.shape[-1], generator=torch.Generator().manual_seed(2))
        after = head(replace(encoded, taps={**encoded.taps, tap: tokens}), query)
        first, second = (not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return first, second

    prefix, patches = slice(0, 1), slice(1, None)
    assert moved(Tap(2), patches) == moved(Tap(1), prefix) == (False, False)
    assert moved(Tap(2), prefix) == moved(Tap(1), patches) == (False, True)


def test_the_first_prediction_is_the_linear_head() -> None:
    student, head, encoded = made(BEIT, HEAD)
    linear: Any = plugins()["heads"]["fc"].Config().build(student, 5)
    linear.proj.load_state_dict(head.proj.state_dict())
    query = Query(torch.tensor([[7, 0, 23]]), include_class=True)
    assert head(encoded, query)[0].equal(linear(encoded, query))


def test_a_branch_without_layer_scale_and_outputs_is_the_student_s_own_stream() -> None:
    """Blocks whose last layers are zero add nothing, so both predictions agree if the early block is the last."""
    _, head, encoded = made(BEIT, HEAD | {"early": 1, "num_blocks": 2})
    for block in head.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    first, second = head(encoded, Query(torch.arange(24).expand(1, -1)))
    assert_close(first, second)


def test_start_values_of_the_branch_are_torch_s_divided_by_depth() -> None:
    """Uniform in +-1 / sqrt(inputs); outputs of the block at place l over sqrt(2 l), l = 10 and 11 after the ninth."""
    torch.manual_seed(0)
    student = TOY | {"dim": 64, "depth": 12, "drop_path": 0.11}
    _, head, _ = made(student, {"name": "aggregation"})
    for place, block in enumerate(head.blocks, 10):
        for layer, factor in ((block.mlp.fc1, 1.0), (block.mlp.fc2, math.sqrt(2 * place))):
            bound = 1 / math.sqrt(layer.in_features) / factor
            assert 0.99 * bound < layer.weight.abs().max() <= bound
            assert layer.bias.std() > 0
    assert [block.drop_path.drop_prob for block in head.blocks] == pytest.approx([0.09, 0.10])


@pytest.mark.parametrize(
    ("head", "student", "match"),
    [
        (HEAD | {"last": 0}, TOY, r"last block is 1; set head\.last=1"),
        (HEAD, TOY | {"class_token": False}, "has none"),
        (HEAD, TOY | {"masking": "drop"}, "masking: replace"),
    ],
)
def test_students_it_cannot_branch_from(head: dict[str, Any], student: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        made(student, head)


def test_a_pyramid_is_refused() -> None:
    swin = plugins()["students"]["swin"].Config(
        image_size=(32, 64), patch_size=2, dim=8, depths=(2, 2, 2), num_heads=(1, 2, 2), window=4
    )
    with pytest.raises(ValueError, match="blocks like those of student vit, not of 'swin'"):
        plugins()["heads"]["aggregation"].Config(**HEAD).build(swin.build(), 5)


def test_fields() -> None:
    with pytest.raises(ValidationError, match="lower early"):
        plugins()["heads"]["aggregation"].Config(early=3, last=2)
    with pytest.raises(ValidationError, match="does not divide"):
        plugins()["teachers"]["vqkd"].Config(dim=10, num_heads=4)


def teacher(**fields: Any) -> Any:
    built = plugins()["teachers"]["vqkd"].Config(**(VQKD | fields)).build(Geometry((16, 24), (4, 6), 16))
    built.freeze()
    return built


def view(pixels: Tensor) -> View:
    return View(torch.zeros(1), {Rendition((16, 24), "bicubic"): pixels})


def test_the_first_of_two_equal_codes_wins() -> None:
    built, pixels = teacher(), torch.rand(8, 3, 16, 24)
    assert built(view(pixels)).tokens.max() >= 8
    built.codes[8:] = built.codes[:8].clone()
    assert built(view(pixels)).tokens.max() < 8


def test_the_code_is_that_of_the_highest_cosine() -> None:
    built, pixels = teacher(num_codes=64), torch.rand(8, 3, 16, 24)
    z = built.features(view(pixels)).double()
    cosine = torch.nn.functional.cosine_similarity(z.unsqueeze(2), built.codes.double(), dim=-1)
    assert built(view(pixels)).tokens.equal(cosine.argmax(-1))


def test_the_greatest_pixel_of_the_batch_decides_nothing() -> None:
    """A black image keeps its ids beside a white one and alone."""
    built = teacher(num_codes=64)
    black, white = torch.zeros(1, 3, 16, 24), torch.ones(1, 3, 16, 24)
    together = built(view(torch.cat([black, white]))).tokens
    assert built(view(black)).tokens.equal(together[:1])


def official(built: Any) -> dict[str, Tensor]:
    """The tensors of a teacher by their official names, with what only its training needs."""
    names = {"encoder.prefix": "encoder.cls_token", "codes": "quantize.embedding.weight"}
    state = {}
    for ours, tensor in built.state_dict().items():
        name = names.get(
            ours, ours.replace("encoder.norm.", "encoder.fc_norm.").replace("project.", "encode_task_layer.")
        )
        state[name] = tensor
    spare = ("quantize.cluster_size", "decoder.cls_token", "decode_task_layer.0.bias", "scaling_layer.shift")
    return state | {name: torch.zeros(1) for name in spare}


@pytest.mark.parametrize("key", ["model", "state_dict", "module", None])
def test_reads_an_official_file(tmp_path: Path, key: str | None) -> None:
    source, path = teacher(), tmp_path / "vqkd.pth"
    state = official(source)
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    built = teacher(checkpoint=str(path))
    assert all(tensor.equal(built.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert built.config.reloads
    testing.check_teacher(built.config)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path, state = tmp_path / "vqkd.pth", official(teacher())

    def refused(match: str, changed: dict[str, Tensor], **fields: Any) -> None:
        torch.save(changed, path)
        with pytest.raises(ValueError, match=match):
            teacher(checkpoint=str(path), **fields)

    refused(r"set teacher\.dim=8 teacher\.depth=1 teacher\.num_codes=16$", state, dim=16, depth=2, num_codes=8)
    refused("25 positions, but the student 24", state | {"encoder.pos_embed": torch.zeros(1, 26, 8)})
    refused(r"(?s)does not fit.*encoder\.blocks\.0\.gamma_1", state | {"encoder.blocks.0.gamma_1": torch.zeros(8)})
    refused("is no VQ-KD tokenizer: .*encoder.pos_embed", {"weight": torch.zeros(1)})
    path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer at .*vqkd\.pth; fetch"):
        teacher(checkpoint=str(path))


def test_reads_rgb_alone() -> None:
    with pytest.raises(ValueError, match="RGB, not 1 channels"):
        plugins()["teachers"]["vqkd"].Config(**VQKD).build(Geometry((16, 24), (4, 6), 16, channels=1))


def test_a_student_too_shallow_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match=r"head reads blocks \[8, 11\], but student 'vit' has blocks 0 to 5"):
        load("beitv2", ["student.depth=6"])


def test_released_tokenizers_are_those_of_the_recipe() -> None:
    found = {name: plugins()["releases"][name] for name in ("vqkd", "vqkd-1x", "vqkd-dino")}
    assert len({release.file for release in found.values()}) == 3
    for release in found.values():
        teacher = load("beitv2", release.words(Path("weights") / release.file)).terms["mim"].teacher
        assert teacher == load("beitv2").terms["mim"].teacher.model_copy(
            update={"checkpoint": f"weights/{release.file}"}
        )
