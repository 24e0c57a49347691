"""ConvMAE as a row of the paper's Table 1."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization

CONVMAE = "Alpha-VL/ConvMAE @ 4c97b4c"


def convmae(size: str) -> dict[str, Any]:
    """ConvMAE: normalized pixels of hidden patches, predicted from three scales of a convolutional transformer."""
    recipe = {
        "title": "ConvMAE",
        "row": "ConvMAE (Gao et al., 2022)",
        "paper": "Gao et al., 2022, ConvMAE: Masked Convolution Meets Masked Autoencoders",
        "status": "verified",
        "teacher": official({"name": "pixel"}, f"{CONVMAE}, models_convmae.py patchify"),
        "norm": official(
            {"name": "layer", "unbiased": True, "eps": 1e-6}, f"{CONVMAE}, models_convmae.py forward_loss"
        ),
        "student": official({"name": "convmae"}, f"{CONVMAE}, models_convmae.py convmae_convvit_base_patch16"),
        "head": official({"name": "decoder"}, f"{CONVMAE}, models_convmae.py forward_decoder"),
        "loss": official("l2", f"{CONVMAE}, models_convmae.py forward_loss"),
        "mask": official({"name": "random", "ratio": 0.75}, f"{CONVMAE}, PRETRAIN.md"),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{CONVMAE}, main_pretrain.py"),
        "optimization": official(
            {"lr": 1.5e-4, "lr_per_256": True, "warmup_epochs": 40, "weight_decay": 0.05, "betas": [0.9, 0.95]},
            f"{CONVMAE}, PRETRAIN.md",
        ),
        "batch": official(3072, f"{CONVMAE}, PRETRAIN.md: 24 x 128; the author names 2048 (issue 6), the paper 1024"),
        "epochs": official(1600, f"{CONVMAE}, PRETRAIN.md"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    student = {"name": "convmae", "image_size": 64, "patch_size": 8, "dim": 128, "depth": 4, "num_heads": 4}
    student |= {"conv_dims": [24, 48], "conv_depths": [1, 1]}
    decoder = {"name": "decoder", "dim": 64, "depth": 2, "num_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "student": ours(student, "six blocks on 8 x 8 tokens, as the micro ViT"),
            "head": ours(decoder, "in proportion to the student"),
        }
    )


RECIPES = sized("convmae", convmae, "base", "micro")
