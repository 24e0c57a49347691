"""What a teacher in bfloat16 changes: ids that flip, targets, and the loss of the first step, against float32.

    python benchmarks/precision.py photographs.zip [maskdistill beit beitv2] [--images 48]

Random weights from one seed, the student in float32 without drop path, each image in its first crop.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from unimim import Objective, Sampling, load
from unimim.engine.data.sources import open_source
from unimim.types import Batch

CHANGES = {"maskdistill": ["teacher.pretrained=null"], "beit": [], "beitv2": []}
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("recipes", nargs="*", default=[*CHANGES])
    parser.add_argument("--images", type=int, default=48)
    options = parser.parse_args()
    for name in options.recipes:
        (targets, losses), (low, low_losses) = (
            answers(name, precision, options.data, options.images) for precision in ("float32", "bfloat16")
        )
        if targets.is_floating_point():
            told = f"target off by {float((low - targets).square().mean().sqrt() / targets.std()):.2%} of its deviation"
        else:
            told = f"{float((low != targets).float().mean()):.2%} of {targets.numel()} ids flip"
        mean = abs(float((low_losses - losses).mean() / losses.mean()))
        most = float(((low_losses - losses) / losses).abs().max())
        print(f"{name}: {told}; loss {mean:.1e} relative, of a batch of {BATCH} at most {most:.1e}", flush=True)


@torch.no_grad()
def answers(name: str, precision: str, data: str, images: int) -> tuple[Tensor, Tensor]:
    """The normalized targets of all images, and the loss of each batch."""
    recipe = load(name, [*CHANGES[name], f"teacher.precision={precision}", "precision=float32", "student.drop_path=0"])
    torch.manual_seed(0)
    objective = Objective(recipe).train()
    dense, losses = [], []
    for batch in batches(objective, data, images):
        dense.append(objective.predictions(batch)["mim"][0].dense)
        losses.append(objective(batch)["loss"])
    return torch.cat(dense), torch.stack(losses)


def batches(objective: Objective, data: str, images: int) -> Iterator[Batch]:
    source = open_source(data)
    sampling = Sampling(objective.recipe, objective.student.geometry, objective.renditions)
    for first in range(0, min(images, len(source)), BATCH):
        indices = range(first, min(first + BATCH, images, len(source)))
        yield sampling.collate([sampling(source.read(index), 0, index) for index in indices])


if __name__ == "__main__":
    main()
