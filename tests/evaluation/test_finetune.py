"""Fine-tuning: settings by size, mixing and augmentation by address, a run that ends, goes on and can be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.engine import toys
from tests.evaluation.test_heads import setting, subject
from unimim import load
from unimim.evaluation.augment import augment, seeded
from unimim.evaluation.classifier import CentralCrop, Classifier, Mixing, load_classifier
from unimim.evaluation.finetune import FineTune
from unimim.evaluation.supervised import Preempted
from unimim.training import build
from unimim.types import Batch, View

SHORT = ("epochs=2", "batch=20", "optimization.warmup_epochs=0")


def test_the_papers_settings_by_size() -> None:
    found = {size: FineTune.of(load(f"maskdistill{size}")) for size in ("", "-large", "-huge")}
    table13 = {
        size: (
            f.optimization.lr,
            f.epochs,
            f.optimization.warmup_epochs,
            f.optimization.layer_decay,
            f.student["drop_path"],
        )
        for size, f in found.items()
    }
    assert table13 == {
        "": (5e-4, 100, 20, 0.65, 0.1),
        "-large": (5e-4, 50, 5, 0.8, 0.2),
        "-huge": (2e-4, 30, 5, 0.85, 0.25),
    }
    assert {f.student["relative_positions"] for f in found.values()} == {"per_block"}
    assert {(f.batch, f.mixup, f.cutmix, f.erasing, f.smoothing, f.augment) for f in found.values()} == {
        (1024, 0.8, 1.0, 0.25, 0.1, "rand-m9-mstd0.5-inc1")
    }


@pytest.mark.parametrize("name", ["mae-micro", "beit-micro"])
def test_a_finetuning_leaves_a_classifier_that_answers_as_it_scored(name: str, tmp_path: Path) -> None:
    measured, how = subject(tmp_path, name), setting(tmp_path)
    protocol = FineTune.of(measured.recipe, SHORT)
    scores = protocol.measure(measured, how)
    (folder,) = (tmp_path / "eval").glob("finetune-*")
    trained, source = load_classifier(folder), how.open("val")
    images = torch.stack([trained.prepare(source.read(index)) for index in range(len(source))])
    labels = torch.tensor([source.label(index) for index in range(len(source))])
    with torch.no_grad():
        right = (trained.model.answers(View(images)).argmax(1) == labels).float().mean()
    assert scores[0].value == pytest.approx(100 * right.item())
    assert trained.classes == source.classes
    tests = [
        row["test"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "test" in row
    ]
    assert scores[1].metric == "top-1, best epoch"
    assert scores[1].value == pytest.approx(max(tests))
    assert protocol.measure(measured, how) == scores


def test_a_stopped_finetuning_ends_with_the_same_bits(tmp_path: Path) -> None:
    protocol, ends = FineTune.of(toys.recipe(), SHORT), []
    for name, stop in (("a", None), ("b", 3)):
        how, measured = setting(tmp_path / name), subject(tmp_path / name)
        if stop:
            broken = how.run.model_copy(update={"stop_after": stop})
            with pytest.raises(Preempted):
                protocol.measure(measured, type(how)(how.data, broken, False, None, print))
        protocol.measure(measured, how)
        (folder,) = (tmp_path / name / "eval").glob("finetune-*")
        ends.append(load_classifier(folder).model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_unused_parameters_are_not_trained() -> None:
    student = build(toys.recipe("beit-micro")).student.adapt(relative_positions="per_block")
    model = Classifier(student, 2, labels=[0, 1])
    images = torch.rand(2, 3, *student.geometry.image)
    model.freeze_unused(Batch({"main": View(images)}, {}, torch.arange(2)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {"student.mask_token", "student.norm.weight", "student.norm.bias"} <= frozen
    model(Batch({"main": View(images)}, {}, torch.arange(2)))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_mixing_keeps_the_mass_of_labels_and_depends_on_the_step_alone() -> None:
    mixing, images, labels = Mixing(0.8, 1.0, 1.0, 0.5, 0), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    untouched = images.clone()
    seen = set()
    for step in range(12):
        mixed, soft = mixing(images, labels, 5, 0.1, step)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        assert torch.equal(mixing(images, labels, 5, 0.1, step)[0], mixed)
        seen.add(round(soft.max().item(), 4))
    assert torch.equal(images, untouched)
    assert len(seen) > 6, "every step draws its own share"


def test_augmentation_is_a_function_of_the_address() -> None:
    make = augment((16, 16), 0, auto="rand-m9-mstd0.5-inc1", erasing=0.5)
    image = toys.Noise().read(0)
    with seeded(5):
        first = [make(image, 0, index)[1] for index in range(40)]
    again = [make(image, 0, index)[1] for index in reversed(range(40))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(one.flatten()[:50].tolist()) for one in first}) > 35
    assert not torch.equal(first[0], make(image, 1, 0)[1])


def test_global_generators_are_as_before() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with seeded(1, 2):
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("height", "width"), [(20, 18), (7, 40), (16, 16), (300, 100)])
def test_the_central_crop_has_the_size_for_every_image(height: int, width: int) -> None:
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    shown = CentralCrop((16, 16), 0.875)(image)
    assert shown.shape == (3, 16, 16)
    assert shown.unique().tolist() == [77]


def test_what_cannot_be_finetuned_is_refused_before_it_starts(tmp_path: Path) -> None:
    measured, how = subject(tmp_path), setting(tmp_path)
    with pytest.raises(ValueError, match=r"batch: 9 must be even"):
        FineTune.of(measured.recipe, ("batch=9",)).check(measured, how)
    with pytest.raises(ValueError, match="no depht"):
        FineTune.of(measured.recipe, ("batch=10", "student.depht=3")).check(measured, how)
    with pytest.raises(ValueError, match=r"its weights cannot follow drop_path=0\.1, depth=3"):
        FineTune.of(measured.recipe, ("batch=10", "student.depth=3")).check(measured, how)
    with pytest.raises(ValueError, match=r"finetune\.epochs: input should be greater than 0"):
        FineTune.of(measured.recipe, ("epochs=0",))
    with pytest.raises(ValueError, match="40 training images make no batch"):
        FineTune.of(measured.recipe, ("batch=64",)).check(measured, how)
