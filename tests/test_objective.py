"""Laws of Eq. 1: totals, shared targets, folds, several predictions, where, saliency, self-teachers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from unimim import (
    Batch,
    Encoded,
    Geometry,
    Loss,
    Mask,
    MaskSampler,
    Objective,
    Penalized,
    Progress,
    Query,
    Sampling,
    Student,
    Target,
    Teacher,
    load,
)
from unimim.address import uniform
from unimim.heads.fc import FC
from unimim.health import target_health
from unimim.layers import BatchNorm
from unimim.masks import Random
from unimim.teachers.pixel import Pixel
from unimim.types import TargetSpec, View, gather

STUDENT = {"name": "vit", "image_size": (16, 24), "patch_size": 4, "dim": 8, "depth": 2, "num_heads": 2}
DROP = STUDENT | {"masking": "drop"}
DECODER = {"name": "decoder", "dim": 8, "depth": 1, "num_heads": 2}
EXACT = {"name": "block", "ratio": 0.4, "min_block": 4, "exact": True}
VARYING = {"name": "block", "count": 23, "min_block": 4}
COUNTS = torch.tensor([3, 20, 9, 12, 1, 15])
"""Patches hidden in each of six images where the count varies."""
TERM = {"teacher": "pixel", "head": "fc", "loss": "l2"}
SELF = {"name": "self", "decay": 0.5}
STEP = Progress(0, 10, 5)


def build(**changes: Any) -> Objective:
    data = {"name": "toy", "student": STUDENT, "optimization": {"lr": 1e-3}, "batch": 6, "epochs": 1}
    masks = {} if "masks" in changes else {"mask": EXACT}
    term = {} if "terms" in changes else TERM
    torch.manual_seed(0)
    return Objective(load(data | masks | term | changes))


def draw(objective: Objective, rows: Sequence[int] = range(6)) -> Batch:
    """The batch of these images, collated on its own as a loader would; image i always has the same mask."""
    sampling = Sampling(objective.recipe, objective.student.geometry, objective.renditions)
    pixels = torch.randint(0, 256, (6, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = sampling.collate([sampling(pixels[index], 0, index) for index in rows])
    if objective.recipe.masks["main"].num_hidden((4, 6)) is not None:
        return batch
    hidden = uniform(batch.index, 24, 9).argsort(1).argsort(1) < COUNTS[batch.index, None]
    return Batch(batch.views, {"main": (Mask.from_hidden(hidden),)}, batch.index)


def gradients(objective: Objective) -> Tensor:
    return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


# Totals


@pytest.mark.parametrize("reduction", ["tokens", "images"])
@pytest.mark.parametrize("where", ["hidden", "visible", "all", "image"])
@pytest.mark.parametrize("mask", [EXACT, VARYING], ids=["exact", "varying"])
def test_micro_batches_with_global_totals_add_up_to_the_whole(mask: Any, where: str, reduction: str) -> None:
    objective = build(mask=mask, where=where, reduction=reduction, norm="layer")
    whole = objective(draw(objective))
    whole["loss"].backward()
    expected = gradients(objective)
    objective.zero_grad()
    parts = [draw(objective, rows) for rows in ([0, 1, 2], [3], [4, 5])]
    totals = torch.stack([objective.count(batch) for batch in parts]).sum(0)
    assert torch.equal(totals, objective.count(draw(objective)))
    losses = [objective(batch, totals) for batch in parts]
    for loss in losses:
        loss["loss"].backward()
    torch.testing.assert_close(torch.stack([loss["loss"] for loss in losses]).sum(), whole["loss"])
    torch.testing.assert_close(gradients(objective), expected, rtol=1e-4, atol=1e-6)


def test_reductions_differ_exactly_where_counts_vary() -> None:
    values = {
        (name, reduction): float(objective(draw(objective))["loss"].detach())
        for name, mask in (("exact", EXACT), ("varying", VARYING))
        for reduction in ("tokens", "images")
        for objective in [build(mask=mask, reduction=reduction)]
    }
    assert values["exact", "tokens"] == pytest.approx(values["exact", "images"], rel=1e-6)
    assert values["varying", "tokens"] != pytest.approx(values["varying", "images"], rel=1e-3)


def by_hand(objective: Objective, batch: Batch, index: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared error of the head's answers at `index`, from the equation."""
    view, (mask,) = batch.views["main"], batch.masks["main"]
    branch = objective.terms["mim"]
    with torch.no_grad():
        target = objective.recipe.terms["mim"].norm.build()(objective.teachers["mim"](view).tokens)
        preds = branch.head(objective.student(view, mask), Query(index))
    squares = (preds - gather(target, index)).square().mean(-1)
    return squares.mean() if valid is None else squares[valid].mean()


@pytest.mark.parametrize("mask", [EXACT, VARYING], ids=["exact", "varying"])
def test_the_loss_is_the_equation(mask: Any) -> None:
    for where in ("hidden", "visible", "all"):
        objective = build(mask=mask, where=where, norm="layer")
        batch = draw(objective)
        (drawn,) = batch.masks["main"]
        index, valid = {
            "hidden": (drawn.hidden_index, drawn.hidden_valid),
            "visible": (drawn.visible_index, drawn.visible_valid),
            "all": (torch.arange(24).expand(6, -1), None),
        }[where]
        torch.testing.assert_close(objective(batch)["loss"], by_hand(objective, batch, index, valid))


