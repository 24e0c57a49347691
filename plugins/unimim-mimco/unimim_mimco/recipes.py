"""MimCo's recipes. No official code is known, and only the abstract could be read, so most numbers are ours."""

from __future__ import annotations

from typing import Any

from unimim import official, ours, paper
from unimim.recipes import Data, sized
from unimim.recipes.micro import TEACHER, micro_optimization, micro_student

TABLE = "MaskDistill's Table 1"
ABSTRACT = "arXiv 2209.03063, abstract"
MOCO = "facebookresearch/moco-v3 @ c349e6e"
SIMMIM = "SimMIM's (microsoft/SimMIM @ d3e29bc)"
BEIT = "BEiT's (microsoft/unilm @ 768a3c8, beit)"


def mimco(size: str) -> Data:
    """MimCo: a frozen MoCo v3, whose patches and whose image a masked student tells from all others.

    The teacher's file must be there: unimim teachers fetch mocov3-s16 --to weights (base: mocov3-b16).
    """
    teacher = _clip() if size == "micro" else _moco(size)
    recipe: dict[str, Any] = {
        "title": "MimCo",
        "row": "MimCo (Zhou et al., 2022)",
        "paper": "Zhou et al., 2022, MimCo: Masked Image Modeling Pre-training with Contrastive Teacher",
        "status": "unverified",
        "terms": {
            "patches": {
                "teacher": teacher,
                "head": paper("fc", f"{TABLE}; a layer for each term: ours"),
                "loss": _info_nce("image", "negatives: the other patches of the image, as ConMIM has them: ours"),
                "where": ours("hidden", "not known; the usual positions"),
                "weight": ours(1.0, "not known"),
            },
            "image": {
                "teacher": teacher,
                "head": paper("fc", f"{TABLE}; a layer for each term: ours"),
                "loss": _info_nce(
                    "world", "negatives: the other images of the global batch, as MoCo v3 has them: ours"
                ),
                "where": paper(
                    "image", f"{ABSTRACT}: image-level reconstruction; class token against class token: ours"
                ),
                "weight": ours(1.0, "not known"),
            },
        },
        "student": ours(
            {"name": "vit", "size": size, "masking": "replace", "drop_path": 0.1},
            f"the size of the teacher, as in {ABSTRACT} (small); mask tokens: {SIMMIM}; drop path: {BEIT}",
        ),
        "mask": ours({"name": "random", "ratio": 0.6, "unit": 2}, f"{SIMMIM}: 0.6, units of 32 pixels; not known"),
        "views": ours({"name": "crop", "scale": [0.2, 1.0]}, "MAE's; one crop for both, not known"),
        "optimization": ours(
            {
                "lr": 1.5e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 10,
                "warmup_includes_peak": True,
                "weight_decay": 0.05,
                "no_decay": ["pos_embed", "prefix", "mask_token"],
                "clip_norm": 3.0,
            },
            f"{BEIT}; a contrast's gradient grows with 1 / temperature, so the clip may bind more often",
        ),
        "batch": ours(2048, BEIT),
        "epochs": paper(100, ABSTRACT),
        "precision": ours("bfloat16", "not known"),
    }
    if size != "micro":
        return recipe
    return (
        recipe
        | micro_optimization()
        | {
            "student": micro_student(),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


def _moco(size: str) -> Any:
    """MoCo v3's query encoder, from the official file."""
    teacher: dict[str, Any] = {
        "name": "timm",
        "model": f"vit_{size}_patch16_224",
        "checkpoint": f"weights/vit-{size[0]}-300ep.pth.tar",
        "prefix": "module.base_encoder.",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    if size == "small":
        teacher["num_heads"] = 12
    return official(
        teacher,
        f"{MOCO}, vits.py, main_moco.py; that it teaches: {TABLE}, {ABSTRACT}; the base encoder after its final norm: ours",
    )


def _clip() -> Any:
    return ours(
        {"name": "open_clip", "model": f"local-dir:{TEACHER}"}, "a small CLIP, contrastive too, trained on the spot"
    )


def _info_nce(negatives: str, reason: str) -> Any:
    temperature = ours(0.2, f"MoCo v3's for ViTs ({MOCO}, CONFIG.md); not known")
    return paper({"name": "info_nce", "negatives": negatives, "temperature": temperature}, f"{TABLE}; {reason}")


RECIPES = sized("mimco", mimco, "small", "base", "micro")
