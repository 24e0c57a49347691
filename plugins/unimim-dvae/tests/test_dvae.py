"""The contracts, the recipes, laws of the bottleneck, and what teacher dvae reads of a run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from unimim_dvae.gumbel import uniform_kl

from unimim import Geometry, Mask, Objective, Progress, Query, Rendition, Sampling, View, load, plugins, testing

STUDENT = {"name": "dvae_encoder", "image_size": (16, 24), "num_hidden": 4, "blocks_per_group": 1}
HEAD = {"name": "gumbel", "vocab_size": 12, "num_init": 8, "num_hidden": 4, "blocks_per_group": 1}
SMALL = [
    *("student.num_hidden=4", "student.blocks_per_group=1"),
    *("head.vocab_size=12", "head.num_init=8", "head.num_hidden=4", "head.blocks_per_group=1"),
]
EVERYWHERE = Query(torch.arange(6).expand(2, -1))


def made(**fields: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    student = plugins()["students"]["dvae_encoder"].Config(**STUDENT).build()
    head = plugins()["heads"]["gumbel"].Config(**HEAD, **fields).build(student, 192)
    for parameter in [*student.parameters(), *head.parameters()]:
        if parameter.ndim == 1:  # a bias that starts at zero would hide that it is forgotten
            torch.nn.init.uniform_(parameter, 0, 0.5)
    return student, head


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("more", [{}, {"blocks_per_group": 2}, {"image_size": 32, "num_hidden": 8}], ids=str)
def test_keeps_the_contract_of_a_student(more: dict[str, Any]) -> None:
    testing.check_student(STUDENT | more)


def test_layers_are_counted_block_by_block() -> None:
    student = plugins()["students"]["dvae_encoder"].Config(**STUDENT | {"blocks_per_group": 2}).build()
    layers = [student.layer_of(name) for name, _ in student.named_parameters()]
    assert layers == sorted(layers)
    assert {*layers} == {*range(9)}


@pytest.mark.parametrize("more", [{}, {"tau": 0.5, "kl_weight": {"start": 0, "end": 0.1, "until": 0.2}}], ids=str)
def test_keeps_the_contract_of_a_head(more: dict[str, Any]) -> None:
    testing.check_head(HEAD | more, STUDENT, out_dim=192)
    testing.check_head(HEAD | more, dict(testing.TOY) | {"patch_size": 8, "class_token": False}, out_dim=192)


@pytest.mark.parametrize("overrides", [[], ["student.image_size=32"], ["optimization.layer_decay=0.8"]], ids=str)
def test_the_micro_recipe_trains(overrides: list[str]) -> None:
    testing.check_recipe("dvae-micro", [*SMALL, *overrides])


def test_the_recipe_trains() -> None:
    testing.check_recipe("dvae", ["student.image_size=32", *SMALL])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["student.image_size=100"], r"nearest image_size \[96, 96\]"),
        (["student.num_hidden=10"], "multiple of 4"),
        (["head.tau=0"], "temperature stays above 0"),
        (["head.kl_weight.end=-1"], "negative weight"),
        (["mask={name: random, ratio: 0.5}"], "student 'dvae_encoder' cannot"),
        (["teacher={name: kmeans, teacher: pixel, num_codes: 8}"], "compares vectors"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(changes: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load("dvae-micro", changes)


@pytest.mark.parametrize(
    ("student", "out_dim", "problem"),
    [
        (testing.TOY, 48, r"stand for \(4, 4\)"),
        (STUDENT, 8, "the target has 8; use teacher pixel"),
        (dict(testing.TOY) | {"patch_size": 8, "masking": "drop"}, 192, "drops hidden ones"),
    ],
)
def test_a_student_or_target_that_does_not_fit_is_refused(student: Any, out_dim: int, problem: str) -> None:
    config = plugins()["students"][student["name"]].Config(**student)
    with pytest.raises(ValueError, match=problem):
        plugins()["heads"]["gumbel"].Config(**HEAD).build(config.build(), out_dim)


def test_predictions_are_in_the_order_of_the_query(images: Tensor) -> None:
    student, head = made(kl_weight=1.0)
    encoded, order = student(View(images)), torch.tensor([[5, 0, 3], [2, 2, 4]])
    all_, some = head.eval()(encoded, EVERYWHERE), head(encoded, Query(order))
    for row in range(2):
        assert some.preds[row].equal(all_.preds[row, order[row]])
        assert some.penalty[row].equal(all_.penalty[row, order[row]])


def test_the_image_is_the_mean_of_its_patches(images: Tensor) -> None:
    student, head = made(kl_weight=1.0)
    encoded = student(View(images))
    patches, image = head.eval()(encoded, EVERYWHERE), head(encoded, Query(None))
    assert_close(image.preds, patches.preds.mean(1, keepdim=True))
    assert_close(image.penalty, patches.penalty.mean(1, keepdim=True))
    with pytest.raises(ValueError, match="not a class token; use where: all"):
        head(encoded, Query(EVERYWHERE.index, include_class=True))


def test_each_prediction_is_the_patch_of_the_painted_image(images: Tensor) -> None:
    student, head = made()
    encoded = student(View(images))
    painted = head.eval().decoder(head.embed(head.logits(encoded)))
    assert painted.shape == (2, 3, 16, 24)
    teacher = plugins()["teachers"]["pixel"].Config(mean=(-0.125,) * 3, std=(1.25,) * 3).build(student.geometry)
    assert_close(teacher.picture(head(encoded, EVERYWHERE).preds), (painted - 0.1) / 0.8, rtol=0, atol=1e-5)
    wanted = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        head.decoder.blocks.output.conv.w.zero_()
        head.decoder.blocks.output.conv.b.copy_(0.8 * wanted + 0.1)
    picture = teacher.picture(head(encoded, EVERYWHERE).preds)
    assert_close(picture, wanted.view(1, 3, 1, 1).expand(2, 3, 16, 24), rtol=0, atol=1e-6)


def test_one_code_paints_about_its_own_patch() -> None:
    """An upsampled token is 8 x 8 pixels; the decoder's 3 x 3 convolutions let its neighbours see it, no further here."""
    _, head = made()
    ids = torch.zeros(1, 12, 5, 5)
    ids[:, 0] = 1.0
    other = ids.clone()
    other[0, :, 2, 2] = 0
    other[0, 7, 2, 2] = 1.0
    changed = (head.eval().decoder(head.embed(ids)) != head.decoder(head.embed(other))).any(1)[0]
    assert changed[16:24, 16:24].all()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(0, 2**31))