def test_the_image_is_the_mean_target_where_a_teacher_has_none() -> None:
    objective = build(where="image")
    batch = draw(objective)
    (only,) = objective.predictions(batch)["mim"]
    assert only.preds[0].shape == only.target.shape == (6, 1, 48)
    torch.testing.assert_close(only.target, only.dense.mean(1, keepdim=True))


def test_all_and_class_puts_the_class_token_first() -> None:
    objective = build(teacher=SELF, where="all+class")
    batch = draw(objective)
    (only,) = objective.predictions(batch)["mim"]
    copy = objective.teachers["mim"].copy["student"](batch.views["main"])
    torch.testing.assert_close(only.target, torch.cat([copy.prefix[:, :1], copy.tokens], 1))
    assert objective.count(batch).tolist() == [6 * 25]
    pixels = build(where="all+class")
    with pytest.raises(ValueError, match="needs a teacher that returns a target for the class token"):
        pixels(batch)


@pytest.mark.parametrize("relative", ["none", "shared", "per_block"])
@pytest.mark.parametrize("where", ["hidden", "visible"])
@pytest.mark.parametrize("mask", [EXACT, VARYING], ids=["exact", "varying"])
def test_a_student_spared_what_nobody_reads_learns_the_same(mask: Any, where: str, relative: Any) -> None:
    student = STUDENT | {"relative_positions": relative, "layer_scale": 0.1, "qkv_bias": "qv"}
    objective = build(mask=mask, where=where, student=student)
    batch, seen = draw(objective), list[int]()
    objective.student.blocks[-1].mlp.register_forward_hook(lambda module, x, y: seen.append(y.shape[1]))
    results = []
    for narrows in (objective.narrows, None):
        objective.narrows = narrows
        objective.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        results.append((loss.detach(), gradients(objective)))
    (loss, gradient), (other, whole) = results
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-7)
    mask_ = batch.masks["main"][0]
    asked = mask_.hidden_index if where == "hidden" else mask_.visible_index
    assert seen == [asked.shape[1] + 1, 24 + 1]


def test_nothing_is_spared_where_other_tokens_are_read() -> None:
    assert build().narrows == "hidden"
    assert build(where="all").narrows is None
    assert build(head=DECODER).narrows is None
    assert build(student=DROP, head=DECODER).narrows is None
    assert build(terms={"a": TERM, "b": TERM | {"where": "visible"}}).narrows is None
    assert build(terms={"a": TERM, "b": TERM | {"loss": "l1"}}).narrows == "hidden"


def test_an_image_without_hidden_patches_adds_nothing() -> None:
    objective = build(mask=VARYING, reduction="images")
    batch = draw(objective)
    hidden = batch.masks["main"][0].hidden.clone()
    hidden[2] = False
    loss = objective(Batch(batch.views, {"main": (Mask.from_hidden(hidden),)}, batch.index))["loss"]
    assert loss.isfinite()


# Terms


def test_terms_are_summed_by_their_weight_at_the_progress_of_the_step() -> None:
    ramp = {"start": 0.0, "end": 2.0, "until": 0.5}
    objective = build(terms={"pixels": TERM, "self": TERM | {"teacher": SELF, "weight": ramp}})
    batch = draw(objective)
    for step, weight in ((0, 0.0), (2, 0.8), (5, 2.0), (9, 2.0)):
        objective.on_step_start(Progress(step, 10, 5))
        losses = objective(batch)
        assert [*losses] == ["pixels", "self", "loss"]
        torch.testing.assert_close(losses["loss"], losses["pixels"] + weight * losses["self"])


def test_terms_with_one_teacher_ask_it_once_a_step() -> None:
    layered = SELF | {"layers": [0, 1]}
    objective = build(
        terms={"a": TERM | {"teacher": layered}, "b": TERM | {"teacher": layered, "loss": "l1"}, "c": TERM}
    )
    assert [*objective.teachers] == ["a", "c"]
    calls: list[str] = []
    for name, teacher in objective.teachers.items():
        teacher.register_forward_hook(lambda *_, name=name: calls.append(name))
    objective(draw(objective))
    assert calls == ["a", "c"]
    objective.on_step_end(Progress(0, 10, 5))
    objective(draw(objective))
    assert calls == ["a", "c"] * 2


class Pair(MaskSampler):
    """A random half and its complement."""

    class Config(MaskSampler.Config):
        name: Literal["pair"] = "pair"
        num_folds_: int = 2

        def num_hidden(self, grid: tuple[int, int]) -> int:
            return grid[0] * grid[1] // 2

        @property
        def num_folds(self) -> int:
            return 2

    def sample(self, grid: tuple[int, int], rng: np.random.Generator) -> Any:
        half = rng.permutation(grid[0] * grid[1]) < grid[0] * grid[1] // 2
        return np.stack([half, ~half])


