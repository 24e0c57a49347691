"""The row of BootMAE in Table 1."""

from __future__ import annotations

from typing import Any

from unimim import official, ours
from unimim.recipes import Data, sized
from unimim.recipes.micro import micro_optimization, micro_student

BOOTMAE = "LightDXY/BootMAE @ d604b18"
MODEL = f"{BOOTMAE}, models/modeling_pretrain_bootmae.py"
LOOP = f"{BOOTMAE}, run_pretraining.py train_one_epoch"
SCRIPTS = f"{BOOTMAE}, scripts/pretrain"
EPOCHS = 801
"""Of the schedules; the published files were saved after 800."""
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3}
DEPTHS = {"base": 12, "large": 24, "micro": 6}
DIMS = {"base": 768, "large": 1024, "micro": 64}


def momentum(epochs: int, dynamic: bool) -> Data:
    """d = 0.999 to 0.9999 in 100 epochs; if dynamic (--model_ema_dynamic: ViT-B's script) on to 0.99999 in 300 more."""
    rise: Data = {"start": 0.999, "end": 0.9999, "until": 100 / epochs}
    further = {"start": 0.9999, "end": 0.99999, "until": 300 / (epochs - 100)}
    return {**rise, "then": further} if dynamic else rise


def ramp(epochs: int) -> Data:
    """min(4 (1 + epoch) / epochs, 1) at the beginning of every epoch, and on a straight line between."""
    return {"start": 4 / epochs, "end": 1.0, "until": 0.25 - 1 / epochs}


def bootmae(size: str) -> Data:
    """BootMAE: pixels, and features of a momentum copy, from two decoders that are given an early and the last layer.

    The official float32 copy hardly follows at 0.99999 (README of the plugin); terms.features.teacher.decay of the large
    size ends at 0.9999.
    """
    large, last = size == "large", DEPTHS[size] - 1
    heads = 16 if large else 12
    decoder = {"name": "injected_decoder", "num_heads": heads}
    teacher = {"name": "self", "layers": [last], "decay_per": "epoch"}
    student = {"name": "vit", "size": size, "masking": "drop", "positions": "sincos_row", "qkv_bias": "qv"}
    recipe: dict[str, Any] = {
        "title": "BootMAE",
        "row": "BootMAE (Dong et al., 2022)",
        "paper": "Dong et al., 2022, Bootstrapped Masked Autoencoders for Vision BERT Pretraining",
        "status": "verified",
        "student": official(student | PIXELS | {"init": ours("xavier", "start values: README")}, MODEL),
        "terms": {
            "features": {
                "teacher": official(
                    teacher | {"decay": momentum(EPOCHS, dynamic=not large)},
                    f"{BOOTMAE}, utils.py adjust_ema_momentum; {SCRIPTS}",
                ),
                "norm": official({"name": "layer", "eps": 1e-6}, LOOP),
                "head": official(decoder | {"inject": last, "dim": DIMS[size]}, MODEL),
                "loss": official("layer_l2", LOOP),
                "weight": official(ramp(EPOCHS), f"{LOOP}; every step: ours, official every epoch"),
            },
            "pixels": {
                "teacher": official({"name": "pixel"} | PIXELS, LOOP),
                "norm": official("layer_by_channel", LOOP),
                "head": official(decoder | {"inject": 0}, MODEL),
                "loss": official("l2", LOOP),
            },
        },
        "mask": official(
            {"name": "rolled_block"}, f"{BOOTMAE}, masking_generator.py, utils.py mask_to_index; {SCRIPTS}"
        ),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{BOOTMAE}, datasets.py, run_pretraining.py"),
        "optimization": official(
            {
                "lr": 1.5e-4,
                "lr_per_256": True,
                "min_lr": 1e-5 if large else 1e-4,
                "warmup_epochs": 40,
                "warmup_includes_peak": True,
                "weight_decay": 0.05,
                "no_decay": ["prefix"],
                "betas": [0.9, 0.95],
            },
            f"{SCRIPTS}, utils.py cosine_scheduler, optim_factory.py",
        ),
        "batch": ours(
            4096, f"{BOOTMAE}, README: 256 on each of 16; the same sentence says 2048. Large: 128, of how many?"
        ),
        "epochs": official(EPOCHS, SCRIPTS),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    features, pixels = recipe["terms"]["features"], recipe["terms"]["pixels"]
    small = {"name": "injected_decoder", "dim": 64, "num_heads": 4}
    decay = {"start": 0.99, "end": 0.999, "until": 0.5}
    return (
        recipe
        | micro_optimization()
        | {
            "student": micro_student("drop"),
            "terms": {
                "features": features
                | {
                    "teacher": ours(teacher | {"decay": decay}, "a faster copy for thousands of steps"),
                    "head": ours(small | {"inject": last}, "in proportion to the student"),
                    "weight": ours({"start": 0.0, "end": 1.0, "until": 0.25}, "over the first quarter"),
                },
                "pixels": pixels
                | {
                    "teacher": ours("pixel", "mean and std of the micro student"),
                    "head": ours(small, "in proportion to the student"),
                },
            },
            "mask": ours(
                {"name": "rolled_block", "min_block": 5, "max_block": 20, "roll": 1}, "as many of a smaller grid"
            ),
        }
    )


RECIPES = sized("bootmae", bootmae, "base", "large", "micro")
