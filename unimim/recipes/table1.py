"""Rows of the paper's Table 1, one function each."""

from __future__ import annotations

from typing import Any

from ..provenance import official, ours, paper
from . import Data, beit_style, sized
from .micro import MICRO_BLOCK, TEACHER, micro_optimization, micro_student

MAE = "facebookresearch/mae @ efb2a80"
BEIT = "microsoft/unilm @ 768a3c8, beit"
MASKFEAT = "facebookresearch/SlowFast @ 287ec00"
SIMMIM = "microsoft/SimMIM @ d3e29bc"
DATA2VEC = "facebookresearch/data2vec_vision @ af9a363, beit"


def mae(size: str) -> Data:
    """MAE: normalized pixels of hidden patches, predicted by a decoder from visible ones."""
    student = {"name": "vit", "size": size, "masking": "drop", "positions": "sincos", "init": "xavier"}
    recipe = {
        "title": "MAE",
        "row": "MAE (He et al., 2022)",
        "paper": "He et al., 2022, Masked Autoencoders Are Scalable Vision Learners",
        "status": "verified",
        "teacher": official({"name": "pixel"}, f"{MAE}, models_mae.py patchify"),
        "norm": official({"name": "layer", "unbiased": True, "eps": 1e-6}, f"{MAE}, models_mae.py forward_loss"),
        "student": official(student | ({"patch_size": 14} if size == "huge" else {}), f"{MAE}, models_mae.py"),
        "head": official({"name": "decoder"}, f"{MAE}, models_mae.py"),
        "loss": official("l2", f"{MAE}, models_mae.py forward_loss"),
        "mask": official({"name": "random", "ratio": 0.75}, f"{MAE}, PRETRAIN.md"),
        "views": official({"name": "crop", "scale": [0.2, 1.0]}, f"{MAE}, main_pretrain.py"),
        "optimization": official(
            {"lr": 1.5e-4, "lr_per_256": True, "warmup_epochs": 40, "weight_decay": 0.05, "betas": [0.9, 0.95]},
            f"{MAE}, PRETRAIN.md",
        ),
        "batch": official(4096, f"{MAE}, PRETRAIN.md"),
        "epochs": official(1600, f"{MAE}, PRETRAIN.md (published checkpoints; the command says 800)"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    decoder = {"name": "decoder", "dim": 64, "depth": 2, "num_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "student": micro_student("drop"),
            "head": ours(decoder, "in proportion to the student"),
        }
    )


def beit(size: str) -> Data:
    """BEiT: ids of a discrete VAE's codebook at hidden patches.

    The 83.2 row: student.positions=learned student.relative_positions=none student.layer_scale=null.
    """
    recipe = {
        "title": "BEiT",
        "row": "BEiT (Bao et al., 2022)",
        "paper": "Bao et al., 2022, BEiT: BERT Pre-Training of Image Transformers",
        "status": "verified",
        "teacher": official({"name": "dvae"}, f"{BEIT}, modeling_discrete_vae.py; openai/DALL-E @ 5be4b23"),
        "student": official(
            _beit_student(size, layer_scale=0.1 if size == "base" else 1e-5), f"{BEIT}, modeling_pretrain.py, README"
        ),
        "head": official("fc", f"{BEIT}, modeling_pretrain.py"),
        "loss": official("cross_entropy", f"{BEIT}, engine_for_pretraining.py"),
        "mask": official({"name": "block", "count": 75}, f"{BEIT}, masking_generator.py, README"),
        "views": official({"name": "crop", "scale": [0.08, 1.0], "jitter": 0.4}, f"{BEIT}, datasets.py"),
        "optimization": official(_BEIT_OPTIMIZATION, f"{BEIT}, README, optim_factory.py"),
        "batch": official(2048, f"{BEIT}, README"),
        "epochs": official(800, f"{BEIT}, README"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    tokenizer = {"name": "kmeans", "teacher": "pixel", "num_codes": 256}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(tokenizer, "an offline tokenizer in place of the released dVAE"),
            "student": micro_student(),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.4}, "75 of 196 patches, on a smaller grid"),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


def data2vec(size: str) -> Data:
    """data2vec: the mean of a momentum copy's last blocks, from the whole image."""
    large = size == "large"
    depth = {"base": 12, "large": 24, "micro": 6}[size]
    top = 3 if size == "micro" else 6
    teacher = {"name": "self", "layers": list(range(depth - top, depth)), "layer_norm": "layer"}
    recipe = {
        "title": "data2vec",
        "row": "data2vec (Baevski et al., 2022)",
        "paper": "Baevski et al., 2022, data2vec: A General Framework for Self-supervised Learning",
        "status": "verified",
        "teacher": official(teacher | {"decay": 0.9998}, f"{DATA2VEC}, engine_for_cyclical.py, README"),
        "norm": official("layer", f"{DATA2VEC}, engine_for_cyclical.py (post_target_layer_norm)"),
        "student": official(
            _beit_student(size, layer_scale=1e-5 if large else 1e-4)
            | {"drop_path": 0.2 if large else 0.25, "attention_dropout": 0.15 if large else 0.05},
            f"{DATA2VEC}, modeling_cyclical.py, README",
        ),
        "head": official("fc", f"{DATA2VEC}, modeling_cyclical.py"),
        "loss": official({"name": "smooth_l1", "beta": 2.0}, f"{DATA2VEC}, README"),
        "mask": official({"name": "block", "count": 120}, f"{DATA2VEC}, masking_generator.py, README"),
        "views": official({"name": "crop", "scale": [0.08, 1.0], "jitter": 0.4}, f"{DATA2VEC}, datasets.py"),
        "optimization": official(
            _BEIT_OPTIMIZATION | {"lr": 1e-3 if large else 2e-3, "warmup_epochs": 80 if large else 10},
            f"{DATA2VEC}, README",
        ),
        "batch": official(4096 if large else 2048, f"{DATA2VEC}, README"),
        "epochs": official(800, f"{DATA2VEC}, README (large: first of two stages)"),
        "precision": ours("bfloat16", "official code uses float16 with a scaler"),
    }
    if size != "micro":
        return recipe
    decay = {"start": 0.99, "end": 0.999, "until": 0.5}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(teacher | {"decay": decay}, "half of six blocks; a faster copy for thousands of steps"),
            "student": micro_student(),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.6}, "120 of 196 patches, on a smaller grid"),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


