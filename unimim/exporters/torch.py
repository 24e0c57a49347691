"""Students as one file that torch alone loads."""

from __future__ import annotations

from pathlib import Path

import torch

from .base import Trained, compare, graph


def export_torch(trained: Trained, folder: Path) -> float:
    """image (B, C, H, W) in [0, 1] -> {"patches": (B, N, D), "prefix": (B, P, D)}, see `base.Features`, as model.pt2.

    A program of torch.export: weights, pixel statistics and operations, of the student's image size and any batch.
    Returns the largest difference of the program loaded again. ValueError if it is not small, or cannot be traced.
    """
    path = folder / "model.pt2"
    torch.export.save(graph(trained.student), path)
    model = torch.export.load(path).module()
    return compare(trained.student, lambda image: model(image)["patches"], "the loaded program")
