"""The laws of MimCo, and its recipes in one process and in two. Every component is the core's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from unimim import Batch, Mask, Objective, View, load, testing

STUDENT = [
    *("student.image_size=64", "student.patch_size=16", "student.dim=16", "student.depth=2", "student.num_heads=2"),
    *("student.drop_path=0", "precision=float32"),
]


def overrides(teacher: str) -> list[str]:
    """A small student of 4 x 4 tokens, and this teacher for both terms."""
    return [*STUDENT, *(f"terms.{term}.teacher={teacher}" for term in ("patches", "image"))]


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as MoCo v3 writes it, of timm's smallest ViT: two encoders, the part that is read being the first."""
    path = tmp_path_factory.mktemp("moco") / "vit-tiny.pth.tar"
    state = {}
    for seed, part in enumerate(("base", "momentum")):
        torch.manual_seed(seed)
        weights = timm.create_model("test_vit", num_classes=0).state_dict()
        state |= {f"module.{part}_encoder.{name}": tensor for name, tensor in weights.items()}
    torch.save({"epoch": 300, "arch": "vit_tiny", "state_dict": state}, path)
    return path


@pytest.fixture
def small(file: Path) -> list[str]:
    imagenet = "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]"
    return overrides(f"{{name: timm, model: test_vit, checkpoint: {file}, prefix: module.base_encoder., {imagenet}}}")