class Twice(FC):
    """The prediction, and a second one at a distance."""

    class Config(FC.Config):
        name: Literal["twice"] = "twice"

    def forward(self, encoded: Encoded, query: Query) -> tuple[Tensor, ...]:
        pred = FC.forward(self, encoded, query)
        return pred, pred + 1


class Dear(FC):
    """A prediction that costs the mean of its squares, and counts how it is used."""

    class Config(FC.Config):
        name: Literal["dear"] = "dear"

    def __init__(self, config: Any, student: Student, out_dim: int) -> None:
        super().__init__(config, student, out_dim)
        self.calls: list[str] = []
        self.fitted: list[Encoded] = []

    @property
    def needs_fit(self) -> bool:
        return not self.fitted

    def fit(self, encoded: Iterable[Encoded]) -> None:
        self.fitted = list(encoded)

    def on_step_start(self, progress: Progress) -> None:
        self.calls.append(f"start {progress.step}")

    def on_step_end(self, progress: Progress) -> None:
        self.calls.append(f"end {progress.step}")

    @property
    def health(self) -> Mapping[str, Tensor]:
        return {"calls": torch.tensor(float(len(self.calls)))}

    def forward(self, encoded: Encoded, query: Query) -> Penalized:  # type: ignore[override]
        pred = FC.forward(self, encoded, query)
        return Penalized((pred, pred + 1), pred.square().mean(-1))


class Predicting(FC):
    """A projection, and a predictor on it that only the student has."""

    class Config(FC.Config):
        name: Literal["predicting"] = "predicting"

    student_only = ("predictor",)

    def __init__(self, config: Any, student: Student, out_dim: int) -> None:
        super().__init__(config, student, out_dim)
        self.predictor = torch.nn.Linear(out_dim, out_dim)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        return self.predictor(self.target(encoded, query))  # type: ignore[no-any-return]

    def target(self, encoded: Encoded, query: Query) -> Tensor:
        return FC.forward(self, encoded, query)


