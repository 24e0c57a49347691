"""Table 7: a training step of MAE, data2vec, BEiT v2 and MaskDistill, in turns, as ratios to MAE's.

    python experiments/table7-cost/run.py                                     # micro, on this machine
    python experiments/table7-cost/run.py --size base --batch 64 --device cuda    # the paper's settings; not run yet:
    python experiments/table7-cost/run.py --size large --batch 32 --device cuda   # no GPU was at hand

Weights make no difference to a step, so students, tokenizers and teachers have new ones; micro recipes that learn from a CLIP
make one first. The four stand in memory together, on a GPU some 55 GB, 80 for large; --alone measures one after the other.
The paper times official code, its loader included, on a GPU it does not name, so only ratios are set side by side; memory is the
peak allocated on a GPU, resident on a CPU. Appends to results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from unimim import load
from unimim.evaluation.cost import Case, Cost, Ratio, ratios
from unimim.evaluation.turns import measure

METHODS = ("mae", "data2vec", "beitv2", "maskdistill")
PAPER = {
    "base": {"mae": (0.358, 10.6), "data2vec": (0.636, 13.5), "beitv2": (0.605, 15.5), "maskdistill": (0.487, 12.5)},
    "large": {"mae": (0.551, 13.0), "data2vec": (1.079, 21.9), "beitv2": (0.769, 21.8), "maskdistill": (0.718, 19.7)},
}
"""Seconds a step, and GB; 64 and 32 images."""
CHANGES = {
    "micro": {
        "beitv2": ["terms.mim.teacher.max_tokens=4096", "terms.mim.teacher.teacher.model=local-dir:{clip}"],
        "maskdistill": ["teacher.model=local-dir:{clip}"],
    },
    "base": {"maskdistill": ["teacher.pretrained=null"]},
    "large": {"maskdistill": ["teacher.pretrained=null"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("micro", "base", "large"), default="micro")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--alone", action="store_true", help="one at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clip", type=Path, default=Path("runs/sweeps/clip-p8"))
    options = parser.parse_args()
    if options.size == "micro" and not options.clip.exists():
        command = ["teachers", "train-clip", "--data", "shapes:train=512,val=64", "--epochs", "1", "--batch", "64"]
        subprocess.run([sys.executable, "-m", "unimim", *command, "--out", str(options.clip)], check=True)
    suffix = {"micro": "-micro", "base": "", "large": "-large"}[options.size]
    cases = []
    for name in METHODS:
        changes = [change.format(clip=options.clip) for change in CHANGES[options.size].get(name, [])]
        cases.append(Case(load(f"{name}{suffix}", [*changes, f"batch={options.batch}"]), options.device))
    groups = [[case] for case in cases] if options.alone else [cases]
    costs = [cost for group in groups for cost in measure(group, options.steps, say=print)]
    found = ratios(costs, to=f"mae{suffix}")
    rows = [
        {"size": options.size, **cost.data(), "ratio": vars(ratio)} for cost, ratio in zip(costs, found, strict=True)
    ]
    for row in rows:
        del row["timings"]
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(table(options.size, costs, found))


def table(size: str, costs: list[Cost], found: list[Ratio]) -> str:
    """Markdown: a step here and its ratios to MAE's, and the paper's ratios."""
    lines = [
        "| method | s/step | time / MAE (quartiles) | memory, GB | memory / MAE | operations / MAE | paper: time | memory |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    paper = PAPER.get(size, PAPER["base"])
    for name, cost, ratio in zip(METHODS, costs, found, strict=True):
        time, memory = (mine / first for mine, first in zip(paper[name], paper["mae"], strict=True))
        span = f"{ratio.time:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        own = (
            f"{cost.step_time_median_s:.3f}",
            span,
            f"{cost.memory_mb / 1e3:.2f}",
            f"{ratio.memory:.2f}",
            f"{ratio.flops:.2f}",
        )
        lines.append(f"| {' | '.join((name, *own, f'{time:.2f}', f'{memory:.2f}'))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
