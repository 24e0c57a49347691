"""The loop: exact under accumulation, workers and interruption; it stops on what is not a number."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from unimim import Objective, Recipe, Sampling
from unimim.engine.data.decode import BadImage
from unimim.engine.guard import NonFinite
from unimim.engine.log import Log
from unimim.engine.loop import Outcome, train
from unimim.training import build, plan_of

from . import toys


def trained(recipe: Recipe, out: Path, source: Any = None, **run: Any) -> tuple[Objective, Outcome]:
    out.mkdir(exist_ok=True, parents=True)
    source = source or toys.Noise()
    objective = build(recipe)
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    plan = plan_of(recipe, source)
    with Log(out, "toy", plan.total_steps, plan.batch, quiet=True) as log:
        outcome = train(objective, source, sampling, plan, toys.run(out, **run), torch.device("cpu"), log, {})
    return objective, outcome


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def state(objective: Objective) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items()}


@pytest.mark.parametrize("name", list(toys.RECIPES))
def test_the_loss_falls(tmp_path: Path, name: str) -> None:
    _, outcome = trained(toys.recipe(name, "epochs=8", "optimization.warmup_epochs=0"), tmp_path)
    assert outcome == Outcome("done", 24)
    values = losses(tmp_path)
    assert len(values) == 24
    if name != "data2vec-micro":  # a moving target: its loss may rise
        assert sum(values[-6:]) < sum(values[:6])


@pytest.mark.parametrize("name", list(toys.RECIPES))
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_interrupted_and_continued_equals_uninterrupted_bitwise(tmp_path: Path, name: str, stop: int) -> None:
    recipe = toys.recipe(name)
    whole, _ = trained(recipe, tmp_path / "whole")
    _, first = trained(recipe, tmp_path / "parts", stop_after=stop)
    assert first == Outcome("preempted", stop)
    parts, second = trained(recipe, tmp_path / "parts")
    assert second == Outcome("done", 9)
    for key, value in state(whole).items():
        assert torch.equal(value, state(parts)[key]), key
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.parametrize("name", ["mae-micro", "beit-micro", "data2vec-micro"])
def test_micro_batches_add_up_to_the_batch(tmp_path: Path, name: str) -> None:
    recipe = toys.recipe(name, "student.drop_path=0", toys.SMOOTH)
    whole, _ = trained(recipe, tmp_path / "whole")
    parts, _ = trained(recipe, tmp_path / "parts", micro_batch=2)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)
    for key, value in state(whole).items():
        torch.testing.assert_close(
            value, state(parts)[key], atol=2e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_workers_change_nothing(tmp_path: Path) -> None:
    recipe = toys.recipe("beit-micro")
    alone, _ = trained(recipe, tmp_path / "0")
    helped, _ = trained(recipe, tmp_path / "2", workers=2)
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
    assert all(torch.equal(value, state(helped)[key]) for key, value in state(alone).items())


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    class Signalling(toys.Noise):
        reads = 0

        def read(self, index: int) -> torch.Tensor:
            self.reads += 1
            if self.reads == 20:  # in the third step
                signal.raise_signal(signal.SIGTERM)
            return super().read(index)

    before = signal.getsignal(signal.SIGTERM)
    _, outcome = trained(toys.recipe(), tmp_path, Signalling())
    assert outcome == Outcome("preempted", 3)
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step-00000003"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_loss_that_is_not_a_number_stops_before_the_step(tmp_path: Path) -> None:
    recipe = toys.recipe("mae-micro")
    objective = build(recipe)
    before = state(objective)

    class Poisoned(Sampling):
        def __call__(self, image: torch.Tensor, epoch: int, index: int) -> Any:
            sample = super().__call__(image, epoch, index)
            view = sample.views["main"]
            object.__setattr__(view, "image", view.image.float().div(255).fill_(float("nan")))
            return sample

    plan = plan_of(recipe, toys.Noise())
    sampling = Poisoned(recipe, objective.student.geometry)
    with (
        Log(tmp_path, "toy", 9, 8, quiet=True) as log,
        pytest.raises(NonFinite, match=r"not a number by step 0 .*optimization\.lr"),
    ):
        train(objective, toys.Noise(), sampling, plan, toys.run(tmp_path), torch.device("cpu"), log, {})
    assert all(torch.equal(value, before[key]) for key, value in state(objective).items())
    assert not (tmp_path / "checkpoints").exists()


def test_an_unreadable_image_stops_with_its_name_or_is_replaced_and_listed(tmp_path: Path) -> None:
    source = toys.Noise(60, bad=(3, 4, 40))
    with pytest.raises(BadImage, match=r"noise/3\.png|noise/4\.png"):
        trained(toys.recipe(), tmp_path / "strict", source)
    first, _ = trained(toys.recipe(), tmp_path / "0", source, skip_bad_images=True)
    second, _ = trained(toys.recipe(), tmp_path / "2", source, skip_bad_images=True, workers=2)
    listed = (tmp_path / "0" / "skipped_images.txt").read_text()
    assert "noise/3.png" in listed
    assert "noise/4.png" in listed
    assert all(torch.equal(value, state(second)[key]) for key, value in state(first).items())


def test_the_order_of_images_covers_every_epoch() -> None:
    from unimim.engine.data.loader import addresses

    plan = plan_of(toys.recipe("mae-micro", "batch=13"), toys.Noise())
    batches = list(addresses(plan, 13, 1, 0))
    assert len(batches) == 6
    epochs = [sorted(index for _, index in batches[2 * e] + batches[2 * e + 1]) for e in range(3)]
    assert epochs == [list(range(26))] * 3
    assert batches[0] != batches[2]
    assert list(addresses(plan, 13, 1, 4)) == batches[4:]


def test_a_failing_worker_leaves_no_process_behind(tmp_path: Path) -> None:
    class Broken(toys.Noise):
        def read(self, index: int) -> torch.Tensor:
            raise KeyError("a bug in a source")

    with pytest.raises(KeyError, match="a bug in a source"):
        trained(toys.recipe(), tmp_path, Broken(), workers=2)
    assert multiprocessing.active_children() == []


class Grey(toys.Noise):
    """The same grey image again and again."""

    def read(self, index: int) -> torch.Tensor:
        return torch.full((3, 20, 18), 100, dtype=torch.uint8)


def test_a_collapsed_target_is_told_once_and_kept_whenever_the_run_stops(tmp_path: Path) -> None:
    recipe = toys.recipe("mae-micro", "norm=identity")
    trained(recipe, tmp_path, Grey(), stop_after=2)
    trained(recipe, tmp_path, Grey())
    (line,) = (tmp_path / "warnings.txt").read_text().splitlines()
    assert line.startswith("step 1: terms.mim: the target says nearly the same of every patch (spread ")
    trained(recipe, tmp_path / "noise")
    assert not (tmp_path / "noise" / "warnings.txt").exists()
