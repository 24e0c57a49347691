"""The row of MILAN in Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimim import official, ours
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization, micro_student

MILAN = "zejiangh/MILAN @ 7dcfe0f"
TEACHER = "runs/clip-teacher"
"""Where the micro recipe looks for its teacher, as `unimim teachers train-clip` writes it."""
EMBEDDING = {"official": 512, "micro": 128}
"""Width of the teacher's embedding: a mean over it times it is the sum that the paper's squared distance is."""


def milan(size: str) -> Mapping[str, Any]:
    """MILAN: CLIP's embedding of every token, decoded from the patches that CLIP attends to."""
    clip = {
        "name": "open_clip",
        "model": "ViT-B-16-quickgelu",
        "pretrained": "openai",
        "feature": "projected",
        "saliency": True,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    recipe = {
        "title": "MILAN",
        "row": "MILAN (Hou et al., 2022)",
        "paper": "Hou et al., 2022, MILAN: Masked Image Pretraining on Language Assisted Representation",
        "status": "verified",
        "teacher": official(clip, f"{MILAN}, clip_demo.py, engine_pretrain.py (pixels normalized as the student's)"),
        "norm": official("l2", f"{MILAN}, models_milan.py forward_loss"),
        "student": official(
            {"name": "vit", "size": size, "masking": "drop", "positions": "sincos", "init": "xavier"},
            f"{MILAN}, models_milan.py",
        ),
        "head": official({"name": "prompting_decoder"}, f"{MILAN}, models_milan.py forward_decoder"),
        "loss": official(
            "l2", f"{MILAN}, models_milan.py forward_loss: 2 - 2 cos, the squared distance of unit vectors"
        ),
        "weight": official(EMBEDDING["official"], f"{MILAN}, models_milan.py forward_loss: a sum over 512 numbers"),
        "where": official("all+class", f"{MILAN}, models_milan.py forward_loss"),
        "mask": official({"name": "attentive", "ratio": 0.75}, f"{MILAN}, models_milan.py, PRETRAIN.sh"),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{MILAN}, main_pretrain.py"),
        "optimization": official(
            {"lr": 1.5e-4, "lr_per_256": True, "warmup_epochs": 40, "weight_decay": 0.05, "betas": [0.9, 0.95]},
            f"{MILAN}, PRETRAIN.sh, main_pretrain.py",
        ),
        "batch": official(4096, f"{MILAN}, PRETRAIN.sh"),
        "epochs": official(400, f"{MILAN}, PRETRAIN.sh"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    decoder = {"name": "prompting_decoder", "dim": 64, "depth": 2, "num_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(clip | {"model": f"local-dir:{TEACHER}"}, "a small CLIP trained on the spot"),
            "weight": ours(EMBEDDING["micro"], "the width of that CLIP's embedding"),
            "student": micro_student("drop"),
            "head": ours(decoder, "in proportion to the student"),
        }
    )


RECIPES = sized("milan", milan, "base", "large", "micro")
