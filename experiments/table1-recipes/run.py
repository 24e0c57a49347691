"""300 steps of the micro recipe of every row, on two data sets, from two seeds: python experiments/table1-recipes/run.py --help

Stopped and started again it goes on; what stands in results.jsonl is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

from unimim import Recipe, load, plugins
from unimim.recipe import leaves
from unimim.recipes.micro import TEACHER

STEPS, BATCH, SEEDS = 300, 32, (0, 1)
SIDES = ("student.image_size", "student.patch_size", "teacher.cell", "views.focal_size")
"""Sizes in pixels, which are halved for images of 32 pixels."""
HEALTH = ("/spread", "/perplexity", "/cosine")
IMAGES = {"shapes:train=4800,val=100": 4800, "torchvision:CIFAR10": 50_000}


def overrides(name: str, images: int, small: bool, seed: int, clip: Path) -> list[str]:
    recipe: Recipe = load(name)
    epochs = STEPS * BATCH / images
    schedule = [f"epochs={epochs}", f"optimization.warmup_epochs={epochs / 10}", f"batch={BATCH}", f"seed={seed}"]
    made = [f"{path}=local-dir:{clip}" for path, value in leaves(recipe) if value == f"local-dir:{TEACHER}"]
    if not small:
        return [*schedule, *made]
    halved = [f"{path}={value // 2}" for path, value in leaves(recipe) if path.endswith(SIDES)]
    return [*schedule, *made, *halved]


def make_clip(place: str, small: bool, folder: Path) -> None:
    """The small CLIP that micro recipes learn from, of the same images; once."""
    if folder.exists():
        return
    sides = ["--image-size", "32", "--patch-size", "4"] if small else []
    command = [sys.executable, "-m", "unimim", "teachers", "train-clip", "--data", place, "--out", str(folder)]
    subprocess.run([*command, *sides, "--epochs", "2" if small else "12", "--batch", "64"], check=True)


def measure(name: str, data: str, place: str, small: bool, seed: int, out: Path, clip: Path) -> dict[str, object]:
    """Train, and read back the losses, their means over the first and the last twenty steps, and what the log's health
    columns were at the end: spread of vectors, perplexity of ids, cosine of prediction and target."""
    changes = overrides(name, IMAGES[data], small, seed, clip)
    if any(str(clip) in change for change in changes):
        make_clip(place, small, clip)
    folder = out / f"{name}-{'32' if small else '64'}-{seed}"
    command = [sys.executable, "-m", "unimim", "train", name, *changes, "--data", place, "--out", str(folder)]
    subprocess.run([*command, "--in-memory", "--log-every", "1"], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "recipe": name,
        "hash": load(name, changes).hash,
        "data": data,
        "seed": seed,
        "overrides": changes,
        "steps": len(losses),
        "first": round(statistics.fmean(losses[:20]), 4),
        "last": round(statistics.fmean(losses[-20:]), 4),
        "health": {key: round(value, 4) for key, value in lines[-1].items() if key.endswith(HEALTH)},
        "images_per_s": round(statistics.median(line["images_per_s"] for line in lines[20:])),
    }


def table(results: list[dict[str, object]]) -> str:
    """Markdown: a line for each recipe, a cell "first -> last" for each data set and seed."""
    columns = [(data, seed) for data in IMAGES for seed in SEEDS]
    rows = [
        ["recipe", *(f"{data.partition(':')[2 if data.startswith('t') else 0]}, seed {seed}" for data, seed in columns)]
    ]
    rows.append(["---"] * len(rows[0]))
    for name in dict.fromkeys(str(result["recipe"]) for result in results):
        found = {(r["data"], r["seed"]): f"{r['first']} -> {r['last']}" for r in results if r["recipe"] == name}
        rows.append([f"`{name}`", *(found.get(column, "") for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def health(results: list[dict[str, object]]) -> str:
    """Markdown: what the targets were like at the end, each number the mean over data sets and seeds."""
    rows = [["recipe", "term", *(name[1:] for name in HEALTH)], ["---"] * (2 + len(HEALTH))]
    for name in dict.fromkeys(str(result["recipe"]) for result in results):
        seen: list[dict[str, float]] = [r["health"] for r in results if r["recipe"] == name and r.get("health")]  # type: ignore[misc]
        for term in load(name).terms if seen else ():
            columns = [[one[key] for one in seen if (key := f"target/{term}{what}") in one] for what in HEALTH]
            rows.append([f"`{name}`", term, *(f"{statistics.fmean(c):.3g}" if c else "" for c in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="default: the micro recipe of every installed row")
    parser.add_argument(
        "--cifar", default="torchvision:CIFAR10", help="where CIFAR-10 is, e.g. a folder of train/ and test/"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/table1"))
    options = parser.parse_args()
    file = Path(__file__).with_name("results.jsonl")
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    names = options.recipes or [f"{name}-micro" for name in plugins()["recipes"] if load(name).row]
    for seed, name, data in product(SEEDS, names, IMAGES):
        small = data != "shapes:train=4800,val=100"
        clip = options.out / f"clip-{'32' if small else '64'}"
        changed = load(name, overrides(name, IMAGES[data], small, seed, clip)).hash
        if not any(result["hash"] == changed for result in results):
            results = [r for r in results if (r["recipe"], r["data"], r["seed"]) != (name, data, seed)]
            results.append(measure(name, data, options.cifar if small else data, small, seed, options.out, clip))
            file.write_text("".join(json.dumps(result) + "\n" for result in results))
    print(f"{table(results)}\n\n{health(results)}")


if __name__ == "__main__":
    main()
