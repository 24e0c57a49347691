"""bench: what it prints, what it refuses, and how sizes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unimim.cli.benching import _show, _sized
from unimim.cli.errors import Problems
from unimim.evaluation.cost import Case
from unimim.evaluation.workload import Workload
from unimim.recipe import load

from .conftest import TINY, Unimim

TOY = [word for word in TINY if not word.startswith("batch=")]


KEYS = {"recipe", "model", "batch", "dtype", "step_time_median_s", "peak_rss_mb", "images_per_s", "flops_per_step"}


def test_a_recipe_is_measured_in_a_fresh_process(unimim: Unimim) -> None:
    ran = unimim("bench", "mae-micro", *TOY, "--batch", 4, "--steps", 3, "--device", "cpu", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert KEYS | {"teacher_share", "shares", "flops", "data_share", "matmul_share"} <= {*found}
    assert (found["batch"], found["steps"], len(found["timings"]), found["procs"]) == (4, 3, 3, 1)


@pytest.mark.slow
def test_two_configurations_take_turns(unimim: Unimim) -> None:
    more = "mae-micro student.masking=replace"
    ran = unimim("bench", "--compare", "mae-micro", more, *TOY, "--batch", 4, "--steps", 3, "--device", "cpu", "--json")
    found = json.loads(ran.out)
    assert found["b"]["flops"]["S"] > found["a"]["flops"]["S"]
    assert found["ratio"]["rounds"] == 3
    assert found["ratio"]["low"] <= found["ratio"]["time"] <= found["ratio"]["high"]
    assert found["ratio"]["flops"] == pytest.approx(found["b"]["flops_per_step"] / found["a"]["flops_per_step"])


@pytest.mark.slow
def test_processes_share_the_batch(unimim: Unimim) -> None:
    bench = ["bench", "mae-micro", *TOY, "--batch", 4, "--steps", 2, "--device", "cpu", "--json"]
    found = json.loads(unimim(*bench, "--procs", 2).out)
    assert found["procs"] == 2
    one = Workload(Case(load("mae-micro", [*TOY, "batch=4"])), torch.device("cpu"))
    assert found["flops"] == one.flops()  # of the whole batch


@pytest.mark.slow
def test_a_teacher_that_cannot_be_built_is_refused(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("bench", "maskdistill-micro", f"teacher.model=local-dir:{tmp_path}", "--device", "cpu")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: maskdistill-micro: teacher open_clip: ")


def test_bench_reports_every_problem_at_once(unimim: Unimim) -> None:
    ran = unimim("bench", "mae", "mea", "beit:loss=l1", "--model", "tine", "--dtype", "fp8", "--procs", 0)
    assert (ran.code, ran.out) == (2, "")
    assert [line[:60] for line in ran.err.splitlines()] == [
        "error: 5 problems",
        "  --dtype: 'fp8' is neither fp32 nor bf16",
        "  beit:loss=l1: 'beit' is not among the recipes; given: mae,",
        "  --procs: at least 1, got 0",
        "  --model: mae: unknown size 'tine'; choose one of micro, ti",
        "  mea: unknown recipe 'mea', did you mean 'mae'?; registered",
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no recipe to measure; unimim list recipes shows their names"),
        (["mae", "--batch", "0"], "mae: batch: input should be greater than 0, got 0"),
        (
            ["mae", "run.log_every=3"],
            "run.log_every: not part of a measured step; bench heeds run.compile, run.recompute",
        ),
        (["mae", "run.compil=true"], "run.compil: no such setting, did you mean 'compile'?"),
        (["mae", "run.compile=true", "--plan", "--gpu-tflops", "312"], "--plan: measures nothing, so"),
        (["mae", "--batch", "3", "--procs", "2"], "--batch, --procs: mae: batch 3 does not divide over 2 processes"),
        (["mae", "--compare", "mae", "beit"], "mae: --compare names both recipes itself"),
        (["--compare", "mae", "loss=l1"], "--compare 'loss=l1': give a recipe and its changes, in quotes"),
        (["--compare", "mae", 'mae "'], "--compare 'mae \"': No closing quotation"),
        (["mae", "student=example", "--model", "tiny"], "mae: student: unknown student 'example'"),
        (["mae", "--device", "abacus"], "--device: unknown device 'abacus'"),
    ],
)
def test_nonsense_is_refused(unimim: Unimim, words: list[str], problem: str) -> None:
    ran = unimim("bench", *words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {problem}")


def test_a_size_is_that_of_the_student_and_a_change_wins(tmp_path: Path) -> None:
    def size(recipe: str, *changes: str, name: str = "tiny") -> tuple[int, int]:
        problems = Problems()
        found = _sized(problems, recipe, changes, name)
        assert found, problems.found
        return found.student.geometry.dim, found.student.num_blocks

    saved = tmp_path / "mine.yaml"
    saved.write_text(load("mae").yaml())  # names no size, but every width
    assert size("mae") == size("mae-micro") == size(str(saved)) == (192, 12)
    assert size("mae", name="") == (768, 12)
    assert size("mae", "student.depth=3") == (192, 3)
    assert size("simmim", name="base") != size("simmim", name="large")  # a Swin has sizes of its own


def test_the_table_shows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    workload = Workload(Case(load("mae-micro", TINY), model="toy"), torch.device("cpu"))
    _show([workload.cost([workload.timed() for _ in range(2)], matrix=64)], ["mae-micro"])
    header, _, row, about, data = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["recipe", "model", "s/step", "images/s"]
    assert row.split()[:2] == ["mae-micro", "toy"]
    assert about.startswith("batch 8, fp32, cpu, 1 thread; undisturbed steps: ")
    assert data.startswith("data: ")