def simmim(size: str) -> Data:
    """SimMIM: pixels of hidden 32-pixel units under the last tokens of a Swin."""
    large = size == "large"
    recipe = {
        "title": "SimMIM",
        "row": "SimMIM (Liu et al., 2022b)",
        **_simmim(large),
        "student": official(
            {"name": "swin", "size": size, "image_size": 192, "window": 12 if large else 6},
            f"{SIMMIM}, models/simmim.py, configs/swin_{'large' if large else 'base'}__100ep",
        ),
        "mask": official({"name": "random", "ratio": 0.6}, f"{SIMMIM}, data/data_simmim.py; a unit is one last token"),
    }
    if size != "micro":
        return recipe
    student = {"name": "swin", "size": "micro", "image_size": 64, "patch_size": 2, "window": 8}
    return recipe | micro_optimization() | {"student": ours(student, "8 x 8 last tokens, as the micro ViT")}


def simmim_vit(size: str) -> Data:
    """SimMIM with a plain ViT: pixels of hidden 32-pixel units."""
    policy = {"lr": 4e-4, "min_lr": 4e-5, "warmup_lr": 2e-6, "no_decay": ["pos_embed", "prefix"]}
    recipe = {
        "title": "SimMIM (ViT)",
        **_simmim(False, **policy),
        "student": official(
            {"name": "vit", "size": size, "drop_path": 0.1} | beit_style(0.1), f"{SIMMIM}, models/vision_transformer.py"
        ),
        "mask": official({"name": "random", "ratio": 0.6, "unit": 2}, f"{SIMMIM}, data/data_simmim.py"),
        "epochs": official(800, f"{SIMMIM}, configs/vit_base__800ep"),
    }
    if size != "micro":
        return recipe
    mask = {"name": "random", "ratio": 0.6, "unit": 2}
    return recipe | micro_optimization() | {"student": micro_student(), "mask": ours(mask, "two patches of eight wide")}


def mvp(size: str) -> Data:
    """MVP: the direction of CLIP's projected features at hidden patches."""
    recipe = {
        "title": "MVP",
        "row": "MVP (Wei et al., 2022a)",
        "paper": "Wei et al., 2022, MVP: Multimodality-guided Visual Pre-training",
        "status": "unverified",
        "teacher": ours(
            {"name": "open_clip", "model": "ViT-B-16-quickgelu", "pretrained": "openai", "feature": "projected"},
            "the abstract says CLIP's vision branch, token by token; layer and projection as VQ-KD and MILAN distil it",
        ),
        "norm": ours("l2", "what the cosine does in any case"),
        "student": ours(
            _beit_student(size, layer_scale=0.1), "BEiT's; the paper follows its settings, Table 2 of MaskDistill"
        ),
        "head": paper("fc", "MaskDistill's Table 1"),
        "loss": paper("cosine", "MaskDistill's Table 1; 1 - cos: ours"),
        "mask": ours({"name": "block", "count": 75}, "BEiT's"),
        "views": ours({"name": "crop", "scale": [0.08, 1.0], "jitter": 0.4}, "BEiT's"),
        "optimization": ours(_BEIT_OPTIMIZATION, "BEiT's"),
        "batch": ours(2048, "BEiT's"),
        "epochs": paper(300, "abstract"),
        "precision": ours("bfloat16", "not stated"),
    }
    return recipe if size != "micro" else recipe | _micro_clip({"feature": "projected"})


