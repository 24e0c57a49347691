"""SIM's recipes."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import Data, sized
from unimim.recipes.micro import MICRO_BLOCK, micro_optimization

SIM = "OpenGVLab/Siamese-Image-Modeling @ bbdec30"
MODEL, SCRIPT = f"{SIM}, models_sim.py", f"{SIM}, configs/pretrain/dist_sim_base_1600ep.sh"
COLORS = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grey": 0.2}


def sim(size: str) -> Data:
    """SIM: from a masked crop, the features that a momentum teacher gives every patch of another crop."""
    decay = {"start": 0.995, "end": 1.0, "shape": "cosine"}
    recipe: dict[str, Any] = {
        "title": "SIM",
        "row": "SIM (Tao et al., 2022)",
        "paper": "Tao et al., 2022, Siamese Image Modeling for Self-Supervised Vision Representation Learning",
        "status": "verified",
        "teacher": official(
            {"name": "self", "decay": decay, "update": "step_start", "head": "patches", "head_dim": 768}
            | {"batch_norm": "batch"},
            f"{MODEL}, mm_update; engine_pretrain.py; {SCRIPT}",
        ),
        "norm": official("layer", f"{MODEL}, teacher_norm: no affine part, eps 1e-5"),
        "student": official({"name": "sim"}, f"{MODEL}; {SCRIPT} (patch embedding not trained)"),
        "head": official({"name": "sim_decoder"}, f"{MODEL}; {SCRIPT}"),
        "loss": official("unigrad", f"{MODEL}, compute_unigrad_loss; {SCRIPT}"),
        "where": official("all", MODEL),
        "view": official("other", f"{MODEL}, forward_sim"),
        "mask": official(
            {"name": "block", "count": 118, "exact": True}, f"{SCRIPT}; util/masking_generator.py, filled up at random"
        ),
        "views": official(
            {"name": "pair", "crops": "independent", "scale": [0.08, 1.0]}
            | {"main": COLORS | {"blur": 1.0}, "other": COLORS | {"blur": 0.1, "solarize": 0.2}},
            f"{SIM}, main_pretrain.py, DataAugmentationForSIM; {SCRIPT}",
        ),
        "optimization": official(
            {"lr": 6.25e-5, "lr_per_256": True, "warmup_epochs": 40, "weight_decay": 0.05}
            | {"betas": [0.9, 0.95], "clip_norm": 1.0},
            f"{SCRIPT}; main_pretrain.py: tokens are decayed",
        ),
        "batch": official(4096, SCRIPT),
        "epochs": official(1600, SCRIPT),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    student = {"name": "sim", "image_size": 64, "patch_size": 8, "dim": 128, "depth": 6, "num_heads": 4}
    decoder = {"name": "sim_decoder", "dim": 64, "projector_depth": 1, "predictor_depth": 2, "num_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(
                {"name": "self", "decay": decay, "update": "step_start", "head": "patches", "head_dim": 64}
                | {"batch_norm": "batch"},
                "as wide as the small decoder",
            ),
            "student": ours(student, "as small as the micro ViT"),
            "head": ours(decoder, "in proportion to the student"),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.6}, "118 of 196 patches, on a smaller grid"),
            "views": ours({"name": "pair", "scale": [0.2, 1.0]}, "small images, colours as they are"),
        }
    )


RECIPES = sized("sim", sim, "base", "micro")
