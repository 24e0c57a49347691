"""300 steps of the micro recipe of every given row, on two data sets from two seeds: python experiments/table1/run.py --help

Stopped and started again it goes on; what stands in results.jsonl is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from unimim import Recipe, load, plugins

STEPS, BATCH, SEEDS = 300, 32, (0, 1)
IMAGES = {"shapes:train=4800,val=100": 4800, "torchvision:CIFAR10": 50_000}


def overrides(name: str, images: int, small: bool, seed: int) -> list[str]:
    recipe: Recipe = load(name)
    epochs = STEPS * BATCH / images
    schedule = [f"epochs={epochs}", f"optimization.warmup_epochs={epochs / 10}", f"batch={BATCH}", f"seed={seed}"]
    if not small:
        return schedule
    halved = [*schedule, "student.image_size=32", f"student.patch_size={recipe.student.patch_size // 2}"]
    cells = [(key, term.teacher.cell) for key, term in recipe.terms.items() if term.teacher.name == "hog"]
    return [*halved, *(f"terms.{key}.teacher.cell={cell // 2}" for key, cell in cells)]


def measure(name: str, data: str, place: str, small: bool, seed: int, out: Path) -> dict[str, object]:
    """Train, and read the losses back: their means over the first and the last twenty steps."""
    changes = overrides(name, IMAGES[data], small, seed)
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
    for name in names:
        for data in IMAGES:
            small = data != "shapes:train=4800,val=100"
            for seed in SEEDS:
                changed = load(name, overrides(name, IMAGES[data], small, seed)).hash
                if any(result["hash"] == changed for result in results):
                    continue
                results = [r for r in results if (r["recipe"], r["data"], r["seed"]) != (name, data, seed)]
                results.append(measure(name, data, options.cifar if small else data, small, seed, options.out))
                file.write_text("".join(json.dumps(result) + "\n" for result in results))
    print(table(results))


if __name__ == "__main__":
    main()