def maskfeat_dino(size: str) -> Data:
    """MaskFeat with DINO's features: their direction at hidden patches. No official code has this target."""
    student = {"name": "vit", "size": size, "masking": "replace", "positions": "learned", "init": "truncated"}
    recipe = {
        "title": "MaskFeat (DINO)",
        "row": "MaskFeat (Wei et al., 2021)",
        "paper": "Wei et al., 2022, Masked Feature Prediction for Self-Supervised Visual Pre-Training",
        "status": "unverified",
        "teacher": ours(
            {"name": "timm", "model": "vit_base_patch16_224.dino"}, "the last block after the final norm, patches alone"
        ),
        "norm": ours("l2", "what the cosine does in any case"),
        "student": official(student, f"{MASKFEAT}, as for HOG; the final norm is that of the official head"),
        "head": official("fc", f"{MASKFEAT}, slowfast/models/head_helper.py"),
        "loss": paper("cosine", "MaskDistill's Table 1"),
        "mask": official(
            {"name": "block", "count": 78, "min_block": 15}, f"{MASKFEAT}, slowfast/datasets/transform.py"
        ),
        "views": official({"name": "crop", "scale": [0.5, 1.0]}, f"{MASKFEAT}, slowfast/datasets/imagenet.py"),
        "optimization": official(
            {
                "lr": 1.6e-3,
                "min_lr": 8e-6,
                "warmup_lr": 8e-6,
                "warmup_epochs": 30,
                "weight_decay": 0.05,
                "clip_norm": 0.02,
            },
            f"{MASKFEAT}, configs/masked_ssl, eight shards of 256",
        ),
        "batch": official(2048, f"{MASKFEAT}, projects/maskfeat"),
        "epochs": official(300, f"{MASKFEAT}, configs/masked_ssl"),
        "precision": official("float32", f"{MASKFEAT}, configs/masked_ssl"),
    }
    return recipe if size != "micro" else recipe | _micro_clip({})


def _micro_clip(fields: dict[str, Any]) -> dict[str, Any]:
    """What the micro sizes of recipes with a feature teacher share: the small CLIP of MaskDistill's."""
    return micro_optimization() | {
        "teacher": ours(
            {"name": "open_clip", "model": f"local-dir:{TEACHER}"} | fields, "a small CLIP trained on the spot"
        ),
        "student": micro_student(),
        "mask": ours(MICRO_BLOCK | {"ratio": 0.4}, "the same share of a smaller grid"),
        "views": ours({"name": "crop"}, "small images"),
    }


def _simmim(large: bool, **policy: Any) -> dict[str, Any]:
    """What SimMIM's recipes share: rates are for a batch of 2048, four times the 512 that the configs are written for."""
    rates = {"lr": 8e-4, "min_lr": 4e-5, "warmup_lr": 4e-6, "no_decay": ["mask_token", "table"]}
    common = {"warmup_epochs": 10, "weight_decay": 0.05, "betas": [0.9, 0.999], "clip_norm": 5.0}
    return {
        "paper": "Xie et al., 2022, SimMIM: A Simple Framework for Masked Image Modeling",
        "status": "verified",
        "teacher": official("pixel", f"{SIMMIM}, models/simmim.py: the student's own image"),
        "norm": official("identity", f"{SIMMIM}, models/simmim.py"),
        "head": official(
            {"name": "fc", "init": ours("truncated", "the official one is a convolution with torch's")}, SIMMIM
        ),
        "loss": official("l1", f"{SIMMIM}, models/simmim.py"),
        "views": official(
            {"name": "crop", "scale": [0.67, 1.0], "interpolation": "bilinear"}, f"{SIMMIM}, data/data_simmim.py"
        ),
        "optimization": official(
            rates | common | policy, f"{SIMMIM}, configs, optimizer.py; half cosine to the end: ours for 800"
        ),
        "batch": official(2048, f"{SIMMIM}, README"),
        "epochs": official(800 if large else 100, f"{SIMMIM}, configs"),
        "precision": ours("bfloat16", "official code uses apex O1"),
    }


_BEIT_OPTIMIZATION = {
    "lr": 1.5e-3,
    "min_lr": 1e-5,
    "warmup_epochs": 10,
    "warmup_includes_peak": True,
    "weight_decay": 0.05,
    "no_decay": ["pos_embed", "prefix"],
    "clip_norm": 3.0,
}


def _beit_student(size: str, layer_scale: float) -> dict[str, object]:
    return {"name": "vit", "size": size, "drop_path": 0.1} | beit_style(layer_scale)


RECIPES = (
    sized("mae", mae, "base", "large", "huge", "micro")
    | sized("simmim", simmim, "base", "large", "micro")
    | sized("simmim-vit", simmim_vit, "base", "micro")
    | sized("maskfeat-dino", maskfeat_dino, "base", "micro")
    | sized("mvp", mvp, "base", "micro")
    | sized("beit", beit, "base", "large", "micro")
    | sized("data2vec", data2vec, "base", "large", "micro")
)
