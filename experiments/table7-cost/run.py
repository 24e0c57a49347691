"""Table 7: a training step of MAE, data2vec, BEiT v2 and MaskDistill, in turns, as ratios to MAE's.

    python experiments/table7-cost/run.py                                     # micro, on this machine
    python experiments/table7-cost/run.py --size base --batch 64 --device cuda    # the paper's setting (not yet run)
    python experiments/table7-cost/run.py --size large --batch 32 --device cuda

Weights make no difference to a step, so students, tokenizers and teachers have new ones; micro recipes that learn from a CLIP
make one first. Appends to results.jsonl, by size and device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from unimim import load
from unimim.evaluation.cost import Case, Ratio, ratios
from unimim.evaluation.turns import measure

METHODS = ("mae", "data2vec", "beitv2", "maskdistill")
PAPER = {
    "base": {"mae": (1.0, 1.0), "data2vec": (1.78, 1.27), "beitv2": (1.69, 1.46), "maskdistill": (1.36, 1.18)},
    "large": {"mae": (1.0, 1.0), "data2vec": (1.96, 1.68), "beitv2": (1.40, 1.68), "maskdistill": (1.30, 1.52)},
}
"""Its (time, memory) over MAE's."""
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
    costs = measure(cases, options.steps, say=print)
    found = ratios(costs, to=f"mae{suffix}")
    rows = [
        {"size": options.size, **cost.data(), "ratio": vars(ratio)} for cost, ratio in zip(costs, found, strict=True)
    ]
    for row in rows:
        del row["timings"]
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(table(options.size, found))


def table(size: str, found: list[Ratio]) -> str:
    """Markdown: ratios to MAE here, and the paper's."""
    lines = ["| method | time / MAE (quartiles) | CPU | memory | operations | paper: time | paper: memory |"]
    lines.append("|---|---|---|---|---|---|---|")
    paper = PAPER.get(size, PAPER["base"])
    for name, ratio in zip(METHODS, found, strict=True):
        time, memory = paper[name]
        span = f"{ratio.time:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        cells = (name, span, f"{ratio.cpu:.2f}", f"{ratio.memory:.2f}", f"{ratio.flops:.2f}", time, memory)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
