"""MSN's recipes."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import Data, sized
from unimim.recipes.micro import micro_optimization, micro_student

MSN = "facebookresearch/msn @ 4388dc1"
CONFIG = f"{MSN}, configs/pretrain/msn_vits16.yaml"
COLORS = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2, "blur": 0.5}


def _masks(num_focal: int, ratio: float) -> dict[str, Any]:
    return {"main": {"name": "random", "ratio": ratio}} | {f"focal{number}": "none" for number in range(num_focal)}


def msn(size: str) -> Data:
    """MSN: the prototypes of one crop, told from another with patches left out and from ten small ones.

    Only ViT-S was released as a recipe. The paper hides 0.3 for ViT-B and 0.7 for ViT-L: masks.main.ratio=0.7.
    """
    decay = {"start": 0.996, "end": 1.0, "until": 1.25}
    teacher = {"name": "self", "head": "image", "batch_norm": "batch", "decay": decay, "head_dim": 256}
    student = {"name": "vit", "size": size, "masking": "drop"}
    recipe: dict[str, Any] = {
        "title": "MSN",
        "row": "MSN (Assran et al., 2022)",
        "paper": "Assran et al., 2022, Masked Siamese Networks for Label-Efficient Learning",
        "status": "verified",
        "student": official(student, f"{MSN}, src/deit.py; start values cut at one deviation: ours"),
        "views": official(
            {"name": "multi_crop", "num_focal": 10, "focal_size": 96, "colors": COLORS},
            f"{CONFIG}, src/data_manager.py",
        ),
        "masks": official(_masks(10, 0.15), CONFIG),
        "terms": {
            "mim": {
                "teacher": official(teacher, f"{MSN}, src/msn_train.py"),
                "head": official("msn", f"{MSN}, src/deit.py"),
                "loss": official("msn", f"{MSN}, src/losses.py; {CONFIG}"),
                "where": official("image", f"{MSN}, src/msn_train.py"),
                "view": official("target", f"{MSN}, src/msn_train.py"),
            }
        },
        "optimization": official(
            {
                "lr": 1e-3,
                "min_lr": 1e-6,
                "warmup_lr": 2e-4,
                "warmup_epochs": 15,
                "until": 1.25,
                "weight_decay": {"start": 0.04, "end": 0.4, "until": 1.25, "shape": "cosine"},
                "no_decay": ["prototypes"],
                "clip_norm": 3.0,
            },
            f"{CONFIG}, src/msn_train.py, src/utils.py",
        ),
        "batch": official(1024, f"{CONFIG}: 64 on each of 16 GPUs"),
        "epochs": official(800, CONFIG),
        "precision": official("float32", f"{MSN}, src/msn_train.py: use_fp16 is read and not used"),
    }
    if size != "micro":
        return recipe
    term = recipe["terms"]["mim"] | {
        "teacher": ours(
            teacher | {"head_dim": 64, "decay": decay | {"start": 0.99}}, "a faster copy for thousands of steps"
        ),
        "head": ours({"name": "msn", "hidden": 256}, "in proportion to the student"),
        "loss": ours({"name": "msn", "num_prototypes": 64}, "fewer than images in a batch"),
    }
    policy = micro_optimization()
    return (
        recipe
        | policy
        | {
            "optimization": ours(policy["optimization"].value | {"no_decay": ["prototypes"]}, "as all micro recipes"),
            "terms": {"mim": term},
            "student": micro_student("drop"),
            "views": ours(
                {"name": "multi_crop", "num_focal": 2, "focal_size": 32, "colors": COLORS}, "fewer and smaller views"
            ),
            "masks": ours(_masks(2, 0.15), "the official share, with two focal views"),
        }
    )


RECIPES = sized("msn", msn, "small", "micro")
