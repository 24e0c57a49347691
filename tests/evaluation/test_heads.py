"""MAE's linear probe equals the official code's steps; both probes train on frozen students through the engine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine import toys
from unimim import weights
from unimim.engine.loop import clip
from unimim.engine.optim import make_optimizer, set_rate
from unimim.evaluation.heads import LinearBEiT, LinearHeads, LinearMAE
from unimim.evaluation.protocol import Setting, Subject
from unimim.schedule import Optimization
from unimim.training import build
from unimim.types import Batch, Encoded, View

GOLDENS = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parents[1] / "parity" / "data"))


class Given(nn.Module):
    """A student whose class token is the image it is given, as (B, D, 1, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, view: View, mask: None, taps: tuple[()]) -> Encoded:
        tokens = view.image.flatten(1).unsqueeze(1)
        return Encoded(tokens, tokens, (1, 1))


def test_batchnorm_and_lars_take_maes_steps() -> None:
    golden = np.load(GOLDENS / "piece_linprobe_bn_lars.npz", allow_pickle=False)
    features, labels = torch.tensor(golden["in/features"]), torch.tensor(golden["in/labels"])
    student: nn.Module = Given(features.shape[1])
    model = LinearHeads(student, len(golden["in/bias"]), (None,), "class", True, labels.tolist())  # type: ignore[arg-type]
    model.heads[0].weight.data.copy_(torch.tensor(golden["in/weight"]))  # type: ignore[union-attr, operator]
    model.heads[0].bias.data.copy_(torch.tensor(golden["in/bias"]))  # type: ignore[union-attr, operator]
    policy = Optimization(lr=float(golden["in/lr"]), weight_decay=float(golden["in/weight_decay"]), optimizer="lars")
    optimizer = make_optimizer(model, policy, model.depth_of)
    set_rate(optimizer, policy.lr)
    batch = Batch({"main": View(features[..., None, None])}, {}, torch.arange(len(labels)))

    def official(name: str) -> Tensor:
        return torch.tensor(golden[name])

    torch.testing.assert_close(model.train().answers(batch.views["main"])[..., 0], official("logits_train_step0"))
    model.norms[0].reset_running_stats()  # type: ignore[operator]
    for loss in golden["losses"].tolist():
        found = model(batch)["loss"]
        assert found.item() == pytest.approx(loss, rel=1e-6)
        found.backward()
        clip(model, None)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(model.heads[0].weight.data, official("weight_after"), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.heads[0].bias.data, official("bias_after"), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.norms[0].running_mean, official("running_mean"), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(model.norms[0].running_var, official("running_var"), rtol=1e-5, atol=1e-7)
    shown = Batch({"main": View(official("in/features_eval")[..., None, None])}, {}, torch.zeros(10, dtype=torch.int64))
    torch.testing.assert_close(model.eval()(shown)["answers"][..., 0], official("logits_eval"), rtol=1e-5, atol=1e-6)


def subject(home: Path, name: str = "mae-micro") -> Subject:
    recipe = toys.recipe(name)
    objective = build(recipe)
    weights.save(objective, home / "weights")
    return Subject(home, home / "weights", recipe, objective.student.eval())


def setting(home: Path, said: list[str] | None = None) -> Setting:
    data = "shapes:train=40,val=20,size=16"
    return Setting(data, toys.run(home), False, None, (said if said is not None else []).append)


def test_both_probes_train_and_leave_the_student_alone(tmp_path: Path) -> None:
    measured, how = subject(tmp_path), setting(tmp_path)
    before = {name: tensor.clone() for name, tensor in measured.student.state_dict().items()}
    (mae,) = LinearMAE.of(measured.recipe, ("batch=20", "epochs=2")).measure(measured, how)
    assert mae.protocol == (
        "final norm, class token, BatchNorm without affine; LARS, peak rate 0.0078125, 2 epochs in batches of 20"
    )
    beit = LinearBEiT.of(measured.recipe, ("batch=20", "epochs=2")).measure(measured, how)
    assert [score.metric for score in beit] == ["top-1", "top-1, block 0", "top-1, block 1"]
    assert beit[0].value == max(score.value for score in beit[1:])
    assert all(torch.equal(before[name], tensor) for name, tensor in measured.student.state_dict().items())
    rows = len(list((tmp_path / "eval").glob("linear-mae-*/metrics.jsonl")))
    assert LinearMAE.of(measured.recipe, ("batch=20", "epochs=2")).measure(measured, how) == [mae]
    assert rows == len(list((tmp_path / "eval").glob("linear-mae-*/metrics.jsonl"))) == 1


def test_a_probe_that_was_stopped_goes_on_to_the_same_scores(tmp_path: Path) -> None:
    from unimim.evaluation.supervised import Preempted

    protocol = LinearMAE.of(toys.recipe(), ("batch=20", "epochs=4"))
    straight = protocol.measure(subject(tmp_path / "a"), setting(tmp_path / "a"))
    stopped = setting(tmp_path / "b")
    broken = Setting(stopped.data, stopped.run.model_copy(update={"stop_after": 3}), False, None, print)
    with pytest.raises(Preempted):
        protocol.measure(subject(tmp_path / "b"), broken)
    assert protocol.measure(subject(tmp_path / "b"), stopped) == straight
    parts = [json_lines(folder) for folder in sorted(tmp_path.glob("*/eval/linear-mae-*/metrics.jsonl"))]
    assert parts[0] == parts[1]


def json_lines(path: Path) -> list[tuple[int, float]]:
    import json

    return [(row["step"], row["loss"]) for row in map(json.loads, path.read_text().splitlines())]
