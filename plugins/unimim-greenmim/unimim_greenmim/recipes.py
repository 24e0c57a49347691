"""The recipes of GreenMIM, with the source of every number."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization

GREENMIM = "LayneH/GreenMIM @ b981012"
SWIN = {"masking": "drop", "init": "xavier", "eps": 1e-6}


def greenmim(size: str) -> dict[str, Any]:
    """GreenMIM: normalized pixels of hidden 32-pixel units, decoded from a Swin over visible units."""
    large = size == "large"
    script = f"scripts/{'run_greenmim_swin_large_win14' if large else 'srun_greenmim_swin_base'}.sh"
    student = {"name": "swin", "size": size, "image_size": 224, "window": 14 if large else 7}
    recipe = {
        "title": "GreenMIM",
        "row": "GreenMIM (Huang et al., 2022)",
        "paper": "Huang et al., 2022, Green Hierarchical Vision Transformer for Masked Image Modeling",
        "status": "verified",
        "teacher": official("pixel", f"{GREENMIM}, modeling/base_green_models.py patchify"),
        "norm": official(
            {"name": "layer", "unbiased": True, "eps": 1e-6}, f"{GREENMIM}, modeling/base_green_models.py, {script}"
        ),
        "student": official(student | SWIN, f"{GREENMIM}, modeling/model_factory.py, base_green_models.py"),
        "head": official(
            {"name": "decoder", "dim": 512, "depth": 1, "num_heads": 16},
            f"{GREENMIM}, modeling/model_factory.py; each visible token at its own position: ours, see greenmim_decoder",
        ),
        "loss": official("l2", f"{GREENMIM}, modeling/base_green_models.py forward_loss"),
        "mask": official(
            {"name": "random", "ratio": 0.75}, f"{GREENMIM}, {script}; one mask an image, not a batch: ours"
        ),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{GREENMIM}, main_pretrain.py"),
        "optimization": official(
            {
                "lr": 1e-4,
                "lr_per_256": True,
                "warmup_epochs": 40,
                "weight_decay": 0.05,
                "no_decay": ["mask_token", "table"],
                "betas": [0.9, 0.95],
            },
            f"{GREENMIM}, {script}, main_pretrain.py",
        ),
        "batch": official(2048, f"{GREENMIM}, {script}: 256 in each of 8 processes, its default"),
        "epochs": official(800, f"{GREENMIM}, {script}"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    student = {
        "name": "swin",
        "dim": 64,
        "depths": [2, 4],
        "num_heads": [2, 4],
        "image_size": 64,
        "patch_size": 4,
        "window": 4,
    }
    decoder = {"name": "decoder", "dim": 64, "depth": 2, "num_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "student": ours(student | SWIN, "six blocks and 8 x 8 last tokens of width 128, as the micro ViT"),
            "head": ours(decoder, "in proportion to the student"),
        }
    )


RECIPES = sized("greenmim", greenmim, "base", "large", "micro")