class OtherFold(Teacher):
    """What the student made of the other fold, as it is."""

    class Config(Teacher.Config):
        name: Literal["other"] = "other"
        flows: bool = False

        @property
        def reads_folds(self) -> bool:
            return True

        @property
        def differentiable(self) -> bool:
            return self.flows

    def __init__(self, config: Any, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.spec = config, TargetSpec(geometry.dim)

    def from_folds(self, others: Sequence[Encoded]) -> Target:
        (other,) = others
        return Target(1.0 * other.tokens)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        raise AssertionError("it reads folds")


class Sated(FC):
    """Fits to the first of what the student makes, and leaves the rest."""

    needs_fit = True

    def fit(self, encoded: Iterable[Encoded]) -> None:
        self.eval_mode = not next(iter(encoded)).tokens.requires_grad


def test_a_head_that_has_seen_enough_leaves_the_student_training() -> None:
    objective = build().train()
    objective.branches["mim"].head = Sated(FC.Config(), objective.student, 48)
    objective.fit([draw(objective), draw(objective)])
    assert objective.student.training
    assert objective.branches["mim"].head.eval_mode


class Spread(Loss):
    """The mean absolute difference of the mean prediction and the mean target of a set."""

    class Config(Loss.Config):
        name: Literal["spread"] = "spread"

        @property
        def joint(self) -> bool:
            return True

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        assert pred.shape == target.shape
        return (pred.mean((0, 1)) - target.mean((0, 1))).abs().mean()

    @property
    def health(self) -> Mapping[str, Tensor]:
        return {"told": torch.tensor(7.0)}


class Doubled(Random):
    """Random masks under which the hidden patches of the upper half count twice."""

    class Config(Random.Config):
        name: Literal["doubled"] = "doubled"  # type: ignore[assignment]

        @property
        def weighs(self) -> bool:
            return True

    def weight(self, hidden: Any, grid: tuple[int, int]) -> Any:
        return np.where(np.arange(hidden.shape[1]) < hidden.shape[1] // 2, 2, 1).astype(np.float32)[None]


class Batched(FC):
    """A linear layer of class tokens that lie around the mean of those of all passes."""

    class Config(FC.Config):
        name: Literal["batched"] = "batched"

    def forward_all(self, encoded: Sequence[Encoded], queries: Sequence[Query]) -> list[Any]:
        tokens = torch.cat([one.prefix[:, :1] for one in encoded])
        return [*self.proj(tokens - tokens.mean(0)).split([len(one.prefix) for one in encoded])]


class Bright(Pixel):
    """Pixels, with the brightness of patches as saliency."""

    class Config(Pixel.Config):
        name: Literal["bright"] = "bright"

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        target = Pixel.forward(self, view)
        return Target(target.tokens, saliency=target.tokens.mean(-1))


class Dark(MaskSampler):
    """Hides the least salient third."""

    class Config(MaskSampler.Config):
        name: Literal["dark"] = "dark"

        @property
        def reads_saliency(self) -> bool:
            return True

        def num_hidden(self, grid: tuple[int, int]) -> int:
            return grid[0] * grid[1] // 3

    def sample(self, grid: tuple[int, int], rng: np.random.Generator) -> Any:
        return np.arange(grid[0] * grid[1])[None] < grid[0] * grid[1] // 3

    def from_saliency(self, saliency: Tensor, noise: Tensor) -> tuple[Mask, ...]:
        assert ((noise >= 0) & (noise < 1)).all()
        count = saliency.shape[1] // 3
        return (Mask.from_hidden(saliency.argsort(1).argsort(1) < count, count),)


def test_folds_are_passes_of_the_student_averaged_together(register: Any) -> None:
    register(masks={"pair": Pair})
    objective = build(mask="pair", student=DROP, head=DECODER)
    batch = draw(objective)
    assert len(batch.masks["main"]) == 2
    first, second = batch.masks["main"]
    assert torch.equal(first.hidden, ~second.hidden)
    each = [objective(Batch(batch.views, {"main": (fold,)}, batch.index))["loss"] for fold in (first, second)]
    torch.testing.assert_close(objective(batch)["loss"], torch.stack(each).mean())
    assert objective.count(batch).tolist() == [6 * 24]


def test_losses_of_several_predictions_add(register: Any) -> None:
    register(heads={"twice": Twice})
    both, one = build(head="twice"), build()
    batch = draw(both)
    (only,) = both.predictions(batch)["mim"]
    assert len(only.preds) == 2
    squares = [(pred - only.target).square().mean() for pred in only.preds]
    torch.testing.assert_close(both(batch)["loss"], squares[0] + squares[1])
    assert torch.equal(both.count(batch), one.count(batch))


@pytest.mark.parametrize("mask", [EXACT, VARYING], ids=["exact", "varying"])
@pytest.mark.parametrize("reduction", ["tokens", "images"])
def test_a_penalty_is_added_to_each_query_once(register: Any, mask: Any, reduction: str) -> None:
    register(heads={"dear": Dear, "twice": Twice})
    dear, twice = (build(head=head, mask=mask, reduction=reduction) for head in ("dear", "twice"))
    batch = draw(dear)
    (only,) = dear.predictions(batch)["mim"]
    costs, valid = only.preds[0].square().mean(-1), only.query.valid
    rows = [cost if valid is None else cost[valid[row]] for row, cost in enumerate(costs)]
    expected = torch.cat(rows).mean() if reduction == "tokens" else torch.stack([row.mean() for row in rows]).mean()
    torch.testing.assert_close(dear(batch)["loss"], twice(batch)["loss"] + expected)


@pytest.mark.parametrize("where", ["hidden", "all", "all+class", "image"])
def test_positions_of_more_weight_count_more_and_the_mean_is_over_all_queries(register: Any, where: str) -> None:
    register(masks={"doubled": Doubled})
    teacher = SELF if where == "all+class" else "pixel"
    objective = build(mask="doubled", where=where, teacher=teacher)
    batch = draw(objective)
    (only,) = objective.predictions(batch)["mim"]
    costs = (only.preds[0] - only.target).square().mean(-1)
    if only.query.index is not None:
        weights = 1.0 + (only.query.index < 12)
        costs[:, where == "all+class" :] *= weights
    torch.testing.assert_close(objective(batch)["loss"], costs.mean())


def test_weights_are_refused_where_a_loss_has_no_queries(register: Any) -> None:
    register(losses={"spread": Spread}, masks={"doubled": Doubled})
    with pytest.raises(ValueError, match="one number of all queries, and the mask weighs each"):
        build(loss="spread", mask="doubled")


def test_a_head_may_answer_for_all_passes_at_once(register: Any) -> None:
    register(heads={"batched": Batched}, masks={"pair": Pair})
    objective = build(head="batched", mask="pair", where="image")
    passes = objective.predictions(draw(objective))["mim"]
    preds = torch.cat([p.preds[0] for p in passes])
    bias = objective.terms["mim"].head.proj.bias
    assert [p.preds[0].shape for p in passes] == [(6, 1, 48)] * 2
    torch.testing.assert_close(preds.mean(0), bias.unsqueeze(0), atol=1e-5, rtol=0)
    assert (passes[0].preds[0].mean(0) - bias).abs().max() > 1e-4


def test_a_head_learns_from_data_before_training_and_by_hooks(register: Any) -> None:
    register(heads={"dear": Dear}, masks={"pair": Pair})
    objective = build(head="dear", mask="pair", student=STUDENT | {"drop_path": 0.5})
    head: Any = objective.terms["mim"].head
    first, second = draw(objective, [0, 1]), draw(objective, [2, 3, 4])
    assert objective.needs_fit
    objective.train().fit([first, second])
    assert not objective.needs_fit
    assert objective.student.training
    assert [len(encoded.tokens) for encoded in head.fitted] == [2, 2, 3, 3], "each fold of each batch"
    assert not head.fitted[0].tokens.requires_grad
    with torch.no_grad():
        whole = objective.eval().student(first.views["main"], first.masks["main"][0])
    torch.testing.assert_close(head.fitted[0].tokens, whole.tokens)
    objective.on_step_start(Progress(3, 10, 5))
    objective(first)
    objective.on_step_end(Progress(3, 10, 5))
    assert head.calls == ["start 3", "end 3"]
    assert objective.health["head/mim/calls"] == 1


@pytest.mark.parametrize("flows", [False, True])
def test_the_target_of_one_fold_is_what_the_student_made_of_the_other(register: Any, flows: bool) -> None:
    register(teachers={"other": OtherFold}, masks={"pair": Pair})
    objective = build(teacher={"name": "other", "flows": flows}, mask="pair")
    calls: list[int] = []
    objective.student.register_forward_hook(lambda *_: calls.append(1))
    batch = draw(objective)
    first, second = objective.predictions(batch)["mim"]
    assert len(calls) == 2, "no fold is encoded twice"
    view, folds = batch.views["main"], batch.masks["main"]
    for prediction, other in ((first, folds[1]), (second, folds[0])):
        torch.testing.assert_close(prediction.dense, objective.student(view, other).tokens)
        assert prediction.dense.requires_grad == flows
    with pytest.raises(ValueError, match=r"reads the student's other mask folds, but masks\.main draws one"):
        build(teacher="other")


def test_a_contrast_within_the_image_counts_visible_patches_among_the_negatives() -> None:
    loss = {"name": "info_nce", "temperature": 0.2}
    objective = build(teacher=SELF, loss=loss)
    batch = draw(objective)
    (only,) = objective.predictions(batch)["mim"]
    keys, pred = (torch.nn.functional.normalize(x, dim=-1) for x in (only.dense, only.preds[0]))
    assert only.query.index is not None
    logits = pred @ keys.mT / 0.2
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), only.query.index.flatten())
    torch.testing.assert_close(objective(batch)["loss"], expected)
    among = {"name": "sum", "losses": [{"loss": loss}, {"loss": "l2", "weight": 0.5}]}
    both = build(teacher=SELF, loss=among)
    squares = (only.preds[0] - only.target).square().mean()
    torch.testing.assert_close(both(batch)["loss"], expected + 0.5 * squares)


