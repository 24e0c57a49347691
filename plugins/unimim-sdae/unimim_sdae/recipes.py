"""The row of SdAE in Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimim import official, ours
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization, micro_student

SDAE = "AbrahamYabo/SdAE @ 2e08b31"


def sdae(size: str) -> Mapping[str, Any]:
    """SdAE: features of groups of hidden patches by a momentum encoder that sees nothing else.

    The usual cosine, over channels, with the same groups: loss=cosine.
    """
    student = {"name": "vit", "size": size, "masking": "drop", "positions": "sincos", "init": "xavier"}
    teacher = {"name": "sdae", "decay": {"start": 0.96, "end": 0.99, "shape": "cosine"}}
    recipe = {
        "title": "SdAE",
        "row": "SdAE (Chen et al., 2022b)",
        "paper": "Chen et al., 2022, SdAE: Self-distillated Masked Autoencoder",
        "status": "verified",
        "teacher": official(teacher, f"{SDAE}, models_teacher.py, engine_pretrain.py, util/cosine_scheduler.py"),
        "norm": official({"name": "layer", "unbiased": True, "eps": 1e-6}, f"{SDAE}, engine_pretrain.py"),
        "student": official(student | {"drop_path": 0.25}, f"{SDAE}, models_mae.py, main_pretrain.py"),
        "head": official("decoder", f"{SDAE}, models_mae.py; its output is as wide as the encoder"),
        "loss": official(
            {"name": "token_cosine", "groups": 3}, f"{SDAE}, engine_pretrain.py (axis 1 of folds), README"
        ),
        "mask": official({"name": "folded", "ratio": 0.75, "groups": 3}, f"{SDAE}, README: 147 patches, 3 crops"),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{SDAE}, main_pretrain.py"),
        "optimization": official(
            {"lr": 2.666e-4, "lr_per_256": True, "warmup_epochs": 60, "weight_decay": 0.04, "betas": [0.9, 0.95]},
            f"{SDAE}, README, main_pretrain.py (weight_decay_end is read by nothing)",
        ),
        "batch": official(768, f"{SDAE}, README: 8 processes of 96"),
        "epochs": official(300, f"{SDAE}, README"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    decoder = {"name": "decoder", "dim": 64, "depth": 2, "num_heads": 4}
    decay = {"start": 0.54, "end": 0.86, "shape": "cosine"}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(teacher | {"decay": decay}, "one epoch of 20 stands for 15 of 300: 0.96^15 and 0.99^15"),
            "student": micro_student("drop"),
            "head": ours(decoder, "in proportion to the student"),
        }
    )


RECIPES = sized("sdae", sdae, "base", "micro")
