"""Commands that train, evaluate and export, on 40 images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import pytest
import torch

from unimim.cli import doctor
from unimim.cli.running import without
from unimim.engine.data.sources import open_source
from unimim.evaluation.features import student_features
from unimim.evaluation.knn import knn
from unimim.evaluation.linear import linear_probe
from unimim.recipe import load
from unimim.weights import load_student

from .conftest import TINY, Ran, Unimim, draw

SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


def train(unimim: Unimim, images: object, out: Path, *more: str, workers: int = 0) -> Ran:
    return unimim("train", "mae-micro", *TINY, *more, "--data", images, "--out", out, "--workers", workers)


def test_train_leaves_a_run_folder_and_says_what_is_next(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run one"
    ran = train(unimim, images, out)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"trained 8 steps: {out}/weights",
        f"next: unimim eval '{out}' --data {images}",
    ]
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["step"]) == ("done", 8)
    assert record["command"].startswith("unimim train mae-micro student.image_size=16")
    assert record["recipe"]["provenance"]["terms.mim.loss"].startswith("official code: ")
    assert record["run"]["compile"] is False
    assert (record["world_size"], record["threads"], record["seed"]) == (1, torch.get_num_threads(), 0)
    assert record["versions"]["torch"] == torch.__version__
    assert record["plugins"]["unimim"] == record["versions"]["unimim"]
    assert record["data"]["fingerprint"] == open_source(str(images), "train").fingerprint()
    assert {"machine", "system", "processors", "device", "matmul"} <= {*record["hardware"]}
    assert record["changed"] == []
    assert load(out / "config.yaml").hash == load("mae-micro", TINY).hash == record["hash"]
    assert load_student(out / "weights").dim == 16


def test_a_cache_that_nothing_is_kept_in_is_told(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    cache = f"run.target_cache={tmp_path / 'cache'}"
    ran = train(unimim, images, tmp_path / "run", "epochs=1", cache)
    assert ran.code == 0
    assert "target cache not used: the recipe replays nothing; replay.crops=1 makes crops come again" in ran.err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("units", "precision", "told"), [(0, "bfloat16", 1), (0, "float32", 0), (1, "bfloat16", 0)])
def test_a_processor_without_bfloat16_is_told(
    unimim: Unimim, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: int, precision: str, told: int
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bool(units))
    ran = train(unimim, images, tmp_path / "run", "epochs=1", f"precision={precision}")
    assert ran.code == 0
    assert ran.err.count("precision=float32 is another recipe, and a faster one here") == told


def test_replay_repeats_a_run(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    ran = unimim("replay", trained)
    assert (ran.code, ran.out) == (0, "identical for 8 steps\n")
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "run.json").write_bytes((trained / "run.json").read_bytes())
    row = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    (copied / "metrics.jsonl").write_text(json.dumps({**row, "loss": row["loss"] * 2}) + "\n")
    ran = unimim("replay", copied / "run.json", "--json", "--out", tmp_path / "again")
    found = json.loads(ran.out)
    assert (ran.code, found["identical"], found["environment"]) == (1, False, [])
    assert found["difference"]["column"] == "loss"
    assert found["difference"]["relative"] == pytest.approx(0.5)
    assert "loss was" in unimim("replay", copied).out
    assert unimim("replay", tmp_path).err.startswith(f"error: {tmp_path}/run.json is not the record of a run")


def test_the_same_command_again_has_nothing_to_do(unimim: Unimim, images: Path, trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_text()
    ran = train(unimim, images, trained)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == f"already trained, 8 steps: {trained}/weights"
    assert (trained / "metrics.jsonl").read_text() == before


def test_a_folder_holds_one_run(unimim: Unimim, images: Path, trained: Path, tmp_path: Path) -> None:
    draw(tmp_path, 32, seed=2)
    ran = unimim("train", "mae-micro", *TINY, "loss=l1", "--data", tmp_path, "--out", trained, "--workers", 0)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"error: --out: {trained} holds another run; use another folder, or undo these changes:\n"
        f"  terms.mim.loss.name: l2 -> l1 (train goes on with it if told --allow-changed terms.mim.loss.name)\n"
        f"  data: {images} -> {tmp_path} (other images)\n"
    )
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    ran = train(unimim, images, other)
    assert ran.err == f"error: --out: {other} holds checkpoints but no run.json; use another folder\n"


def test_a_run_goes_on_with_the_change_it_is_told_of(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    assert train(unimim, images, tmp_path).code == 0
    longer = ["epochs=3", "optimization.lr=1e-4", "--allow-changed", "epochs,optimization.lr"]
    ran = train(unimim, images, tmp_path, *longer)
    assert (ran.code, ran.out.splitlines()[0]) == (0, f"trained 12 steps: {tmp_path}/weights")
    assert "changed since it was begun: optimization.lr: 0.002 -> 0.0001" in ran.err
    assert train(unimim, images, tmp_path, *longer).out.startswith("already trained, 12 steps")
    ran = train(unimim, images, tmp_path, "seed=1", "--allow-changed", "seed,epohcs")
    assert ran.err.startswith("error: --out: --allow-changed: 'epohcs' is no field of this recipe")
    assert ran.code == 2


def test_train_reports_every_problem_at_once(unimim: Unimim, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = ["--workers", "-1", "--micro-batch", "0", "--device", "tpu9", "--procs", "0"]
    ran = unimim("train", "mae-micro", "los=l1", "--data", tmp_path / "no", "--out", tmp_path / "file" / "x", *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "error: 7 problems",
        "  mae-micro: los: unknown field, did you mean 'loss'?",
        f"  --data: cannot open images from '{tmp_path}/no': give a folder, a .zip or .tar, shards:DIR, parquet:PATH, hf:NAME, "
        "torchvision:NAME (such as torchvision:CIFAR10), or shapes",
        f"  --out: {tmp_path}/file is a file, not a folder",
        "  --micro-batch: input should be greater than 0, got 0",
        "  --workers: input should be greater than or equal to 0, got -1",
        "  --procs: at least 1, got 0",
        "  --device: unknown device 'tpu9'; e.g. cpu, cuda, cuda:1",
    ]
    assert unimim("train", "mae-micro").err.splitlines() == [
        "error: 2 problems",
        "  --data is missing: a folder of images, a .zip, torchvision:CIFAR10, or shapes",
        "  --out is missing: the folder to write, new or of a run to go on with",
    ]


def test_recipe_data_and_processes_must_fit(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    ran = unimim("train", "mae-micro", "--data", images, "--out", tmp_path, "--procs", 3)
    assert ran.err.splitlines() == [
        "error: 2 problems",
        "  --procs, --micro-batch: batch 256 does not divide over 3 processes; choose a multiple of 3",
        "  mae-micro: 32 training images make no batch of 256; lower batch (e.g. batch=32)",
    ]
    assert ran.code == 2


def test_dry_run_shows_the_arithmetic_and_writes_nothing(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    more = ["optimization.lr=1e-3", "optimization.lr_per_256=true", "--procs", "2", "--micro-batch", "2", "--dry-run"]
    ran = train(unimim, images, tmp_path / "new", *more)
    assert ran.code == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in ran.out.splitlines()[:14]}
    assert lines["steps"] == "2 epochs x 4 = 8"
    assert lines["batch"] == "8 = 2 processes x 2 images x 2"
    assert lines["rate"] == "peak 0.001 x 8 / 256 = 3.125e-05; 4 steps of warm-up, then a cosine to 0"
    assert lines["data"] == f"{images}: 32 training images"
    assert lines["out"] == f"{tmp_path}/new (new)"
    student = sum(parameter.numel() for parameter in load("mae-micro", TINY).student.build().parameters())
    assert lines["parameters"].startswith(f"student {student / 1e6:.2f} M, head ")
    assert ran.out.endswith("dry run: nothing was started\n")
    assert not (tmp_path / "new").exists()


def test_dry_run_finds_that_the_teacher_is_missing(unimim: Unimim, tmp_path: Path) -> None:
    data = "shapes:size=16,train=256,val=10"
    ran = unimim(
        "train",
        "maskdistill-micro",
        f"teacher.model=local-dir:{tmp_path}",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--dry-run",
    )
    assert ran.code == 2
    assert ran.err.startswith(f"error: maskdistill-micro: teacher open_clip: {tmp_path} holds no open_clip_config.json")


def test_a_diverged_run_fails_with_advice(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    hot = ["optimization.lr=1e30", "optimization.clip_norm=null", "optimization.warmup_epochs=0"]
    ran = train(unimim, images, tmp_path, *hot)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1].startswith("error: not a number by step 1 (loss nan, grad_norm nan); the step")
    assert "Lower optimization.lr" in ran.err


def test_an_unreadable_image_is_named_by_a_worker_too(unimim: Unimim, tmp_path: Path) -> None:
    draw(tmp_path / "images", 24, seed=3)
    bad = tmp_path / "images" / "dark" / "bad.png"
    bad.write_bytes(b"not a picture")
    command = ["optimization.warmup_epochs=0"]
    ran = train(unimim, tmp_path / "images", tmp_path / "run", *command, workers=1)
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {bad}: not an image that can be read" in ran.err
    assert "or use --skip-bad-images" in ran.err
    assert "Traceback" not in ran.err
    ran = train(unimim, tmp_path / "images", tmp_path / "run", *command, "--skip-bad-images")
    assert ran.code == 0
    assert str(bad) in (tmp_path / "run" / "skipped_images.txt").read_text()
    for number in range(3):
        (tmp_path / "images" / "dark" / f"worse{number}.png").write_bytes(b"not a picture")
    ran = train(unimim, tmp_path / "images", tmp_path / "other", *command, "--skip-bad-images", workers=1)
    assert (ran.code, ran.out) == (1, "")
    assert "images cannot be read" in ran.err
    assert ".png: not an image that can be read" in ran.err
    assert "Traceback" not in ran.err


def test_an_interrupted_run_exits_with_75_and_goes_on(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    more = ["epochs=20", "--log-every", "1"]
    metrics = tmp_path / "metrics.jsonl"

    def interrupt() -> None:
        while not metrics.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ran = train(unimim, images, tmp_path, *more)
    thread.join()
    assert (ran.code, ran.out) == (75, "")
    step = json.loads((tmp_path / "run.json").read_text())["step"]
    assert 0 < step < 80
    assert ran.err.splitlines()[-1] == f"stopped at step {step}; the same command goes on from there"
    planned = train(unimim, images, tmp_path, *more, "--dry-run")
    assert f"{tmp_path} (goes on from step {step})" in planned.out
    again = train(unimim, images, tmp_path, *more)
    assert again.code == 0
    assert f"going on from step {step}" in again.err
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 81))


def test_eval_prints_and_keeps_scores(unimim: Unimim, images: Path, trained: Path) -> None:
    ran = unimim("eval", trained, "--data", images, "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert (found["train"], found["test"], found["recipe"]) == (32, 8, "mae-micro")
    student = load_student(trained / "weights")
    learned, tested = (student_features(student, open_source(str(images), split)) for split in SPLITS)
    first, linear = found["scores"][0], found["scores"][-1]
    assert [first, linear] == json.loads(
        json.dumps([knn(learned, tested).data(), linear_probe(learned, tested).data()])
    )
    assert {score["task"] for score in found["scores"]} == {"k-NN", "linear"}
    shown = unimim("eval", trained / "weights", "--data", images, "--task", "knn", "--probe-images", 16, "--block", 0)
    assert shown.code == 0
    assert "block 0, mean of patch tokens; k = 20, T = 0.07, cosine" in shown.out
    assert "8 test images, 16 training images" in shown.out
    rows = [json.loads(line) for line in (trained / "eval.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["k-NN"] * 8 + ["linear"]
    assert rows[0]["settings"]["k"] == [20, 10, 100, 200]
    assert rows[0]["hash"] == found["hash"]
    assert (trained / "weights" / "eval.jsonl").is_file()


def test_eval_reports_every_problem_at_once(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    draw(tmp_path, 2, seed=4)
    flat = tmp_path / "flat"
    flat.mkdir()
    (tmp_path / "dark" / "0.png").rename(flat / "0.png")
    ran = unimim("eval", trained, "--data", flat, "--task", "knn,lineer", "--pool", "max", "--block", 3)
    assert ran.code == 2
    assert ran.err.splitlines()[0] == "error: 3 problems"
    assert ran.err.splitlines()[1].startswith(
        "  --task: unknown task 'lineer', did you mean 'linear'?; tasks: knn, linear,"
    )
    assert "  knn.features.pool: input should be 'mean' or 'class', got 'max'" in ran.err
    assert f"  --data: {flat} has no labels, which the probes need; put the images into folders by class" in ran.err
    ran = unimim("eval", trained, "--data", "shapes", "--block", 3, "knn.k=[5]", "linear.pace=3", "fewshot.k=[2]")
    assert ran.err.splitlines() == [
        "error: 3 problems",
        "  fewshot.k=[2]: changes begin with a task of this command: knn.KEY=VALUE, linear.KEY=VALUE",
        "  linear.pace: no such setting",
        "  --block: the student has blocks 0 to 0, not 3",
    ]
    (tmp_path / "run.json").write_text("{}")
    ran = unimim("eval", tmp_path, "--data", "shapes")
    assert ran.err == (
        f"error: {tmp_path} holds a run that is not done and has no weights yet; give its train command again\n"
    )
    assert unimim("eval", tmp_path / "no", "--data", "shapes").err == f"error: no folder {tmp_path}/no\n"


def test_eval_dry_run_writes_nothing(unimim: Unimim, images: Path, trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    ran = unimim("eval", trained, "--data", images, "--dry-run")
    assert ran.code == 0
    assert "train        32\ntest         8" in ran.out
    assert sorted(trained.rglob("*")) == before


PAIR = [word for word in TINY if not word.startswith(("head.", "epochs"))]
COMPARED = ["mae-micro", "data2vec-micro", *PAIR, "epochs=1", "data2vec-micro:teacher.layers=[0]"]


def test_compare_trains_scores_and_reports_once(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    command = ["compare", *COMPARED, "--data", images, "--out", tmp_path, "--workers", 0, "--seeds", "3,"]
    planned = unimim(*command, "--dry-run")
    assert planned.code == 0
    assert planned.out.endswith("then k-NN and linear probes on 32 training images and 8 test images\n")
    assert not list(tmp_path.iterdir())
    ran = unimim(*command)
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == f"report: {tmp_path}/report.html"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["data2vec-micro-seed3", "mae-micro-seed3"]
    page = (tmp_path / "report.html").read_text()
    assert "unimim compare mae-micro data2vec-micro" in page
    again = unimim(*command)
    assert again.code == 0
    assert again.err == ""  # nothing to train, nothing to evaluate
    assert again.out == ran.out
    assert unimim("eval", tmp_path, "--data", images).err == (
        f"error: {tmp_path} holds a comparison; give one of its runs: "
        f"{tmp_path}/runs/data2vec-micro-seed3, {tmp_path}/runs/mae-micro-seed3\n"
    )


def test_compare_reports_every_problem_at_once(unimim: Unimim, images: Path) -> None:
    words = ["mae-micro", "mae-micro", "mea", "seed=3", "beit:loss=l1", "mae-micro:los=l1"]
    ran = unimim("compare", *words, "--data", images, "--seeds", "0,0")
    assert (ran.code, ran.out) == (2, "")
    assert [line[:90] for line in ran.err.splitlines()] == [
        "error: 7 problems",
        "  seed=3: the seeds of a comparison are given by --seeds",
        "  beit:loss=l1: 'beit' is not among the recipes; given: mae-micro, mea",
        "  mae-micro: los: unknown field, did you mean 'loss'?",
        "  mea: unknown recipe 'mea', did you mean 'mae'?; registered: beit, beit-large, beit-micro",
        "  'mae-micro' is compared twice; save a variant under a name: unimim show mae-micro loss=l",
        "  --seeds: '0,0' is neither a count, like 3, nor a list of different seeds, like 0,1,2",
        "  --out is missing: the folder to write, new or of a run to go on with",
    ]


def test_compare_where_nothing_can_be_trained_fails(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    hot = ["optimization.lr=1e30", "optimization.clip_norm=null", "optimization.warmup_epochs=0"]
    ran = unimim("compare", "mae-micro", *TINY, *hot, "--data", images, "--out", tmp_path, "--workers", 0)
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == ("error: no recipe could be trained; the reasons stand above and in the report")
    assert "mae-micro is left out: not a number by step 1" in ran.err


def test_a_model_card_knows_the_run(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    assert unimim("export", trained, "--to", "hf", "--out", tmp_path).code == 0
    card = (tmp_path / "README.md").read_text()
    assert "| training images | 32 |" in card
    assert json.loads((trained / "run.json").read_text())["data"]["fingerprint"] in card


def test_export_of_a_run_loads_in_timm(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    ran = unimim("export", trained, "--to", "timm", "--out", tmp_path / "timm")
    assert ran.code == 0
    assert "reloaded from timm: patch features differ by at most" in ran.out
    assert (tmp_path / "timm" / "config.json").is_file()
    wrong = unimim("export", trained, "--to", "tim", "--out", tmp_path / "timm")
    assert wrong.err == "error: cannot export to 'tim', did you mean 'timm'?; formats: timm, hf, onnx, torch\n"
    assert wrong.code == 2


def test_convert_reports_every_problem_at_once(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("convert", tmp_path / "no.pth", "--as", "mea")
    assert ran.code == 2
    assert ran.err.splitlines() == [
        "error: 3 problems",
        "  --as: unknown importer 'mea', did you mean 'mae'?; registered: beit, data2vec, mae, simmim, simmim-vit",
        f"  no file {tmp_path}/no.pth",
        "  --out is missing: the folder to write, new or of a run to go on with",
    ]
    damaged = tmp_path / "mae.pth"
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 8)}}, damaged)
    ran = unimim("convert", damaged, "--as", "mae", "--out", tmp_path / "weights")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {damaged}: ")
    assert not (tmp_path / "weights").exists()


def test_train_clip_makes_a_teacher(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    sizes = [
        "--image-size",
        "16",
        "--patch-size",
        "4",
        "--width",
        "32",
        "--layers",
        "1",
        "--epochs",
        "1",
        "--batch",
        "16",
    ]
    command = ["teachers", "train-clip", "--data", images, "--out", tmp_path / "clip", *sizes]
    planned = unimim(*command, "--dry-run")
    assert planned.code == 0
    assert "steps       1 epochs x 2 = 2" in planned.out
    assert not (tmp_path / "clip").exists()
    assert unimim(*command).code == 0
    assert (tmp_path / "clip" / "open_clip_config.json").is_file()
    student = [word for word in TINY if not word.startswith("head.")]
    more = [f"teacher.model=local-dir:{tmp_path}/clip", "--data", images, "--out", tmp_path / "run", "--dry-run"]
    assert unimim("train", "maskdistill-micro", *student, *more).code == 0


def test_doctor_finds_a_machine_that_can_train(unimim: Unimim) -> None:
    ran = unimim("doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(ran.out)}
    assert [name for name, finding in findings.items() if finding["status"] == "failed"] == []
    assert ran.code == 0
    assert findings["training"]["message"].startswith("mae-micro took 3 steps")
    assert findings["processes"]["message"].startswith("two processes added over")
    assert findings["disk"]["message"].endswith(" s")


def test_doctor_says_what_is_wrong_with_folder_and_recipe(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("doctor", "--quick", "--json", "--recipe", "mea-micro", "--out", tmp_path / "not" / "yet")
    findings = {finding["check"]: finding for finding in json.loads(ran.out)}
    assert ran.code == 1
    assert "processes" not in findings
    assert f"GB free in {tmp_path}; 16 MB written and synced" in findings["disk"]["message"]
    assert findings["training"]["status"] == "failed"
    assert "unknown recipe 'mea-micro', did you mean 'mae-micro'?" in findings["training"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_does_not_wait_for_processes_that_do_not_meet(unimim: Unimim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimim.cli.doctor.PATIENCE", 0.1)
    monkeypatch.setattr("unimim.cli.doctor.checks", lambda *given: {"processes": doctor._processes})
    ran = unimim("doctor")
    assert ran.code == 1
    assert "two processes did not meet over gloo in 0.1 s; check the firewall" in ran.out


def test_doctor_goes_on_after_a_failure_and_exits_with_1(unimim: Unimim, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("no [disk]")

    monkeypatch.setattr("unimim.cli.doctor.checks", lambda *given: {"disk": broken, "torch": lambda: "fine"})
    ran = unimim("doctor")
    assert ran.code == 1
    assert [line.split() for line in ran.out.splitlines()[-2:]] == [
        ["disk", "failed", "OSError:", "no", "[disk]"],
        ["torch", "ok", "fine"],
    ]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(images: Path, trained: Path, tmp_path: Path) -> None:
    options = ["--data", str(images), "--out", str(tmp_path / "two"), "--workers", "0", "--procs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unimim", "train", "mae-micro", *TINY, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"trained 8 steps: {tmp_path}/two/weights"
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["world_size"] == 2
    one, two = ((out / "metrics.jsonl").read_text().splitlines() for out in (trained, tmp_path / "two"))
    assert [json.loads(row)["loss"] for row in two] == pytest.approx([json.loads(row)["loss"] for row in one], rel=2e-5)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["train", "mae", "--procs", "2", "lr=1"], ["train", "mae", "lr=1"]),
        (["--procs=2", "train"], ["train"]),
        (["train", "--procs", "--procs", "x"], ["train", "x"]),
        (["train", "--out", "procs"], ["train", "--out", "procs"]),
    ],
)
def test_processes_get_the_command_without_the_number_of_processes(given: list[str], kept: list[str]) -> None:
    assert without(given, "--procs") == kept