def test_contrasts_are_refused_where_they_have_no_negatives_or_not_the_same_number_everywhere() -> None:
    within, across = {"name": "info_nce"}, {"name": "info_nce", "negatives": "world"}
    with pytest.raises(ValueError, match="compares patches of one image with each other; negatives: world"):
        build(loss=within, where="image")
    with pytest.raises(ValueError, match="needs the same count in every image"):
        build(loss=across, mask=VARYING)
    assert build(loss=across, mask=VARYING, where="image")(draw(build(mask=VARYING)))["loss"].isfinite()


def test_a_joint_loss_sees_all_folds_and_predictions_at_once(register: Any) -> None:
    register(losses={"spread": Spread}, masks={"pair": Pair}, heads={"twice": Twice})
    objective = build(loss="spread", mask="pair", head="twice")
    batch = draw(objective)
    folds = objective.predictions(batch)["mim"]
    preds = torch.cat([pred for fold in folds for pred in fold.preds])
    targets = torch.cat([fold.target for fold in folds for _ in fold.preds])
    assert preds.shape == (6 * 2 * 2, 12, 48)
    torch.testing.assert_close(objective(batch)["loss"], (preds.mean((0, 1)) - targets.mean((0, 1))).abs().mean())
    assert objective.health["target/mim/told"] == 7


def test_masks_that_follow_saliency_are_drawn_from_the_first_teacher(register: Any) -> None:
    register(teachers={"bright": Bright}, masks={"dark": Dark})
    objective = build(teacher="bright", mask="dark")
    calls: list[int] = []
    objective.teachers["mim"].register_forward_hook(lambda *_: calls.append(1))
    batch = draw(objective)
    (only,) = objective.predictions(batch)["mim"]
    brightness = only.dense.mean(-1)
    assert only.query.index is not None
    assert torch.equal(only.query.index, brightness.argsort(1)[:, :8].sort(1).values)
    assert calls == [1], "the target and the saliency come from one answer"
    assert objective.count(batch).tolist() == [6 * 8]
    plain = build(mask="dark")
    with pytest.raises(ValueError, match="gives no saliency"):
        plain(draw(plain))


def test_several_views_are_passes_with_their_own_masks(register: Any) -> None:
    from unimim.views import Crop

    class Two(Crop):
        """Two crops."""

        class Config(Crop.Config):
            name: Literal["two"] = "two"

            @property
            def names(self) -> tuple[str, ...]:
                return "main", "other"

        def sample(self, *args: Any) -> dict[str, View]:
            return {name: Crop.sample(self, *args)["main"] for name in ("main", "other")}

    register(views={"two": Two})
    term = TERM | {"view": "other", "teacher": SELF}
    objective = build(views="two", masks={"main": EXACT, "other": "none"}, terms={"mim": term})
    batch = draw(objective)
    passes = objective.predictions(batch)["mim"]
    assert [p.preds[0].shape[1] for p in passes] == [9, 0]
    for p in passes:
        assert p.query.box is batch.views["other"].box, "the query tells where the target's view lies"
    target = objective.teachers["mim"](batch.views["other"]).tokens
    assert torch.equal(passes[0].dense, target)


# Self-teachers


