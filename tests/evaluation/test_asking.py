"""Robustness and shape bias from a fine-tuned classifier on disk to scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.engine import toys
from unimim import weights
from unimim.engine.data.shapes import SHAPES
from unimim.evaluation.classifier import Classifier, save_classifier
from unimim.evaluation.finetuned import ask, finetuned, open_tests
from unimim.evaluation.protocol import Setting, Subject
from unimim.evaluation.robustness import Robustness
from unimim.evaluation.shape_bias import ShapeBias, decide, read_answers, shape_bias
from unimim.training import build

TOLD = {
    "start": "student",
    "pool": "mean",
    "crop_share": 0.5,
    "precision": "float32",
    "described": "fine-tuned by hand",
}


def subject(home: Path) -> Subject:
    recipe = toys.recipe()
    objective = build(recipe)
    weights.save(objective, home / "weights")
    return Subject(home, home / "weights", recipe, objective.student.eval())


def setting(data: str, home: Path) -> Setting:
    return Setting(data, toys.run(home), False, None, lambda text: None)


def tune(home: Path, name: str, classes: tuple[str, ...], bias: Tensor | None = None) -> Classifier:
    """A classifier of random weights, kept as a fine-tuning keeps it."""
    torch.manual_seed(len(name))
    model = Classifier(toys.recipe().student.build(), len(classes), init_scale=10.0).eval()
    if bias is not None:
        model.head.bias.data.copy_(bias)
    (home / "eval" / name).mkdir(parents=True)
    save_classifier(home / "eval" / name, model.state_dict(), toys.recipe(), TOLD, classes)
    return model


def pictures(root: Path, *paths: str) -> str:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24, 20), 30 + 20 * number).convert("RGB").save(root / path)
    return str(root)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_robustness_asks_among_the_classes_of_each_folder(home: Path, tmp_path: Path) -> None:
    """A classifier that prefers n3 always, then n1: right wherever n1 is shown, if n3 is not in the folder."""
    tune(home, "finetune-1", ("n0", "n1", "n2", "n3"), torch.tensor([0.0, 1e3, 0.0, 2e3]))
    few = pictures(tmp_path / "few", "n1/a.png", "n1/b.png", "n1/c.png", "n2/a.png")
    more = pictures(tmp_path / "more", "n1/a.png", "n1/b.png", "n3/a.png")
    protocol = Robustness.of(toys.recipe(), (f"data=[{few},{more}]",))
    scores = protocol.measure(subject(home), setting("shapes", home))
    assert [(score.metric, score.value) for score in scores] == [("top-1, few", 75), ("top-1, more", 33.33)]
    assert (
        scores[0].protocol == "argmax over the 2 classes of the set, of 4; shown as in the test of: fine-tuned by hand"
    )
    alone = Robustness.of(toys.recipe(), ()).measure(subject(home), setting(few, home))
    assert alone == scores[:1]
    with pytest.raises(ValueError, match=r"robustness\.data: .*two are alike"):
        Robustness.of(toys.recipe(), ("data=[a/val,b/val/]",))


def test_shape_bias_keeps_its_decisions_and_scores_those_of_others(home: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "cues", "cat1-dog2.png", "dog1-cat1.png", "dog3-dog1.png")
    tune(home, "finetune-1", ("ape", "cat", "dog"), torch.tensor([80.0, 40.0, 0.0]))
    csv = tmp_path / "human.csv"
    csv.write_text("object_response,category,imagename\ncat,cat,cat1-dog2.png\ncat,cat,cat2-dog2.png\n")
    protocol = ShapeBias.of(toys.recipe(), (f"data={data}", f"csv={csv}"))
    asked = subject(home)
    protocol.check(asked, setting("shapes", home))
    scores = protocol.measure(asked, setting("shapes", home))
    assert [(score.metric, score.value) for score in scores] == [
        ("shape bias", 50),
        ("shape bias, cat", 100),
        ("shape bias, dog", 0),
        ("shape bias of human", 100),
        ("shape bias of human, cat", 100),
    ]
    (kept,) = (home / "eval").glob("shape-bias-*/decisions.csv")
    answers = read_answers(kept)
    assert [(answer.image, answer.said) for answer in answers] == [
        ("cat1-dog2.png", "cat"),
        ("dog1-cat1.png", "cat"),
        ("dog3-dog1.png", "cat"),
    ]
    assert shape_bias(answers).pooled.bias == 0.5


def test_shapes_take_part_in_both(home: Path) -> None:
    tune(home, "finetune-1", SHAPES)
    spec = "shapes:split=cue-conflict,val=30,size=16"
    (score,) = Robustness.of(toys.recipe(), (f"data={spec.replace('cue-conflict', 'sketch')}",)).measure(
        subject(home), setting("shapes", home)
    )
    assert (score.metric, score.interval is not None) == ("top-1, shapes:split=sketch,val=30,size=16", True)
    bias = ShapeBias.of(toys.recipe(), (f"data={spec}",)).measure(subject(home), setting("shapes", home))
    assert "the whole image" in bias[0].protocol
    (kept,) = (home / "eval").glob("shape-bias-*/decisions.csv")
    trained, source = finetuned(subject(home), None), open_tests(spec)
    whole, cut = (decide(ask(trained, source, toys.run(home), 7, way), SHAPES, source, spec) for way in (True, False))
    assert read_answers(kept) == whole
    assert whole != cut
    with pytest.raises(ValueError, match="use shapes:split=cue-conflict"):
        ShapeBias.of(toys.recipe(), ()).check(subject(home), setting("shapes:val=4", home))


def test_a_classifier_that_is_missing_or_strange_is_said(home: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "few", "n1/a.png", "n9/b.png")
    asked, on = subject(home), setting(data, home)
    for protocol in (Robustness(), ShapeBias()):
        with pytest.raises(ValueError, match=r"no fine-tuned classifier yet; first do: unimim eval .* --task finetune"):
            protocol.measure(asked, on)
    tune(home, "finetune-1", ("n0", "n1"))
    with pytest.raises(ValueError, match="few: 1 of its 2 class folders are no class of the classifier"):
        Robustness.of(toys.recipe()).measure(asked, on)
    flat = pictures(tmp_path / "flat", "a.png", "b.png")
    with pytest.raises(ValueError, match="flat has no labels"):
        Robustness.of(toys.recipe(), (f"data={flat}",)).check(asked, on)
    with pytest.raises(ValueError, match=r"flat/a\.png: not named by its cues"):
        ShapeBias.of(toys.recipe(), (f"data={flat}",)).check(asked, on)


def test_the_newest_fine_tuning_is_asked_or_the_one_that_is_named(home: Path) -> None:
    for age, name in enumerate(("finetune-new", "finetune-old")):
        tune(home, name, ("x", name))
        time = 1e9 - 100 * age
        os.utime(home / "eval" / name / "classifier.json", (time, time))
    (home / "eval" / "finetune-unfinished").mkdir()
    asked = subject(home)
    assert finetuned(asked, None).classes == ("x", "finetune-new")
    assert finetuned(asked, home / "eval" / "finetune-old").classes == ("x", "finetune-old")


def test_images_are_shown_as_in_the_fine_tunings_test_or_whole_and_pixel_for_pixel(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "same" / "a"
    data.mkdir(parents=True)
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(data / "1.png")
    tune(home, "finetune-1", ("a", "b"))
    trained, source = finetuned(subject(home), None), open_tests(str(tmp_path / "same"))
    seen: list[Any] = []
    trained.model.student.register_forward_pre_hook(lambda module, given: seen.append(given[0].pixels()))
    for whole in (True, False):
        list(ask(trained, source, toys.run(home), 4, whole))
    shown = pixels.permute(2, 0, 1) / 255
    assert torch.equal(seen[0][0], shown)
    assert not torch.equal(seen[1][0], shown)
