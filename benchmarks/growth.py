"""How a step's time and memory grow, measured, and how well the model behind `unimim bench --plan` predicts them.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out results.jsonl

One point after the other, in fresh processes of one thread each, along six axes from one middle: ViT-S/16 on 160 pixels, batch 8,
bfloat16, taught as MAE is. The two rates of the model and the bandwidth between two processes are fitted to the points marked *,
all others are predicted. --read FILE fits and prints again without measuring.

Wants a quiet machine. Where others work beside it, --figure cpu takes CPU seconds for wall seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from unimim import load
from unimim.evaluation.cost import Case
from unimim.evaluation.counting import Work, count
from unimim.evaluation.plan import Machine, reduced, step_time
from unimim.evaluation.turns import measure

SMALL = ("student.dim=384", "student.num_heads=6", "student.image_size=160")
POINTS = {
    "middle": ("mae", 1, "batch=8"),
    "batch 4 *": ("mae", 1, "batch=4"),
    "batch 16 *": ("mae", 1, "batch=16"),
    "112 pixels": ("mae", 1, "batch=8", "student.image_size=112"),
    "224 pixels": ("mae", 1, "batch=8", "student.image_size=224"),
    "depth 6": ("mae", 1, "batch=8", "student.depth=6"),
    "depth 18": ("mae", 1, "batch=8", "student.depth=18"),
    "half masked": ("mae", 1, "batch=8", "mask.ratio=0.5"),
    "nine tenths masked": ("mae", 1, "batch=8", "mask.ratio=0.9"),
    "CLIP *": ("maskdistill", 1, "batch=8", "teacher.pretrained=null"),
    "momentum": ("data2vec", 1, "batch=8", "mask.count=60"),
    "dVAE": ("beit", 1, "batch=8", "mask.count=40"),
    "2 processes *": ("mae", 2, "batch=16"),
    "2 processes, batch 8": ("mae", 2, "batch=8"),
    "2 processes, CLIP": ("maskdistill", 2, "batch=16", "teacher.pretrained=null"),
}
"""{name: (recipe, processes, changes)}; names that end in * calibrate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--figure", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--read", type=Path)
    options = parser.parse_args()
    if options.read:
        rows = [json.loads(line) for line in options.read.read_text(encoding="utf-8").splitlines()]
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        rows = []
        with options.out.open("w", encoding="utf-8") as file:
            for row in points(options.steps, options.precision):
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
    show(rows, options.figure)


def points(steps: int, precision: str) -> Iterator[dict[str, Any]]:
    for name, (base, procs, *changes) in POINTS.items():
        recipe = load(base, [*SMALL, f"precision={precision}", *changes])
        cost = measure([Case(recipe, procs=procs)], steps)[0]
        work = count(recipe.model_copy(update={"batch": recipe.batch // procs}))
        row = {"name": name, "recipe": base, "changes": changes, "procs": procs, "precision": precision, "steps": steps}
        row |= {"wall": cost.step_time_median_s, "cpu": cost.cpu_time_median_s / procs, "rss": cost.peak_rss_mb}
        print(f"{name}: {row['wall']:.3f} s, {cost.clean_steps} of {steps} steps undisturbed", flush=True)
        yield {**row, "clean_steps": cost.clean_steps, "work": asdict(work)}


def show(rows: list[dict[str, Any]], figure: str) -> None:
    """The fit, then every point: measured, predicted, and by how much the prediction is off."""
    machine, library = fitted(rows, figure)
    rates = f"{machine.peak / 1e9:.0f} GFLOP/s, in float32 {machine.single / 1e9:.0f}, {machine.memory / 1e9:.2f} GB/s"
    between = f"{machine.network / 1e9:.2f} GB/s between two processes"
    print(f"\n{rates}, {between}, {library:.0f} MB of a process are the library's; {figure} seconds\n")
    print("| point | seconds | predicted | off | MB | predicted | off |")
    print("|---|---|---|---|---|---|---|")
    errors = []
    for row in rows:
        work, seconds = Work(**row["work"]), row[figure]
        predicted = step_time(work, replace(machine, gpus=row["procs"])).seconds
        memory = library + expected(row)
        if "*" not in row["name"]:
            errors.append(abs(predicted / seconds - 1))
        times = f"{seconds:.3f} | {predicted:.3f} | {predicted / seconds - 1:+.0%}"
        print(f"| {row['name']} | {times} | {row['rss']:.0f} | {memory:.0f} | {memory / row['rss'] - 1:+.0%} |")
    close, median = sum(error <= 0.2 for error in errors), statistics.median(errors)
    print(f"\nof {len(errors)} predicted points, {close} within 20 %; median {median:.0%} off")


def fitted(rows: list[dict[str, Any]], figure: str) -> tuple[Machine, float]:
    """The machine that the points marked * were measured on, and MB that a process holds besides what is counted.

    1 = F / (T t) + F1 / (T1 t) + B / (M t) over the points of one process, by least squares; then the bandwidth that what is
    left of the points of two processes asks for. Nothing hides: all-reduce on a CPU needs the cores that compute.
    """
    marked = [row for row in rows if "*" in row["name"]]
    alone, together = ([row for row in marked if (row["procs"] > 1) is several] for several in (False, True))
    works = [(Work(**row["work"]), row[figure]) for row in alone]
    terms = [[sum(part.values()) for part in (work.flops, work.single, work.moved)] for work, _ in works]
    matrix = torch.tensor([[f - f1, f1, b] for f, f1, b in terms]) / torch.tensor([[t] for _, t in works]) / 1e9
    inverse = torch.linalg.lstsq(matrix, torch.ones(len(works), 1)).solution[:, 0]
    peak, single, memory = (1e9 / inverse.clamp_min(1e-6)).tolist()
    machine = Machine(peak, single, utilization=1.0, memory=memory, overlap=0.0)
    left = [(Work(**row["work"]), row[figure], row["procs"]) for row in together]
    seconds = statistics.median((t - step_time(work, machine).seconds) / reduced(work, n) for work, t, n in left)
    library = statistics.median(row["rss"] - expected(row) for row in alone)
    return replace(machine, network=1 / seconds if seconds > 0 else math.inf), library


def expected(row: dict[str, Any]) -> float:
    """MB that are counted."""
    work = Work(**row["work"])
    return (work.held + work.passing) / 1e6


if __name__ == "__main__":
    main()