def test_the_momentum_copy_follows_e_d_e_plus_1_minus_d_s() -> None:
    ramp = {"start": 0.2, "end": 1.0}
    objective = build(teacher={"name": "self", "decay": ramp, "head": "patches"}, head="fc")
    copy = objective.teachers["mim"].copy
    sources = {"student": objective.student, "head": objective.terms["mim"].head}
    before = {name: parameter.clone() for name, parameter in copy.named_parameters()}
    assert all(torch.equal(before[f"{part}.{n}"], p) for part in sources for n, p in sources[part].named_parameters())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    with torch.no_grad():
        for parameter in [*objective.student.parameters(), *sources["head"].parameters()]:
            parameter.add_(1)
    objective.on_step_end(Progress(5, 10, 5))  # half way: d = 0.6
    for part, source in sources.items():
        for name, parameter in source.named_parameters():
            averaged = copy[part].get_parameter(name)
            torch.testing.assert_close(averaged, 0.6 * before[f"{part}.{name}"] + 0.4 * parameter)


@pytest.mark.parametrize("weights", ["ema", "live"])
@pytest.mark.parametrize("where", ["image", "hidden"])
def test_a_predictor_serves_the_student_alone(register: Any, where: str, weights: str) -> None:
    register(heads={"predicting": Predicting})
    teacher = SELF | {"weights": weights, "head": "image" if where == "image" else "patches", "head_dim": 5}
    objective = build(teacher=teacher, head="predicting", where=where)
    head: Any = objective.terms["mim"].head
    batch = draw(objective)
    encoded = objective.student(batch.views["main"])
    with torch.no_grad():
        tokens = encoded.prefix[:, :1] if where == "image" else encoded.tokens
        expected, seen = head.proj(tokens), head.predictor(head.proj(tokens))
    (only,) = objective.predictions(batch)["mim"]
    torch.testing.assert_close(only.dense, expected.expand(-1, 24, -1))
    torch.testing.assert_close(head(encoded, Query(None if where == "image" else torch.arange(24).expand(6, -1))), seen)
    objective(batch)["loss"].backward()
    assert head.predictor.weight.grad.any()
    copy = objective.teachers["mim"].copy
    if weights == "live":
        assert not copy
        return
    assert [name for name, _ in copy["head"].named_parameters()] == ["proj.weight", "proj.bias"]
    before = copy["head"].proj.weight.clone()
    with torch.no_grad():
        head.proj.weight.add_(1)
    objective.on_step_end(STEP)
    torch.testing.assert_close(copy["head"].proj.weight, before + 0.5)


def test_the_copy_keeps_float32_and_its_buffers_whatever_the_decay() -> None:
    student = STUDENT | {"relative_positions": "shared", "positions": "none"}
    objective = build(teacher={"name": "self", "decay": 0.9999}, student=student)
    copy = objective.teachers["mim"].copy["student"]
    index, start = copy.shared_bias.index.clone(), copy.patch_embed.proj.weight.double()
    with torch.no_grad():
        objective.student.patch_embed.proj.weight.add_(1)
    for step in range(100):
        objective.on_step_end(Progress(step, 100, 5))
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}
    assert torch.equal(copy.shared_bias.index, index)
    moved = copy.patch_embed.proj.weight - start
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.9999**100), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("average", "left"), [("plain", 1.0), ("compensated", 0.99999**4000)])
def test_a_small_step_is_lost_or_kept(average: str, left: float) -> None:
    """A gap of 0.1 % of a weight, at a decay of 0.99999: each step is less than the last bit of float32."""
    objective = build(teacher=SELF | {"average": average, "decay": 0.99999, "head": "patches"})
    copy, weight = objective.teachers["mim"].copy["student"], objective.student.patch_embed.proj.weight
    with torch.no_grad():
        copy.patch_embed.proj.weight.fill_(1.0)
        weight.fill_(1.001)
    for step in range(4000):
        objective.on_step_end(Progress(step, 4000, 5))
    gap = (weight - copy.patch_embed.proj.weight).double() / (weight.double() - 1)
    assert gap.mean().item() == pytest.approx(left, abs=1e-4)
    again = build(teacher=SELF | {"average": average, "decay": 0.99999, "head": "patches"})
    again.load_training_state(objective.training_state())
    for one in (objective, again):
        one.on_step_end(Progress(0, 4000, 5))
    assert again.teachers["mim"].copy["student"].patch_embed.proj.weight.equal(copy.patch_embed.proj.weight)


def test_how_the_copy_is_kept_is_told_where_it_is_unusual() -> None:
    usual, kept = build(teacher=SELF), build(teacher=SELF | {"average": "compensated"})
    assert "average" not in usual.recipe.data()["terms"]["mim"]["teacher"]
    assert kept.recipe.hash != usual.recipe.hash
    assert load(kept.recipe.data()) == kept.recipe
    with pytest.raises(ValueError, match="live weights have none"):
        build(teacher={"name": "self", "weights": "live", "average": "compensated"})


@pytest.mark.parametrize(("update", "moves"), [("step_start", 0), ("step_end", 1), ("epoch_end", 2)])
def test_the_copy_moves_at_the_time_its_config_names(update: str, moves: int) -> None:
    objective = build(teacher=SELF | {"update": update})
    copy = objective.teachers["mim"].copy["student"].patch_embed.proj.weight
    with torch.no_grad():
        objective.student.patch_embed.proj.weight.add_(1)
    moved = []
    hooks = objective.on_step_start, objective.on_step_end, objective.on_epoch_end
    for hook in hooks:
        before = copy.clone()
        hook(Progress(3, 10, 5))
        moved.append(not torch.equal(copy, before))
    assert moved == [number == moves for number in range(3)]
    assert sum(moved) == 1