def test_kl_is_zero_for_uniform_and_log_k_for_one_hot(num_codes: int, seed: int) -> None:
    uniform = torch.full((1, num_codes, 2, 3), float(seed % 7))
    assert uniform_kl(uniform).abs().max() < 1e-5
    hot = torch.zeros(1, num_codes, 2, 3)
    hot[:, seed % num_codes] = 100.0
    assert_close(uniform_kl(hot), torch.full((1, 6), math.log(num_codes)), rtol=1e-5, atol=1e-5)
    random = uniform_kl(torch.randn(1, num_codes, 2, 3, generator=torch.Generator().manual_seed(seed)))
    assert ((random > -1e-5) & (random < math.log(num_codes) + 1e-5)).all()


def test_the_penalty_is_the_scheduled_weight_times_kl(images: Tensor) -> None:
    student, head = made(kl_weight={"start": 0, "end": 2, "until": 0.5})
    encoded = student(View(images))
    kl = uniform_kl(head.logits(encoded))
    assert kl.min() > 0
    for step, weight in [(0, 0.0), (25, 1.0), (50, 2.0), (90, 2.0)]:
        head.on_step_start(Progress(step, 100, 10))
        assert_close(head(encoded, EVERYWHERE).penalty, weight * kl)


def test_codes_are_hard_where_the_temperature_nears_zero(images: Tensor) -> None:
    student, head = made(tau={"start": 1, "end": 1e-4, "until": 1})
    logits = head.logits(student(View(images)))
    table = (head.codes.w.flatten(1).mT + head.codes.b).unsqueeze(1)  # K, 1, num_init

    def distance() -> float:
        """Largest distance of a relaxed code to the nearest of the codes."""
        relaxed = head.embed(logits).permute(0, 2, 3, 1).reshape(1, -1, 8)
        return float((relaxed - table).norm(dim=-1).min(0).values.max().detach())

    soft = distance()
    head.on_step_start(Progress(100, 100, 10))
    assert distance() < 1e-3 < 0.1 < soft
    counts = torch.zeros(12)
    skewed = torch.zeros(1, 12, 1, 1)
    skewed[:, 3] = math.log(9.0)  # 9 of 20
    for _ in range(500):
        nearest = (head.embed(skewed).flatten() - table[:, 0]).norm(dim=-1).argmin()
        counts[nearest] += 1
    assert abs(counts[3] / 500 - 0.45) < 5 * math.sqrt(0.45 * 0.55 / 500), (
        "Gumbel noise draws codes by their probability"
    )