def draw(objective: Objective, size: int = 3, num_hidden: int = 10) -> Batch:
    """Random images, and cuts of them for the teacher, with `num_hidden` of 16 patches hidden."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(size, 3, 64, 64, generator=generator)
    cuts = {rendition: F.interpolate(image, rendition.size) for rendition in objective.renditions}
    hidden = torch.rand(size, 16, generator=generator).argsort(1).argsort(1) < num_hidden
    return Batch({"main": View(image, cuts)}, {"main": (Mask.from_hidden(hidden, num_hidden),)}, torch.arange(size))


def made(changes: list[str]) -> tuple[Objective, Batch]:
    torch.manual_seed(0)
    objective = Objective(load("mimco", changes))
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return objective, draw(objective)


@pytest.mark.parametrize("name", ["mimco", "mimco-base", "mimco-micro"])
def test_trains(name: str, small: list[str]) -> None:
    testing.check_recipe(name, small)


def test_two_processes_compute_what_one_computes(small: list[str]) -> None:
    testing.check_processes("mimco", small)


def test_both_terms_listen_to_one_frozen_teacher_that_runs_once(small: list[str], file: Path) -> None:
    objective, batch = made(small)
    (teacher,) = objective.teachers.values()
    calls: list[Any] = []
    teacher.register_forward_hook(lambda module, args, out: calls.append(args))
    objective(batch)["loss"].backward()
    assert len(calls) == 1
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not [name for name in objective.training_state() if name.startswith("teachers.")]
    stored = torch.load(file, weights_only=True)["state_dict"]
    own: Any = teacher
    assert own.model.norm.weight.equal(stored["module.base_encoder.norm.weight"])
    assert own.model.blocks[0].attn.qkv.weight.equal(stored["module.base_encoder.blocks.0.attn.qkv.weight"])


def test_both_losses_are_classifications_of_unit_vectors(small: list[str]) -> None:
    """A hidden patch among all patches of its image, and an image among all images."""
    objective, batch = made([*small, "terms.patches.loss.temperature=0.3"])
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded, target = objective.student(view, mask), next(iter(objective.teachers.values()))(view)

    def cost(pred: Tensor, keys: Tensor, own: Tensor, temperature: float) -> float:
        logits = F.normalize(pred, dim=-1) @ F.normalize(keys, dim=-1).mT / temperature
        return F.cross_entropy(logits, own).item()

    project: Any = objective.terms["patches"].head
    patches = [
        cost(project.proj(tokens[hidden]), keys, hidden, 0.3)
        for tokens, keys, hidden in zip(encoded.tokens, target.tokens, mask.hidden_index, strict=True)
    ]
    project = objective.terms["image"].head
    image = cost(project.proj(encoded.prefix[:, 0]), target.image[:, 0], torch.arange(3), 0.2)
    losses = objective(batch)
    assert losses["patches"].item() == pytest.approx(sum(patches) / 3, rel=1e-5)
    assert losses["image"].item() == pytest.approx(image, rel=1e-5)
    assert losses["loss"].item() == pytest.approx((losses["patches"] + losses["image"]).item(), rel=1e-6)


def test_predicting_nothing_costs_the_logarithm_of_the_number_of_keys(small: list[str]) -> None:
    """16 patches of the image, hidden or not; 3 images; with negatives world the 3 x 10 hidden patches of the batch."""
    for changes, keys in (([], 16), (["terms.patches.loss.negatives=world"], 30)):
        objective, batch = made([*small, *changes])
        with torch.no_grad():
            for branch in objective.terms.values():
                for parameter in branch.head.parameters():
                    parameter.zero_()
        losses = objective(batch)
        assert losses["patches"].item() == pytest.approx(math.log(keys), rel=1e-6)
        assert losses["image"].item() == pytest.approx(math.log(3), rel=1e-6)


def test_other_images_are_negatives_of_the_image_term_alone(small: list[str]) -> None:
    objective, batch = made(small)
    alone = replace(batch, views={"main": first(batch.views["main"])}, index=batch.index[:1])
    alone = replace(alone, masks={"main": (Mask.from_hidden(batch.masks["main"][0].hidden[:1], 10),)})
    (_, patches), (_, image) = ((name, steps[0]) for name, steps in objective.predictions(batch).items())
    for term, step in (("patches", patches), ("image", image)):
        costs = objective.terms[term].distances(step.preds[0], step.target, None, step.dense)
        mine = costs[0].mean().item()
        assert (objective(alone)[term].item() == pytest.approx(mine, rel=1e-5)) == (term == "patches")
    assert objective(alone)["image"].item() == pytest.approx(0, abs=1e-6), "one image has no negatives"


def first(view: View) -> View:
    return View(view.image[:1], {rendition: cut[:1] for rendition, cut in view.renditions.items()})


def test_equal_images_are_each_others_negatives(small: list[str]) -> None:
    objective, batch = made(small)
    view = first(batch.views["main"])
    view = View(view.image.expand(4, -1, -1, -1), {r: cut.expand(4, -1, -1, -1) for r, cut in view.renditions.items()})
    mask = Mask.from_hidden(batch.masks["main"][0].hidden[:1].expand(4, -1), 10)
    losses = objective(Batch({"main": view}, {"main": (mask,)}, torch.arange(4)))
    assert losses["image"].item() == pytest.approx(math.log(4), abs=1e-5)


def test_hidden_pixels_reach_the_targets_and_not_the_predictions(small: list[str]) -> None:
    objective, batch = made(small)
    objective.eval()
    view, (mask,) = batch.views["main"], batch.masks["main"]
    pixels = mask.hidden.view(-1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    image = torch.where(pixels, 1 - view.image, view.image)
    other = View(image, {rendition: F.interpolate(image, rendition.size) for rendition in view.renditions})
    before, after = (objective.predictions(replace(batch, views={"main": each})) for each in (view, other))
    for name in before:
        assert before[name][0].preds[0].equal(after[name][0].preds[0])
        assert not before[name][0].target.equal(after[name][0].target)


def test_the_recipe_is_the_row_and_knows_the_twelve_heads_of_the_small_teacher() -> None:
    axes = {"teacher": "MoCov3", "student": "ViT", "head": "FC", "norm": "/", "loss": "InfoNCE"}
    for name, heads, letter in (("mimco", 12, "s"), ("mimco-base", None, "b")):
        assert load(name).axes() == axes
        teacher: Any = load(name).terms["image"].teacher
        assert teacher == load(name).terms["patches"].teacher
        assert (teacher.num_heads, teacher.prefix) == (heads, "module.base_encoder.")
        assert teacher.checkpoint == f"weights/vit-{letter}-300ep.pth.tar", "where `unimim teachers fetch` puts it"
    assert load("mimco").epochs == 100


def test_without_the_teachers_file_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in (("mimco", "no checkpoint at weights/vit-s"), ("mimco-micro", "runs/clip-teacher holds no")):
        with pytest.raises(ValueError, match=message):
            Objective(load(name, STUDENT))
