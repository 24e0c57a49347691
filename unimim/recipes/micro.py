"""What every -micro recipe shares: one small student and schedule, for 32 to 64 pixel images on a laptop."""

from __future__ import annotations

from typing import Any

from ..provenance import ours

TEACHER = "runs/clip-teacher"
"""Where micro recipes look for a CLIP, as `unimim teachers train-clip` writes it."""
MICRO_BLOCK = {"name": "block", "min_block": 4, "exact": True}


def micro_student(masking: str = "replace") -> Any:
    """One ViT for all: MAE's positions and start values, with which a few hundred steps suffice to learn something.

    MaskDistill's linear probe on `shapes` after 750 steps, one seed, rate 3e-3: 16.9 % with the BEiT family's small start
    values, layer scale and relative positions; 63.2 % with these.
    """
    student = {"name": "vit", "size": "micro", "image_size": 64, "patch_size": 8, "masking": masking}
    return ours(student | {"positions": "sincos", "init": "xavier"}, "one student for all micro recipes")


def micro_optimization() -> dict[str, Any]:
    policy = {"lr": 2e-3, "warmup_epochs": 1, "weight_decay": 0.05, "betas": [0.9, 0.98], "clip_norm": 3.0}
    return {
        "optimization": ours(policy, "one schedule for all micro recipes"),
        "batch": ours(256, "small images"),
        "epochs": ours(20, "minutes on a laptop"),
    }
