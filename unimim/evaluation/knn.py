"""k nearest neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import Features
from .score import Score, accuracy


def votes(train: Features, test: Tensor, num_classes: int, k: int, temperature: float, chunk: int = 1024) -> Tensor:
    """(n, num_classes): v_c = sum over the k nearest of class c of exp(cos / temperature).

    Follows facebookresearch/dino @ 7c446df, eval_knn.py, for any number of test images.
    """
    bank = F.normalize(train.values, dim=1)
    result = []
    for part in test.split(chunk):
        similarity, nearest = (F.normalize(part, dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        weight = (similarity / temperature).exp()
        found = torch.zeros(len(part), num_classes)
        result.append(found.scatter_add_(1, train.labels[nearest], weight))
    return torch.cat(result)


def knn(train: Features, test: Features, k: int = 20, temperature: float = 0.07) -> Score:
    """Top-1 of the weighted vote."""
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    predicted = votes(train, test.values, num_classes, k, temperature).argmax(1)
    protocol = f"{train.described}; k = {k}, T = {temperature}, cosine"
    return accuracy("k-NN", int((predicted == test.labels).sum()), len(test.labels), protocol)