def test_eval_takes_the_best_code_without_noise(images: Tensor) -> None:
    student, head = made()
    logits = head.eval().logits(student(View(images)))
    assert head.embed(logits).equal(head.embed(logits))
    assert_close(
        head.embed(logits), head.codes(torch.nn.functional.one_hot(logits.argmax(1), 12).permute(0, 3, 1, 2).float())
    )
    noisy = [head.train().embed(logits) for _ in range(2)]
    assert not noisy[0].equal(noisy[1])


def test_the_gradient_reaches_encoder_codes_and_decoder(images: Tensor) -> None:
    student, head = made()
    said = head(student(View(images)), EVERYWHERE)
    assert said.penalty.abs().max() == 0
    said.preds.square().mean().backward()
    for part in (student, head.output, head.codes, head.decoder):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_logits_stay_float32_under_autocast(images: Tensor) -> None:
    student, head = made(kl_weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = student(View(images))
        said = head(encoded, EVERYWHERE)
    assert encoded.tokens.dtype == said.preds.dtype == torch.bfloat16
    assert said.penalty.equal(uniform_kl(head.logits(encoded)))


def test_health_tells_collapse(images: Tensor) -> None:
    student, head = made()
    with torch.no_grad():
        head.output.w.zero_()
        head.output.b.zero_()[5] = 1.0
    head.on_step_start(Progress(50, 100, 10))
    head(student(View(images)), EVERYWHERE)
    health = {name: value.item() for name, value in head.health.items()}
    q = math.e / (math.e + 11)
    kl = math.log(12) + q * math.log(q) + (1 - q) * math.log((1 - q) / 11)
    assert health == pytest.approx({"used": 1 / 12, "perplexity": 1.0, "tau": (1 + 1 / 16) / 2, "kl": kl}, abs=1e-6)


def trained(folder: Path) -> Path:
    """The weights folder of a run of four steps."""
    train = ["train", "dvae-micro", *SMALL, "student.image_size=32", "batch=8", "epochs=1"]
    where = ["--data", "shapes:train=32,val=8", "--out", str(folder), "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "unimim", *train, *where], check=True, capture_output=True, timeout=300)
    return folder / "weights"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run") / "one")


def test_two_runs_are_bitwise_equal(weights: Path, tmp_path: Path) -> None:
    one, two = (load_file(folder / "objective.safetensors") for folder in (weights, trained(tmp_path / "two")))
    assert one.keys() == two.keys()
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    torch.manual_seed(0)
    start = Objective(load(weights / "recipe.yaml")).state_dict()
    assert any(not tensor.equal(one[name]) for name, tensor in start.items())


def tokenizer(weights: Path, **fields: Any) -> dict[str, Any]:
    return {"name": "dvae", "weights": str(weights), "vocab_size": 12, "num_hidden": 4, "blocks_per_group": 1} | fields


def test_the_teacher_gives_the_ids_of_the_trained_head(weights: Path) -> None:
    objective = Objective(load(weights / "recipe.yaml")).eval()
    objective.load_training_state(load_file(weights / "objective.safetensors"))
    image = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    head = objective.terms["mim"].head
    with torch.no_grad():
        own = head.logits(objective.student(View(image))).argmax(1).flatten(1)
    teacher = plugins()["teachers"]["dvae"].Config(**tokenizer(weights)).build(Geometry((64, 64), (4, 4), 16))
    assert teacher.rendition == Rendition((32, 32), "lanczos")
    view = View(torch.zeros(16, 3, 64, 64), {teacher.rendition: image})
    assert teacher(view).tokens.equal(own)
    state = {f"student.{name}": tensor for name, tensor in objective.student.state_dict().items()}
    theirs = teacher.encoder.state_dict()
    assert theirs["blocks.output.conv.w"].equal(head.output.w)
    assert all(tensor.equal(theirs[name.removeprefix("student.")]) for name, tensor in state.items())


def test_beit_trains_on_its_codes(weights: Path) -> None:
    teacher = f"teacher={yaml.safe_dump(tokenizer(weights), default_flow_style=True)}"
    changes = [teacher, "student.depth=1", "student.image_size=32"]
    testing.check_recipe("beit-micro", changes)
    recipe = load("beit-micro", changes)
    objective = Objective(recipe)
    assert objective.renditions == (Rendition((32, 32), "lanczos"),)
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    (prediction,) = objective.predictions(sampling.collate([sampling(image, 0, 0)]))["mim"]
    assert prediction.dense.shape == (1, 16)
    assert not any("teachers" in name for name in objective.training_state())


def test_other_sizes_are_refused_with_those_to_set(weights: Path) -> None:
    geometry = Geometry((32, 32), (4, 4), 16)
    for field, value in [("vocab_size", 8192), ("num_hidden", 8), ("blocks_per_group", 2)]:
        config = plugins()["teachers"]["dvae"].Config(**tokenizer(weights, **{field: value}))
        with pytest.raises(ValueError, match=r"must be .*\(vocab_size=12 num_hidden=4 blocks_per_group=1\)"):
            config.build(geometry)


def test_folders_without_a_whole_dvae_are_refused(weights: Path, tmp_path: Path) -> None:
    def refused(problem: str, folder: Path) -> None:
        config = plugins()["teachers"]["dvae"].Config(**tokenizer(folder))
        with pytest.raises(ValueError, match=problem):
            config.build(Geometry((32, 32), (4, 4), 16))

    refused("no whole weights folder; a run writes one, RUN/weights", weights.parent)
    (tmp_path / "recipe.yaml").write_text("")
    refused("no whole weights folder", tmp_path)
    save_file({"student.blocks.0.norm1.weight": torch.zeros(4)}, tmp_path / "objective.safetensors")
    refused("holds no dVAE; train one", tmp_path)
    (tmp_path / "objective.safetensors").write_bytes(b"damaged")
    refused("cannot read weights from", tmp_path)


def test_a_mask_changes_nothing(images: Tensor) -> None:
    student, _ = made()
    nothing = Mask.from_hidden(torch.zeros(2, 6, dtype=torch.bool), 0)
    assert student(View(images), nothing).tokens.equal(student(View(images)).tokens)


def test_fields_are_bounded() -> None:
    for fields in ({"vocab_size": 1}, {"num_hidden": 6}, {"num_init": 0}, {"blocks_per_group": 0}):
        with pytest.raises(ValidationError):
            plugins()["heads"]["gumbel"].Config(**HEAD | fields)
