"""CAE's recipes."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import Data, sized
from unimim.recipes.micro import MICRO_BLOCK, micro_optimization

CAE = "Atten4Vis/CAE @ a7fd162"
CODE = f"{CAE}, models/modeling_cae.py, modeling_cae_helper.py"
ENGINE = f"{CAE}, furnace/engine_for_pretraining.py"
SCRIPTS = f"{CAE}, scripts/cae_base_800e.sh, cae_large_1600e.sh"
SIZES = {
    "base": {"dim": 768, "depth": 12, "num_heads": 12, "layer_scale": 0.1},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16, "layer_scale": 1e-5},
}


def cae(size: str) -> Data:
    """CAE: dVAE ids of hidden patches, decoded from latents that a regressor predicts and aligns with the encoder's.

    300 or 800 epochs: epochs=300 optimization.warmup_epochs=10, or 800 and 20.
    """
    recipe: dict[str, Any] = {
        "title": "CAE",
        "row": "CAE (Chen et al., 2022a)",
        "paper": "Chen et al., 2022, Context Autoencoder for Self-Supervised Representation Learning",
        "status": "verified",
        "terms": {
            "mim": {
                "teacher": official({"name": "dvae"}, f"{CAE}, furnace/utils.py; openai/DALL-E @ 5be4b23"),
                "head": official({"name": "cae_decoder", "drop_path": 0.1}, f"{CODE}; {SCRIPTS}"),
                "loss": official("cross_entropy", ENGINE),
            },
            "align": {
                "teacher": official("cae_latent", f"{CODE}, alignment_parameter_update"),
                "head": official("cae_latent", CODE),
                "loss": official("l2", ENGINE),
                "weight": official(2.0, SCRIPTS),
            },
        },
        "student": official({"name": "cae", "drop_path": 0.1} | SIZES.get(size, {}), f"{CODE}; {SCRIPTS}"),
        "mask": official(
            {"name": "block", "count": 98, "exact": ours(True, "official code draws blocks until the count is met")},
            f"{CAE}, furnace/masking_generator.py; {SCRIPTS}",
        ),
        "views": official({"name": "crop", "scale": [0.08, 1.0]}, f"{CAE}, furnace/datasets.py; {SCRIPTS}"),
        "optimization": official(
            {
                "lr": 1.5e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 40,
                "warmup_includes_peak": True,
                "weight_decay": 0.05,
                "clip_norm": 3.0,
            },
            f"{SCRIPTS}; furnace/optim_factory.py: tokens are decayed; warm-up of 1600 epochs",
        ),
        "batch": official(2048, SCRIPTS),
        "epochs": official(1600, f"{CAE}, README, cae_large_1600e.sh (also 300 and 800)"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    tokenizer = {"name": "kmeans", "teacher": "pixel", "num_codes": 256}
    student = {"name": "cae", "image_size": 64, "patch_size": 8, "dim": 128, "depth": 6, "num_heads": 4}
    regressor = {"regressor_dim": 128, "regressor_depth": 2, "regressor_heads": 4}
    scales = {"layer_scale": 1.0, "regressor_layer_scale": 1.0}
    decoder = {"name": "cae_decoder", "depth": 2, "num_heads": 4, "layer_scale": 1.0}
    mim, align = recipe["terms"]["mim"], recipe["terms"]["align"]
    return (
        recipe
        | micro_optimization()
        | {
            "terms": {
                "mim": mim
                | {
                    "teacher": ours(tokenizer, "an offline tokenizer in place of the released dVAE"),
                    "head": ours(decoder, "in proportion to the student"),
                },
                "align": align,
            },
            "student": ours(
                student | regressor | scales, "as small as the micro ViT; full residual scales learn sooner"
            ),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.5}, "98 of 196 patches, on a smaller grid"),
        }
    )


RECIPES = sized("cae", cae, "base", "large", "micro")
