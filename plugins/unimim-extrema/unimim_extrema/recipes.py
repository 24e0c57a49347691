"""ExtreMA's recipes."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import Data, sized
from unimim.recipes.micro import micro_optimization

EXTREMA = "microsoft/ExtreMA @ bf30b64"
COLORS = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grey": 0.2}


def extrema(size: str) -> Data:
    """ExtreMA: what a momentum copy says of the whole image, predicted from each of five disjoint fifths of its patches.

    90 % hidden, eight times: mask.folds=8 mask.ratio=0.9. Without colour: view=main views.main.jitter=0 views.main.grey=0.
    """
    teacher = {"name": "self", "head": "image", "update": "step_start"}
    decay = {"start": 0.996, "end": 1.0, "shape": "cosine"}
    recipe: dict[str, Any] = {
        "title": "ExtreMA",
        "row": "ExtreMA (Wu et al., 2022)",
        "paper": "Wu et al., 2022, Extreme Masking for Learning Instance and Distributed Visual Representations",
        "status": "verified",
        "student": official({"name": "extrema", "drop_path": 0.1}, f"{EXTREMA}, vits.py, README"),
        "views": official(
            {"name": "pair", "crops": "shared", "interpolation": "bilinear", "main": COLORS, "other": COLORS},
            f"{EXTREMA}, main.py, lib/augment.py",
        ),
        "mask": official({"name": "split", "folds": 5, "ratio": 0.8}, f"{EXTREMA}, lib/builder.py, README"),
        "terms": {
            "mim": {
                "teacher": official(teacher | {"head_dim": 256, "decay": decay}, f"{EXTREMA}, lib/builder.py, main.py"),
                "head": official("extrema", f"{EXTREMA}, lib/builder.py"),
                "loss": official("cosine", f"{EXTREMA}, lib/builder.py byol_loss: |p - t|^2 = 2 (1 - cos)"),
                "where": official("image", f"{EXTREMA}, lib/builder.py"),
                "view": official("other", f"{EXTREMA}, lib/builder.py"),
                "weight": official(2.0, f"{EXTREMA}, lib/builder.py byol_loss: |p - t|^2 = 2 (1 - cos)"),
            }
        },
        "optimization": official(
            {
                "lr": 1.5e-4,
                "lr_per_256": True,
                "warmup_epochs": 40,
                "weight_decay": 0.1,
                "betas": [0.9, 0.95],
                "no_decay": ["prefix"],
            },
            f"{EXTREMA}, main.py, README",
        ),
        "batch": official(2048, f"{EXTREMA}, README"),
        "epochs": official(300, f"{EXTREMA}, README"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    student = {"name": "extrema", "image_size": 64, "patch_size": 8, "dim": 128, "depth": 6, "num_heads": 4}
    term = recipe["terms"]["mim"] | {
        "teacher": ours(teacher | {"head_dim": 64, "decay": decay}, "in proportion to the student; the official decay"),
        "head": ours({"name": "extrema", "hidden": 512}, "in proportion to the student"),
    }
    shared = micro_optimization()
    slower = {"lr": 5e-4, "warmup_epochs": 5}
    return (
        recipe
        | shared
        | {
            "terms": {"mim": term},
            "student": ours(student, "as small as the micro ViT"),
            "optimization": ours(
                {**shared["optimization"].value, **slower}, "the shared rate of 2e-3 leaves the target one direction"
            ),
        }
    )


RECIPES = sized("extrema", extrema, "base", "micro")
