"""A recipe, a data set and a Run make a trained objective in a run folder."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import weights
from .axes import Student
from .drift import differences, refused
from .engine.checkpoint import write_text
from .engine.data import BadImage, TooManyBadImages
from .engine.data.sources import ImageSource, in_memory, open_source
from .engine.distributed import process_group
from .engine.folder import Status, only_writer, read_status, write_status
from .engine.guard import NonFinite
from .engine.log import Log
from .engine.loop import Outcome, train
from .engine.run import Plan, Run
from .objective import Objective
from .recipe import Recipe
from .registry import plugins
from .sampling import Sampling
from .world import rank, world_size


def train_recipe(
    recipe: Recipe, data: str, run: Run, cached: bool = False, quiet: bool = False, allowed: Sequence[str] = ()
) -> Outcome:
    """Train `recipe` on the training images of `data`; a run folder that holds a part of it is continued.

    cached: keep decoded images in memory.  allowed: fields of the recipe that may differ from those the folder was begun
    with; the new values count from there on. Leaves run.json, config.yaml, metrics.jsonl, checkpoints/ and, when done,
    weights/. Raises ValueError if the folder holds another recipe or other data, with the differences.
    """
    source = open_source(data, "train")
    source = in_memory(source) if cached else source
    with process_group(run) as device, holding(run.out), status_of(run.out):
        plan = plan_of(recipe, source)
        record = describe(recipe, data, source, run)
        before = claim(run.out, record, plan.total_steps, allowed)
        objective = build(recipe)
        sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
        loggers = [plugins()["loggers"][name]() for name in run.loggers] if rank() == 0 else []
        with Log(run.out, recipe.name, plan.total_steps, plan.batch, quiet, loggers, record) as log:
            _greet(log, recipe, plan, run, source)
            for line in (
                [*differences(before["recipe"], record["recipe"]), *environment(before, record)] if before else []
            ):
                log.say(f"changed since it was begun: {line}")
            started = time.time()
            outcome = train(objective, source, sampling, plan, run, device, log, {"hash": recipe.hash})
        if outcome.status == "done":
            weights.save(objective, run.out / "weights")
        if rank() == 0:
            seconds = record.get("seconds", 0.0) + time.time() - started
            finish(run.out, record | {"status": outcome.status, "step": outcome.step, "seconds": round(seconds, 1)})
            write_status(run.out, outcome.status, outcome.step)
    return outcome


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Rank 0 is the folder's only writer. The others wait until it is, so that none touches the folder of a refused run."""
    with only_writer(folder) if rank() == 0 else nullcontext():
        if world_size() > 1:
            torch.distributed.barrier()
        yield


@contextmanager
def status_of(folder: Path) -> Iterator[None]:
    """status.json from the start, and if what is inside fails, as what: by any process, the first reason stays."""
    if rank() == 0:
        write_status(folder, "running", None)
    try:
        yield
    except BaseException as error:
        kind: Status = (
            "nonfinite"
            if isinstance(error, NonFinite)
            else "data"
            if isinstance(error, BadImage | TooManyBadImages)
            else "failed"
        )
        if read_status(folder).get("status") in (None, "running"):
            write_status(folder, kind, None, f"{type(error).__name__}: {error}")
        raise


def build(recipe: Recipe) -> Objective:
    """The objective with the start values that recipe.seed gives."""
    torch.manual_seed(recipe.seed)
    return Objective(recipe)


def build_student(recipe: Recipe) -> Student:
    """The student alone, with the same start values as in `build`."""
    torch.manual_seed(recipe.seed)
    return recipe.student.build()


def plan_of(recipe: Recipe, source: ImageSource) -> Plan:
    return Plan(len(source), recipe.batch, recipe.epochs, recipe.seed, recipe.precision, recipe.optimization)


