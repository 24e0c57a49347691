"""ConMIM's recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimim import official, ours
from unimim.recipes import beit_style, sized
from unimim.recipes.micro import micro_optimization, micro_student

CONMIM = "TencentARC/ConMIM @ 4263955"
COLORS = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
TEACHER = {
    "name": "self",
    "decay": {"start": 0.996, "end": 1.0, "shape": "cosine"},
    "head": "patches",
    "head_dim": 256,
    "batch_norm": "batch",
}


def conmim(size: str) -> Mapping[str, Any]:
    """ConMIM: which patch of the image it is, told from what a momentum copy makes of the whole, recoloured image.

    The published command is for the large size.
    """
    large = size == "large"
    policy = {
        "lr": 7.5e-4,
        "min_lr": 1e-5,
        "warmup_epochs": 10,
        "warmup_includes_peak": True,
        "weight_decay": 0.05,
        "betas": [0.9, 0.98],
        "no_decay": ["pos_embed", "prefix"],
        "clip_norm": 1.0,
    }
    cite = official if large else ours
    command = f"{CONMIM}, README" if large else "that of the published command, which is for ViT-L"
    recipe = {
        "title": "ConMIM",
        "row": "ConMIM (Yi et al., 2022)",
        "paper": "Yi et al., 2022, Masked Image Modeling with Denoising Contrast",
        "status": "verified",
        "teacher": official(TEACHER, f"{CONMIM}, engine_for_pretraining.py, run_conmim_pretraining.py"),
        "norm": official("identity", f"{CONMIM}, modeling_pretrain.py: the projector ends in a BatchNorm"),
        "student": official(
            {"name": "vit", "size": size} | beit_style(1e-5 if large else 0.1),
            f"{CONMIM}, modeling_pretrain.py, run_conmim_pretraining.py",
        ),
        "head": official("projector", f"{CONMIM}, modeling_pretrain.py"),
        "loss": official({"name": "info_nce", "temperature": 0.1}, f"{CONMIM}, engine_for_pretraining.py"),
        "mask": official({"name": "random", "ratio": 0.75, "unit": 2}, f"{CONMIM}, masking_generator.py, README"),
        "view": official("other", f"{CONMIM}, engine_for_pretraining.py"),
        "views": official(
            {
                "name": "pair",
                "crops": "shared",
                "scale": [0.08, 1.0],
                "other": COLORS | {"grey": 0.2, "blur": 0.1, "solarize": 0.2},
            },
            f"{CONMIM}, datasets.py",
        ),
        "optimization": cite(policy, command),
        "batch": cite(2048, command),
        "epochs": official(1600 if large else 800, f"{CONMIM}, README"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    faster = TEACHER | {"head_dim": 64, "decay": {"start": 0.98, "end": 1.0, "shape": "cosine"}}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(faster, "a narrower copy, faster for thousands of steps"),
            "student": micro_student(),
            "head": ours({"name": "projector", "hidden_dim": 256}, "in proportion to the student"),
            "mask": ours({"name": "random", "ratio": 0.75, "unit": 2}, "two patches of eight wide"),
        }
    )


RECIPES = sized("conmim", conmim, "base", "large", "micro")
