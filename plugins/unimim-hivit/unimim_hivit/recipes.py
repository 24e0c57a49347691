"""HiViT as a row of the paper's Table 1."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization

HIVIT = "zhangxiaosong18/hivit @ 2718339, self_supervised"


def hivit(size: str) -> dict[str, Any]:
    """HiViT: normalized pixels of hidden patches, predicted from three scales of a hierarchical vision transformer."""
    recipe = {
        "title": "HiViT",
        "row": "HiViT (Zhang et al., 2022)",
        "paper": "Zhang et al., 2022, HiViT: Hierarchical Vision Transformer Meets Masked Image Modeling",
        "status": "verified",
        "teacher": official({"name": "pixel"}, f"{HIVIT}, models/masked_autoencoder.py patchify"),
        "norm": official(
            {"name": "layer", "unbiased": True, "eps": 1e-6}, f"{HIVIT}, models/masked_autoencoder.py (always on)"
        ),
        "student": official({"name": "hivit"}, f"{HIVIT}, models/models_hivit_mae.py mae_hivit_base_dec512d6b"),
        "head": official({"name": "decoder", "depth": 6}, f"{HIVIT}, models/models_hivit_mae.py"),
        "loss": official("l2", f"{HIVIT}, models/masked_autoencoder.py"),
        "mask": official({"name": "random", "ratio": 0.75}, f"{HIVIT}, get_started.md, masking_id"),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{HIVIT}, main_pretrain.py"),
        "optimization": official(
            {"lr": 1e-4, "lr_per_256": True, "warmup_epochs": 40, "weight_decay": 0.05, "betas": [0.9, 0.95]},
            f"{HIVIT}, get_started.md, main_pretrain.py",
        ),
        "batch": official(4096, f"{HIVIT}, get_started.md: 8 x 256 x 2"),
        "epochs": official(1600, f"{HIVIT}, get_started.md"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    student = {"name": "hivit", "image_size": 64, "patch_size": 8, "dim": 128, "depth": 4, "num_heads": 4}
    decoder = {"name": "decoder", "dim": 64, "depth": 2, "num_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "student": ours(student | {"stem_depths": [1, 1]}, "six blocks on 8 x 8 tokens, as the micro ViT"),
            "head": ours(decoder, "in proportion to the student"),
        }
    )


RECIPES = sized("hivit", hivit, "base", "micro")