def test_the_decay_of_an_epoch_is_that_of_its_beginning() -> None:
    ramp = {"start": 0.0, "end": 1.0}
    moved = {}
    for per in ("step", "epoch"):
        objective = build(teacher=SELF | {"decay": ramp, "decay_per": per, "update": "epoch_end"})
        copy = objective.teachers["mim"].copy["student"].patch_embed.proj.bias
        with torch.no_grad():
            objective.student.patch_embed.proj.bias.add_(1)
        before = copy.clone()
        objective.on_epoch_end(Progress(9, 20, 5))  # the last step of the second of four epochs
        moved[per] = float((copy - before).mean())
    assert moved == pytest.approx({"step": 1 - 9 / 20, "epoch": 1 - 5 / 20})


@pytest.mark.parametrize("head", ["patches", "image"])
def test_a_copy_of_the_head_makes_the_target_as_wide_as_it_is_told(head: str) -> None:
    teacher = SELF | {"head": head, "head_dim": 5}
    objective = build(teacher=teacher, where="image" if head == "image" else "hidden")
    batch = draw(objective)
    view, parts = batch.views["main"], objective.teachers["mim"].copy
    encoded = parts["student"](view)
    everywhere = None if head == "image" else torch.arange(24).expand(6, -1)
    expected = parts["head"](encoded, Query(everywhere))
    target = objective.teachers["mim"](view)
    assert objective.terms["mim"].loss.out_dim == 5
    if head == "image":
        assert target.image is not None
        torch.testing.assert_close(target.image, expected)
        torch.testing.assert_close(target.tokens, expected.expand(-1, 24, -1))
    else:
        torch.testing.assert_close(target.tokens, expected)
    assert objective(batch)["loss"].isfinite()


