"""MaskFeat, taught by histograms of oriented gradients."""

from __future__ import annotations

from unimim import official, ours
from unimim.recipes import Data, sized
from unimim.recipes.micro import MICRO_BLOCK, micro_optimization, micro_student

SLOWFAST = "facebookresearch/SlowFast @ 287ec00"
CONFIGS = f"{SLOWFAST}, configs/masked_ssl/in1k_VIT_*_MaskFeat_PT.yaml"


def maskfeat(size: str) -> Data:
    """MaskFeat: histograms of oriented gradients of hidden patches."""
    student = {"name": "vit", "size": size, "masking": "replace", "positions": "learned"}
    nearest = ours("xavier", "nearest to the official deviation of 0.02; biases start at 0, not at 0.02")
    recipe = {
        "title": "MaskFeat",
        "row": "MaskFeat (Wei et al., 2021)",
        "paper": "Wei et al., 2021, Masked Feature Prediction for Self-Supervised Visual Pre-Training",
        "status": "unverified",
        "teacher": official({"name": "hog"}, f"{SLOWFAST}, slowfast/models/operators.py, masked.py"),
        "norm": official("identity", f"{SLOWFAST}, slowfast/models/masked.py; cells are normalized by the teacher"),
        "student": official(
            student | {"init": nearest}, f"{CONFIGS}; its last norm is the head's, slowfast/models/head_helper.py"
        ),
        "head": official("fc", f"{SLOWFAST}, slowfast/models/head_helper.py; the norm before it is the student's"),
        "loss": official("l2", f"{SLOWFAST}, slowfast/models/losses.py"),
        "mask": official(
            {"name": "block", "count": 78, "min_block": 15}, f"{SLOWFAST}, slowfast/datasets/imagenet.py: 0.4 of 196"
        ),
        "views": official({"name": "crop", "scale": [0.5, 1.0]}, CONFIGS),
        "optimization": official(
            {
                "lr": 2e-4,
                "lr_per_256": True,
                "min_lr": 8e-6,
                "warmup_epochs": 30,
                "warmup_lr": 8e-6,
                "weight_decay": 0.05,
                "clip_norm": 0.02,
            },
            f"{CONFIGS}: eight processes of 256 images; positions, class and mask token are decayed",
        ),
        "batch": official(2048, f"{CONFIGS}: eight processes of 256 images"),
        "epochs": official(1600, f"{SLOWFAST}, projects/maskfeat/README.md (published checkpoints; the yaml says 300)"),
        "precision": official("float32", CONFIGS),
    }
    if size != "micro":
        return recipe
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours({"name": "hog", "cell": 4}, "2 x 2 cells a patch, as at full size"),
            "student": micro_student(),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.4}, "78 of 196 patches, on a smaller grid"),
            "views": ours({"name": "crop"}, "small images"),
            "precision": ours("bfloat16", "faster, and after 60 steps the loss is the same to four digits"),
        }
    )


RECIPES = sized("maskfeat", maskfeat, "base", "large", "micro")
