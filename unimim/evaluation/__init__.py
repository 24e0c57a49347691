"""What a trained student is worth: one measurement a file, all commanded alike."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol import Protocol

PROTOCOLS: Mapping[str, str] = {
    "knn": "knn:KNN",
    "linear": "linear:Linear",
    "linear-mae": "heads:LinearMAE",
    "linear-beit": "heads:LinearBEiT",
    "fewshot": "fewshot:FewShot",
    "finetune": "finetune:FineTune",
    "segmentation": "segmentation.protocol:Segmentation",
    "robustness": "robustness:Robustness",
    "shape-bias": "shape_bias:ShapeBias",
    "cost": "training_cost:TrainingCost",
}
"""{task: module of this folder, and the protocol in it}; imported when asked for."""


def protocol_of(task: str) -> type[Protocol]:
    """The protocol of a task; KeyError for an unknown one."""
    module, _, name = PROTOCOLS[task].partition(":")
    found: type[Protocol] = getattr(importlib.import_module(f".{module}", __name__), name)
    return found
