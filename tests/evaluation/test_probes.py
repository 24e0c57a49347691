"""k-NN equals DINO's; the linear probe finds what is linear; features are read in one place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import toys
from unimim.evaluation.features import Features, pixel_features, standardize, student_features
from unimim.evaluation.gallery import gallery
from unimim.evaluation.knn import knn, knn_scores, votes
from unimim.evaluation.linear import fit_logistic, linear_probe
from unimim.evaluation.probes import Probes, Results
from unimim.evaluation.score import accuracy
from unimim.evaluation.sources import Chosen, spread
from unimim.training import build

GOLDENS = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parents[1] / "parity" / "data"))


def test_votes_and_predictions_equal_dinos() -> None:
    golden = np.load(GOLDENS / "piece_dino_knn.npz", allow_pickle=False)
    train = Features(torch.tensor(golden["in/train_features"]), torch.tensor(golden["in/train_labels"]), "golden")
    test, labels = torch.tensor(golden["in/test_features"]), golden["in/test_labels"]
    for k in golden["in/ks"].tolist():
        found = votes(train, test, int(golden["in/num_classes"]), k, float(golden["in/T"]))
        torch.testing.assert_close(found, torch.tensor(golden[f"votes/k{k}"]), rtol=1e-5, atol=0)
        assert (found.argmax(1).numpy() == golden[f"predictions/k{k}"]).all()
        scores = knn_scores(train, Features(test, torch.tensor(labels), ""), (k,), float(golden["in/T"]))
        assert [score.value for score in scores] == pytest.approx(golden[f"top1_top5/k{k}"].tolist(), abs=0.005)


def clusters(n: int, seed: int) -> Features:
    """Three classes along one of many noisy columns of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    values = torch.randn(n, 8, generator=generator) * torch.tensor([1e3, 1, 1, 1, 1, 1, 1, 1e-3])
    values[:, 7] += labels * 0.01
    return Features(values, labels, "made")


def test_the_linear_probe_is_blind_to_scale_and_knn_is_not() -> None:
    train, test = clusters(600, 0), clusters(300, 1)
    assert linear_probe(train, test).value > 95
    assert knn(train, test).value < 60


def test_logistic_regression_is_at_its_optimum() -> None:
    train = clusters(300, 0)
    x, _ = standardize(train.values, train.values)
    layer = fit_logistic(x, train.labels, 3, penalty=0.01, iterations=200)
    loss = torch.nn.functional.cross_entropy(layer(x), train.labels) + 0.005 * layer.weight.square().sum()
    gradient = torch.autograd.grad(loss, list(layer.parameters()))
    assert max(part.abs().max().item() for part in gradient) < 1e-3


def test_a_constant_feature_gives_no_nan() -> None:
    x, _ = standardize(torch.ones(4, 2), torch.ones(4, 2))
    assert torch.equal(x, torch.zeros(4, 2))


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (5, 10), (10, 10), (500, 1000)])
def test_wilsons_interval_holds_the_value_and_stays_within_bounds(correct: int, total: int) -> None:
    score = accuracy("linear", correct, total, "")
    low, high = score.interval
    assert 0 <= low <= score.value <= high <= 100
    assert not str(low).startswith("-")
    assert high - low < (70 if total == 10 else 7)


def test_features_are_the_same_alone_and_in_a_batch_and_leave_the_student_as_it_was() -> None:
    student = build(toys.recipe("beit-micro")).student.train()
    source = toys.Noise(6)
    whole = student_features(student, source, batch=6)
    parts = student_features(student, source, batch=2)
    torch.testing.assert_close(whole.values, parts.values, atol=1e-5, rtol=1e-5)
    assert whole.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert whole.described == "final norm, mean of patch tokens"
    assert student.training
    assert student_features(student, source, pool="class", block=1).described == "block 1, class token"
    assert not torch.equal(student_features(student, source, pool="class").values, whole.values)
    rounded = student_features(student, source, precision="bfloat16")
    assert rounded.described.endswith("bfloat16")
    torch.testing.assert_close(rounded.values, whole.values, atol=0.05, rtol=0.05)


def test_a_missing_class_token_is_said() -> None:
    student = build(toys.recipe("mae-micro", "student.class_token=false")).student
    with pytest.raises(ValueError, match="no class token"):
        student_features(student, toys.Noise(2), pool="class")


def test_unreadable_images_are_left_out() -> None:
    assert len(pixel_features(toys.Noise(5, bad=(1,)), (16, 16)).labels) == 4


def test_results_are_kept_and_found_again(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "results.jsonl"
    for _ in range(2):
        probes = Probes(spread(toys.Noise(30), 20), toys.Noise(10), Results(path), "cpu", said.append)
        scores = probes.student("key", "mine", toys.recipe(), lambda: build(toys.recipe()).student)
        assert [score.task for score in scores] == ["k-NN", "linear"]
    assert said == ["evaluating mine, seed 0"]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("name", list(toys.RECIPES))
def test_the_gallery_shows_the_same_images_for_every_recipe(name: str) -> None:
    objective = build(toys.recipe(name)).train()
    if objective.needs_fit:
        from unimim.engine.data.loader import first_images
        from unimim.sampling import Sampling
        from unimim.training import plan_of

        sampling = Sampling(objective.recipe, objective.student.geometry, objective.renditions)
        objective.fit(first_images(toys.Noise(), sampling, plan_of(objective.recipe, toys.Noise())))
    rows = gallery(objective, toys.Noise(), [0, 3, 5])
    titles = [row.title for row in rows]
    assert titles[:2] == ["input", "masked input"]
    assert titles[-2:] == ["student's features", "student's attention"]
    assert len(titles) == {"mae-micro": 7, "beit-micro": 6, "data2vec-micro": 7}[name]
    assert all(len(row.images) == 3 and image.shape == (96, 96, 3) for row in rows for image in row.images)
    assert objective.training


def test_the_prediction_row_is_the_image_where_the_prediction_is_the_target() -> None:
    """Undoing MAE's normalization is exact up to eps: a perfect prediction restores the image."""
    from unimim.evaluation.gallery import _undo_norm, example
    from unimim.types import gather

    objective = build(toys.recipe("mae-micro"))
    batch = example(objective, toys.Noise(), [0, 1])
    found = objective.predictions(batch)["mim"][0]
    raw = objective.terms["mim"].teacher[0](batch.views["main"]).tokens
    assert found.query.index is not None
    restored = _undo_norm(found.target, found, raw)
    torch.testing.assert_close(restored, gather(raw, found.query.index), atol=1e-3, rtol=1e-3)


def test_a_part_of_a_source_keeps_its_classes_and_is_always_the_same() -> None:
    whole = toys.Noise(200)
    part = spread(whole, 100)
    labels = [part.label(index) for index in range(len(part))]
    assert len(labels) == 100
    assert 25 < sum(labels) < 75, "every other image is of class 1"
    assert labels == [spread(whole, 100).label(index) for index in range(100)]
    assert [spread(whole, None).name(index) for index in range(200)] == [whole.name(index) for index in range(200)]


def test_a_part_of_a_source_is_told_from_every_other_part() -> None:
    source = toys.Noise(10)
    parts = [Chosen(source, places) for places in ([0, 1, 2], [0, 2, 1], [0, 1, 3], [0, 1])]
    assert len({part.fingerprint() for part in parts} | {source.fingerprint()}) == 5
    assert Chosen(source, range(10)).fingerprint() == source.fingerprint()
