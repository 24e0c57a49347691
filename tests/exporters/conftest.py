"""Small students, all of whose tensors matter, as an exporter takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unimim import load, plugins
from unimim.exporters.base import Trained

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "num_heads": 4},
    "swin": {"image_size": 32, "patch_size": 2, "dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window": 4},
}


@pytest.fixture
def trained() -> Callable[..., Trained]:
    """trained(name, **config) of a student."""

    def make(name: str = "vit", **config: Any) -> Trained:
        torch.manual_seed(0)
        student = plugins()["students"][name].Config.model_validate({**SMALL[name], **config}).build()
        for parameter in student.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return Trained(Path("weights"), load("mae-micro"), student)

    return make