class Normed(FC):
    """A linear layer and a BatchNorm over the queried tokens."""

    class Config(FC.Config):
        name: Literal["normed"] = "normed"

    def __init__(self, config: Any, student: Student, out_dim: int) -> None:
        super().__init__(config, student, out_dim)
        self.norm = BatchNorm(out_dim)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        return self.norm(FC.forward(self, encoded, query))


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_a_copy_normalizes_by_its_running_statistics_or_by_its_batch(register: Any, batch_norm: str) -> None:
    register(heads={"normed": Normed})
    objective = build(teacher=SELF | {"head": "patches", "batch_norm": batch_norm}, head="normed").train()
    teacher, view = objective.teachers["mim"], draw(objective).views["main"]
    norm = teacher.copy["head"].norm
    start = norm.running_mean.clone()
    target = teacher(view).tokens.flatten(0, 1)
    if batch_norm == "batch":
        torch.testing.assert_close(target.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
        assert not norm.running_mean.equal(start), "the running statistics follow the batches"
    else:
        assert target.mean(0).abs().max() > 1e-3
        assert norm.running_mean.equal(start)
    moved = norm.running_mean.clone()
    objective.eval()
    teacher(view)
    assert norm.running_mean.equal(moved), "evaluation moves nothing"
    assert not any(part.training for part in teacher.modules())


def test_the_first_step_starts_before_there_is_anything_to_average() -> None:
    objective = build(teacher=SELF | {"update": "step_start"})
    with torch.no_grad():
        objective.student.patch_embed.proj.weight.add_(1)
    before = objective.teachers["mim"].copy["student"].patch_embed.proj.weight.clone()
    objective.on_step_start(Progress(0, 10, 5))
    assert torch.equal(objective.teachers["mim"].copy["student"].patch_embed.proj.weight, before)


def test_layers_are_normalized_each_and_averaged() -> None:
    objective = build(teacher=SELF | {"layers": [0, 1], "layer_norm": "layer"})
    view = draw(objective).views["main"]
    teacher = objective.teachers["mim"]
    student = teacher.copy["student"]
    x, _ = student.embed(view)
    blocks = []
    for block in student.blocks:
        x, _ = block(x)
        blocks.append(torch.nn.functional.layer_norm(x[:, 1:], (8,)))
    torch.testing.assert_close(teacher(view).tokens, torch.stack(blocks).mean(0))


def test_a_hidden_region_shows_a_dropping_student_what_it_did_not_see() -> None:
    teacher = {"name": "self", "weights": "live", "region": "hidden"}
    objective = build(teacher=teacher, student=DROP, head=DECODER)
    batch = draw(objective)
    view, (mask,) = batch.views["main"], batch.masks["main"]
    target = objective.teachers["mim"](view, mask).tokens
    assert target.shape == (6, 24, 8)
    assert not target[~mask.hidden].any(), "visible positions stay empty"
    complement = Mask.from_hidden(~mask.hidden, 15)
    torch.testing.assert_close(gather(target, mask.hidden_index), objective.student(view, complement).tokens)
    objective(batch)["loss"].backward()
    assert objective.student.patch_embed.proj.weight.grad is not None
    assert not target.requires_grad or target.grad_fn is not None


@pytest.mark.parametrize("flows", [False, True])
def test_the_gradient_flows_through_a_target_only_if_asked(flows: bool) -> None:
    objective = build(teacher={"name": "self", "weights": "live", "differentiable_target": flows})
    (only,) = objective.predictions(draw(objective))["mim"]
    assert only.target.requires_grad == flows


def test_teachers_stay_frozen_whatever_mode_the_engine_sets() -> None:
    objective = build(terms={"a": TERM, "b": TERM | {"teacher": SELF}}, student=STUDENT | {"drop_path": 0.5}).train()
    assert objective.student.training
    assert not any(module.training for module in objective.teachers["b"].modules())
    trained = {name.split(".")[0] for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert trained == {"student", "branches"}
    batch = draw(objective)
    first, second = (objective.predictions(batch)["b"][0] for _ in range(2))
    assert torch.equal(first.target, second.target)
    assert not torch.equal(first.preds[0], second.preds[0]), "drop path works in the student alone"


# State


def test_training_state_comes_back_and_names_what_does_not_fit() -> None:
    objective, other = build(teacher=SELF), build(teacher=SELF, student=STUDENT | {"init": "xavier"})
    state = objective.training_state()
    other.load_training_state(state)
    batch = draw(objective)
    assert torch.equal(objective.eval()(batch)["loss"], other.eval()(batch)["loss"])
    broken = {name: value for name, value in state.items() if name != "student.norm.weight"} | {
        "student.extra": state["student.norm.weight"]
    }
    with pytest.raises(ValueError, match=r"missing \['student.norm.weight'\], unexpected \['student.extra'\]"):
        other.load_training_state(broken)


# Health


def test_health_is_the_mean_and_the_variance_of_each_channel_over_all_tokens() -> None:
    objective = build(norm="layer")
    batch = draw(objective)
    assert objective.health == {}
    objective(batch)
    (only,) = objective.predictions(batch)["mim"]
    dense = only.dense.double().flatten(0, 1)
    variance = dense.var(0, correction=0)
    expected = {"mean": dense.mean(), "variance": variance.mean(), "variance_min": variance.min()}
    expected["variance_max"] = variance.max()
    expected["spread"] = variance.sum() / dense.square().sum(1).mean()
    expected["cosine"] = torch.nn.functional.cosine_similarity(only.preds[0], only.target, dim=-1).mean()
    assert {*objective.health} == {f"target/mim/{name}" for name in expected}
    for name, value in expected.items():
        seen = objective.health[f"target/mim/{name}"]
        assert (seen.shape, seen.requires_grad) == ((), False)
        assert seen.item() == pytest.approx(value.item(), abs=1e-6), name


def test_health_shows_a_collapsed_target() -> None:
    same = torch.randn(1, 1, 8).expand(4, 6, 8)
    found = target_health(same, TargetSpec(8))
    assert found["variance_max"].item() == pytest.approx(0, abs=1e-12)
    assert found["spread"].item() == pytest.approx(0, abs=1e-12)
    assert target_health(torch.randn(1, 500, 8), TargetSpec(8))["spread"] > 0.95
    assert target_health(torch.zeros(2, 3, 8), TargetSpec(8))["spread"] == 0
    assert target_health(torch.zeros(4, 6, dtype=torch.int64), TargetSpec(16, discrete=True))["perplexity"] == 1


@pytest.mark.parametrize(
    ("changes", "values", "cause"),
    [
        ({"teacher": SELF}, {"spread": 1e-5}, "nothing holds the target apart"),
        ({"teacher": SELF, "norm": "layer"}, {"spread": 1e-5}, "raise teacher.decay"),
        ({"teacher": SELF, "norm": "layer"}, {"spread": 0.3, "perplexity": 9.0}, ""),
        ({}, {"spread": 0.0}, "weights are random or damaged"),
        (
            {"teacher": {"name": "kmeans", "teacher": "pixel", "num_codes": 8}, "loss": "cross_entropy"},
            {"perplexity": 1.0},
            "fit it on more or other images",
        ),
    ],
)
def test_a_collapse_is_named_with_its_likely_cause(changes: Any, values: dict[str, float], cause: str) -> None:
    objective = build(**changes)
    found = objective.warnings({f"target/mim/{name}": value for name, value in values.items()})
    assert len(found) == bool(cause)
    assert all(text.startswith("terms.mim: ") and cause in text for text in found)


def test_health_of_ids_counts_those_in_use() -> None:
    ids = torch.tensor([[0, 0, 5, 5], [9, 9, 9, 9]])
    found = target_health(ids, TargetSpec(16, discrete=True))
    assert found["used"].item() == pytest.approx(3 / 16)
    assert found["perplexity"].item() == pytest.approx(2**1.5)


def test_health_of_a_differentiable_target_holds_no_graph() -> None:
    objective = build(teacher={"name": "self", "weights": "live", "differentiable_target": True})
    objective(draw(objective))["loss"].backward()
    assert all(not value.requires_grad for value in objective.health.values())