def describe(recipe: Recipe, data: str, source: ImageSource, run: Run) -> dict[str, Any]:
    """run.json: what ran, on what, with what.

    git: commit of the working folder.  source: that of unimim's own files, where they are a checkout.
    """
    return {
        "recipe": recipe.data(),
        "hash": recipe.hash,
        "seed": recipe.seed,
        "data": data_record(data, source),
        "run": run.model_dump(mode="json"),
        "world_size": world_size(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(["unimim", *sys.argv[1:]]),
        "versions": _versions(run.device),
        "plugins": {plugin.name: plugin.version for plugin in plugins().loaded},
        "hardware": _hardware(run.device),
        "git": _git(Path()),
        "source": _git(Path(__file__).parent) if _tracked(Path(__file__)) else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
    }


def environment(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`what: recorded -> now` for everything around the recipe that differs between two run.json."""

    def flat(record: Mapping[str, Any]) -> dict[str, Any]:
        found = {"images": record["data"]["fingerprint"], "compile": record["run"]["compile"]}
        found |= {key: record.get(key) for key in ("threads", "world_size")}
        for part in ("versions", "hardware", "plugins", "git", "source"):
            found |= {f"{part} {name}": value for name, value in (record.get(part) or {}).items()}
        return found

    before, after = flat(recorded), flat(now)
    return [
        f"{what}: {before.get(what)} -> {after.get(what)}"
        for what in dict.fromkeys([*before, *after])
        if before.get(what) != after.get(what)
    ]


def claim(folder: Path, record: dict[str, Any], total_steps: int, allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Rank 0: write run.json into an empty folder, or check that the folder holds the same recipe and data.

    The run.json that was there before; {} if none. What `held` lets change is added to `changed` of the new one.
    """
    if rank() != 0:
        return {}
    before = held(folder, record["recipe"], record["data"], allowed, total_steps)
    record["seconds"] = before.get("seconds", 0.0)
    changes = differences(before["recipe"], record["recipe"]) if before else []
    step = last_step(folder)
    record["changed"] = [*before.get("changed", []), *({**asdict(change), "at_step": step} for change in changes)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "run.json", json.dumps(record, indent=1))
    write_text(folder / "config.yaml", Recipe.model_validate(record["recipe"]).yaml())
    return before


def held(
    folder: Path,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    allowed: Sequence[str] = (),
    total_steps: int | None = None,
) -> dict[str, Any]:
    """run.json of a folder that holds a part of the run of `recipe` on `data`; {} of one that holds no run.

    allowed: fields of the recipe that may differ, of those that can.  total_steps: where the recipe ends now.
    Raises ValueError if it holds another run, with the differences, or files that a run would overwrite.
    """
    path = folder / "run.json"
    taken = [name for name in ("checkpoints", "weights", "metrics.jsonl", "config.yaml") if (folder / name).exists()]
    if not path.exists():  # asked last, because another process may be writing it, and writes it first
        if taken:
            raise ValueError(f"{folder} holds {', '.join(taken)} but no run.json; use another folder")
        return {}
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changes = differences(before["recipe"], recipe)
        other_images = before["data"]["fingerprint"] != data["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); use another folder") from None
    problems = refused(changes, allowed, recipe)
    if other_images:
        problems.append(f"data: {before['data']['spec']} -> {data['spec']} (other images)")
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"{folder} holds another run; use another folder, or undo these changes:\n  {listed}")
    if changes and total_steps is not None and last_step(folder) >= total_steps:
        raise ValueError(
            f"{folder} stands at step {last_step(folder)}, and with these changes the run ends at step {total_steps}, so "
            f"nothing is left to train with them; raise epochs, or use another folder"
        )
    return before


def last_step(folder: Path) -> int:
    """Steps in the newest checkpoint of a run folder; 0 if there is none."""
    newest = max((folder / "checkpoints").glob("step-*"), default=None)
    return int(newest.name.removeprefix("step-")) if newest else 0


def data_record(spec: str, source: ImageSource) -> dict[str, Any]:
    """Which images: the `data` of run.json."""
    return {"spec": spec, "images": len(source), "fingerprint": source.fingerprint()}


def finish(folder: Path, record: dict[str, Any]) -> None:
    write_text(folder / "run.json", json.dumps(record, indent=1))


def _greet(log: Log, recipe: Recipe, plan: Plan, run: Run, source: ImageSource) -> None:
    if run.target_cache and not recipe.replay:
        log.say(
            "target cache not used: the recipe replays nothing; replay.crops=1 makes crops come again, another result"
        )
    if plan.precision == "bfloat16" and emulates_bfloat16(run.device):
        log.say(
            "this processor only emulates bfloat16, many times slower than float32 (unimim doctor measures it); "
            "precision=float32 is another recipe, and a faster one here"
        )
    axes = ", ".join(f"{axis} {value}" for axis, value in recipe.axes().items())
    micro = run.micro_batch or plan.batch // world_size()
    repeats = plan.batch // world_size() // micro
    log.say(f"{recipe.name} ({recipe.hash}): {axes}")
    log.say(
        f"batch {plan.batch} = {world_size()} processes x {micro} images x {repeats}; peak rate "
        f"{plan.optimization.peak(plan.batch):.2e}; {len(source)} images, {plan.total_steps} steps on {run.device}"
    )


def emulates_bfloat16(device: str) -> bool:
    """Whether oneDNN, which multiplies matrices for torch on a CPU, finds no bfloat16 instructions it could use."""
    return device == "cpu" and torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "pydantic", "numpy", "pillow", "safetensors", "pluggy")


def _versions(device: str) -> dict[str, str]:
    found = {"unimim": version("unimim"), "python": platform.python_version()}
    found |= {package: version(package) for package in PACKAGES} | {"torch": str(torch.__version__)}  # with its build
    if device.startswith("cuda"):
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def _hardware(device: str) -> dict[str, str]:
    cuda = device.startswith("cuda")
    found = {"machine": platform.machine(), "system": platform.platform(), "processors": str(os.cpu_count())}
    found["device"] = torch.cuda.get_device_name() if cuda else _processor()
    found["matmul"] = torch.get_float32_matmul_precision()
    return found | ({"devices": str(torch.cuda.device_count())} if cuda else {})


def _processor() -> str:
    """Its model, which decides the kernels and with them the last bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and dirtiness of a folder; None outside a repository."""
    commit, status = _ask_git(folder, "rev-parse", "HEAD"), _ask_git(folder, "status", "--porcelain")
    return None if commit is None or status is None else {"commit": commit.strip(), "dirty": bool(status)}


def _tracked(file: Path) -> bool:
    return _ask_git(file.parent, "ls-files", "--error-unmatch", file.name) is not None


def _ask_git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
