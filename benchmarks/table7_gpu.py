"""Table 7 of the paper on a GPU: step time and memory of MAE, data2vec, BEiT v2 and MaskDistill, as ratios to MAE.

    python benchmarks/table7_gpu.py --steps 50 --json table7.json

Not run yet: no GPU was at hand. ViT-B/16 with 64 images and ViT-L/16 with 32 on one GPU, in the recipes' precision, on fixed
random images; teachers have random weights, which cost the same. The four take turns in processes of their own and together
need some 55 GB, or 80 for ViT-L; --alone gives each the GPU to itself, one after the other. BEiT v2 needs the plugin unimim-beitv2.
Deviations: the paper times official code, its loader included, on a GPU it does not name, and its seconds therefore are no
standard to meet; memory is the peak allocated, as those codes log it. Only the ratios are set side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from unimim import load
from unimim.evaluation.cost import Case, Cost, Ratio, ratios
from unimim.evaluation.turns import measure

PAPER = {
    64: {"mae": (0.358, 10.6), "data2vec": (0.636, 13.5), "beitv2": (0.605, 15.5), "maskdistill": (0.487, 12.5)},
    32: {
        "mae-large": (0.551, 13.0),
        "data2vec-large": (1.079, 21.9),
        "beitv2-large": (0.769, 21.8),
        "maskdistill-large": (0.718, 19.7),
    },
}
"""Images on each GPU: recipe: seconds a step, GB."""
WEIGHTLESS = {"maskdistill": ["teacher.pretrained=null"], "maskdistill-large": ["teacher.pretrained=null"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--alone", action="store_true", help="one at a time, where the memory of all four is too much")
    parser.add_argument("--json", type=Path, help="where to write every cost")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("table7_gpu.py needs a CUDA device, and torch sees none here; unimim bench measures on a CPU.")
    every = []
    for batch, paper in PAPER.items():
        cases = planned(batch)
        groups = [[case] for case in cases] if options.alone else [cases]
        costs = [cost for group in groups for cost in measure(group, options.steps, say=print)]
        show(costs, ratios(costs, to=next(iter(paper))), batch)
        every += [cost.data() for cost in costs]
    if options.json:
        options.json.write_text(json.dumps(every, indent=1), encoding="utf-8")


def planned(batch: int) -> list[Case]:
    return [Case(load(name, [f"batch={batch}", *WEIGHTLESS.get(name, [])]), "cuda") for name in PAPER[batch]]


def show(costs: list[Cost], against: list[Ratio], batch: int) -> None:
    paper = PAPER[batch]
    first_time, first_memory = next(iter(paper.values()))
    print(
        f"\n{torch.cuda.get_device_name()}, {batch} images, {costs[0].dtype}; ratios to {against[0].to}, paper's in brackets"
    )
    print(f"{'recipe':18} {'s/step':>8} {'time':>8}  {'':6} {'quartiles':12} {'GB':>6} {'reserved':>8} {'memory':>7}")
    for cost, ratio in zip(costs, against, strict=True):
        seconds, gigabytes = paper[cost.recipe]
        allocated, reserved = (cost.cuda_allocated_mb or 0) / 1e3, (cost.cuda_reserved_mb or 0) / 1e3
        print(
            f"{cost.recipe:18} {cost.step_time_median_s:8.3f} {ratio.time:8.2f} ({seconds / first_time:4.2f}) "
            f"{ratio.low:5.2f}-{ratio.high:5.2f}  {allocated:6.1f} {reserved:8.1f} {ratio.memory:7.2f} "
            f"({gigabytes / first_memory:4.2f})"
        )


if __name__ == "__main__":
    main()
