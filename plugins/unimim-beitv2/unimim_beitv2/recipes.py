"""BEiT v2's recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimim import official, ours
from unimim.recipes import beit_style, sized
from unimim.recipes.micro import MICRO_BLOCK, micro_optimization, micro_student

BEIT2 = "microsoft/unilm @ 768a3c8, beit2"
CLIP = {"name": "open_clip", "model": "ViT-B-16-quickgelu", "pretrained": "openai", "feature": "projected"}
DINO = {"name": "timm", "model": "vit_base_patch16_224.dino"}
SMALL_CLIP = {"name": "open_clip", "model": "local-dir:runs/clip-teacher"}
HALF = [0.5, 0.5, 0.5]


def beitv2(size: str) -> Mapping[str, Any]:
    """BEiT v2: codes of VQ-KD at hidden patches, predicted from the last block and by patch aggregation.

    300 epochs: epochs=300 optimization.betas=[0.9,0.98] student.drop_path=0. Without aggregation: head=fc.
    """
    large = size == "large"
    recipe = {
        "title": "BEiT v2",
        "row": "BEiT v2 (Peng et al., 2022)",
        "paper": "Peng et al., 2022, BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers",
        "status": "verified",
        "teacher": official({"name": "vqkd"}, f"{BEIT2}/modeling_vqkd.py, norm_ema_quantizer.py"),
        "student": official(
            {"name": "vit", "size": size, "drop_path": 0.1} | beit_style(1e-5 if large else 0.1),
            f"{BEIT2}/modeling_pretrain.py, PRETRAINING.md",
        ),
        "head": official(
            {"name": "aggregation", "early": 20, "last": 23} if large else {"name": "aggregation"},
            f"{BEIT2}/modeling_pretrain.py; PRETRAINING.md: 2 layers after the {'21st' if large else '9th'}",
        ),
        "loss": official("cross_entropy", f"{BEIT2}/engine_for_pretraining.py: the sum of both"),
        "mask": official(
            {"name": "block", "count": 75, "exact": True}, f"{BEIT2}/masking_generator.py, PRETRAINING.md"
        ),
        "views": official({"name": "crop", "scale": [0.2, 1.0], "jitter": 0.4}, f"{BEIT2}/datasets.py, PRETRAINING.md"),
        "optimization": official(
            {
                "lr": 1.5e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 10,
                "warmup_includes_peak": True,
                "weight_decay": 0.05,
                "betas": [0.9, 0.999],
                "no_decay": ["pos_embed", "prefix"],
                "clip_norm": 3.0,
            },
            f"{BEIT2}/PRETRAINING.md (1600 epochs), optim_factory.py, utils.py",
        ),
        "batch": official(2048, f"{BEIT2}/PRETRAINING.md"),
        "epochs": official(1600, f"{BEIT2}/PRETRAINING.md (also 300)"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    tokenizer = {"name": "kmeans", "teacher": SMALL_CLIP, "num_codes": 256, "normalize": True, "max_tokens": 65536}
    head = {"name": "aggregation", "early": 3, "last": 5, "num_blocks": 1}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(
                tokenizer, "codes of a small CLIP's features, which VQ-KD's stand for, without its training"
            ),
            "student": micro_student(),
            "head": ours(head, "after four of six blocks one more, as two after nine of twelve"),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.4}, "75 of 196 patches, on a smaller grid"),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


def vqkd(target: str) -> Mapping[str, Any]:
    """VQ-KD, the tokenizer of BEiT v2: a student whose patches, as codes, tell a decoder what a teacher sees.

    A decoder of one block, whose codes are all in use: head.depth=1.
    """
    dino = target == "dino"
    student = {"name": "vit", "size": "base", "masking": "none", "qkv_bias": "qv", "mean": HALF, "std": HALF}
    recipe = {
        "title": "VQ-KD",
        "paper": "Peng et al., 2022, BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers",
        "status": "verified",
        "teacher": official(
            DINO if dino else CLIP,
            f"{BEIT2}/modeling_vqkd.py: patches of ViT-B/16, "
            + ("after the final norm" if dino else "after the final norm and the projection"),
        ),
        "student": official(student, f"{BEIT2}/modeling_vqkd.py: pixels in [-1, 1]"),
        "head": official(
            {"name": "vqkd", "depth": 1 if dino else 3},
            f"{BEIT2}/modeling_vqkd.py, norm_ema_quantizer.py, TOKENIZER.md: 8192 codes of 32 numbers",
        ),
        "loss": official("cosine", f"{BEIT2}/modeling_vqkd.py, TOKENIZER.md"),
        "where": official("all", f"{BEIT2}/modeling_vqkd.py"),
        "mask": official("none", f"{BEIT2}/modeling_vqkd.py"),
        "views": official({"name": "crop", "scale": [0.08, 1.0]}, f"{BEIT2}/TOKENIZER.md, run_vqkd_training.py"),
        "optimization": official(
            {
                "lr": 1e-4,
                "lr_per_256": True,
                "min_lr": 1e-5,
                "warmup_epochs": 10,
                "warmup_includes_peak": True,
                "weight_decay": 1e-4,
                "betas": [0.9, 0.99],
                "no_decay": ["pos_embed", "prefix"],
            },
            f"{BEIT2}/TOKENIZER.md, run_vqkd_training.py (5e-5 for 128 images), utils.py",
        ),
        "batch": official(512, f"{BEIT2}/TOKENIZER.md: 8 processes of 64"),
        "epochs": official(100, f"{BEIT2}/TOKENIZER.md"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler; codes are float32 in both"),
    }
    if target != "micro":
        return recipe
    schedule = micro_optimization()
    slower = ours(
        schedule["optimization"].value | {"lr": 2e-4},
        "the official peak; after 120 steps the codes have a perplexity of 7, and of 2 at 2e-3, the rate of other micro recipes",
    )
    return (
        recipe
        | schedule
        | {
            "optimization": slower,
            "teacher": ours(SMALL_CLIP | {"feature": "projected"}, "a small CLIP trained on the spot"),
            "student": ours(
                micro_student("none").value | {"qkv_bias": "qv", "mean": HALF, "std": HALF},
                "the student of all micro recipes, as a tokenizer",
            ),
            "head": ours(
                {"name": "vqkd", "num_codes": 256, "dim": 64, "depth": 2, "num_heads": 4},
                "as many codes as beitv2-micro",
            ),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


RECIPES = sized("beitv2", beitv2, "base", "large", "micro") | sized("vqkd", vqkd, "clip", "dino", "micro")
