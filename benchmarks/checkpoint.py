"""How long the loop waits for a checkpoint that is written beside it, against one it waits for.

    python benchmarks/checkpoint.py --rounds 9

A state of ViT-small's size, with random tensors: weights, both moments of AdamW, and the student alone. Rounds take turns between
work without a checkpoint, with one beside it, and with one waited for. The wait is the time until the loop computes again; the
slowdown of the work beside shows what the writing takes from it. Medians, and ratios of this one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Literal, get_args

import torch

from unimim.engine.checkpoint import Checkpoints

Way = Literal["none", "beside", "waited"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    student = vit_small()
    moments = {f"optimizer/{name}/{key}": tensor.clone() for name, tensor in student.items() for key in ("m", "v")}
    state = {f"objective/{name}": tensor for name, tensor in student.items()} | moments
    megabytes = sum(tensor.nbytes for tensor in [*state.values(), *student.values()]) / 1e6
    waits: dict[Way, list[float]] = defaultdict(list)
    works: dict[Way, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = Checkpoints(Path(folder))
        for turn in range(options.rounds + 1):
            for way in get_args(Way):
                start = time.perf_counter()
                if way != "none":
                    checkpoints.save(2 * turn + (way == "waited"), state, student, {})
                if way == "waited":
                    checkpoints.wait()
                saved = time.perf_counter()
                work()
                done = time.perf_counter()
                checkpoints.wait()
                if turn:  # the first round warms up
                    waits[way].append(saved - start)
                    works[way].append(done - saved)
    wait = {way: statistics.median(seconds) for way, seconds in waits.items()}
    worked = {way: statistics.median(seconds) for way, seconds in works.items()}
    print(
        f"{megabytes:.0f} MB: the loop waits {wait['beside']:.3f} s ({spread(waits['beside'])}) for a checkpoint beside it, "
        f"{wait['waited']:.3f} s ({spread(waits['waited'])}) for one it waits for; ratio {wait['beside'] / wait['waited']:.3f}"
    )
    print(
        f"work that takes {worked['none']:.3f} s alone takes {worked['beside']:.3f} s while one is written; wait and slowdown "
        f"together are {(wait['beside'] + worked['beside'] - worked['none']) / wait['waited']:.2f} of waiting for it"
    )


def vit_small() -> dict[str, torch.Tensor]:
    """22 million numbers in the shapes of ViT-S/16."""
    block = {"qkv": (1152, 384), "proj": (384, 384), "fc1": (1536, 384), "fc2": (384, 1536), "norm": (4, 384)}
    shapes = {f"blocks.{depth}.{name}": shape for depth in range(12) for name, shape in block.items()}
    return {name: torch.randn(shape) for name, shape in {**shapes, "patch": (384, 768), "pos": (197, 384)}.items()}


def work(products: int = 60) -> None:
    """What a step does most: products of matrices."""
    matrix = torch.ones(768, 768) / 768
    for _ in range(products):
        matrix = matrix @ matrix


def spread(seconds: list[float]) -> str:
    return f"{min(seconds):.3f} to {max(seconds):.3f}"


if __name__ == "__main__":
    main()
