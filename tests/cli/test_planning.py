"""bench --plan: every line of the sum, and what it refuses."""

from __future__ import annotations

import json

import pytest

from .conftest import TINY, Unimim

GPU = ("--gpu-tflops", 100)


def test_every_line_of_the_sum_is_shown(unimim: Unimim) -> None:
    ran = unimim("bench", "mae-micro", *TINY, "--plan", "--gpus", 4, *GPU, "--bandwidth", 200, "--images", 80)
    assert (ran.code, ran.err) == (0, "")
    lines = dict(line.split(None, 1) for line in ran.out.splitlines())
    assert lines["GPUs"] == "4 x 2 images = batch 8, fp32"
    assert lines["products"].startswith(
        f"{lines['operations'].split(' = ')[1].split()[0]} GFLOP / (100 TFLOP/s x 0.5) = "
    )
    assert lines["all-reduce"].startswith("2 x 3 / 4 x ")
    assert lines["training"] == "2 epochs of 80 images = 20 steps"
    assert lines["A"].startswith("model, not a measurement")


def test_json_holds_counts_machine_and_sum(unimim: Unimim) -> None:
    ran = unimim("bench", "mae-micro", *TINY, "--plan", *GPU, "--memory-bandwidth", 1000, "--batch", 4, "--json")
    found = json.loads(ran.out)
    assert (found["batch"], found["work"]["images"], found["images"]) == (4, 4, 1281167)
    machine, step = found["machine"], found["step"]
    assert (machine["memory"], machine["network"], step["exposed"]) == (1e12, None, 0)
    assert step["products"] == pytest.approx(sum(found["work"]["flops"].values()) / 50e12)
    assert found["hours"] == pytest.approx(found["steps"] * step["seconds"] / 3600)


def test_several_recipes_are_a_list(unimim: Unimim) -> None:
    found = json.loads(unimim("bench", "mae", "mae-micro", *TINY, "--plan", *GPU, "--json").out)
    assert [(each["recipe"], each["batch"]) for each in found] == [("mae", 8), ("mae-micro", 8)]


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--plan"], ["--gpu-tflops is missing: "]),
        (["--plan", "--gpus", 2, *GPU], ["--bandwidth is missing: "]),
        (
            ["--plan", "--gpus", 3, *GPU, "--bandwidth", 1],
            ["mae: --gpus: batch 4096 does not divide over 3 processes; choose a multiple of 3"],
        ),
        (["--plan", "--gpus", 0, *GPU], ["--gpus: above 0, got 0"]),
        (["--plan", "--utilization", 2, *GPU], ["--utilization: a share of the peak, at most 1, got 2"]),
        (["--plan", "--images", 9, *GPU], ["mae: --images: 9 make no batch of 4096; give a smaller --batch"]),
        (["--plan", "--procs", 2, *GPU], ["--plan: measures nothing, so --compare, --procs, --device and run.KEY say"]),
        (["--bandwidth", 9], ["--bandwidth: says what to plan for; add --plan, or leave it out"]),
        (
            ["--plan", "--memory-bandwidth", "nan", "--gpu-tflops", -1],
            ["2 problems", "--gpu-tflops: above 0, got -1", "--memory-bandwidth: above 0, got nan"],
        ),
    ],
)
def test_nonsense_is_refused(unimim: Unimim, words: list[object], problems: list[str]) -> None:
    ran = unimim("bench", "mae", *words)
    assert (ran.code, ran.out) == (2, "")
    told = [line.strip() for line in ran.err.removeprefix("error: ").splitlines()]
    assert len(told) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(told, problems, strict=True)), told
