"""MaskDistill, the paper's method, and the distillation it is compared with."""

from __future__ import annotations

from ..provenance import official, ours, paper
from . import Data, beit_style, sized
from .micro import MICRO_BLOCK, TEACHER, micro_optimization, micro_student

BEIT2 = "microsoft/unilm @ 768a3c8, beit2 (on which MaskDistill is based, its author says)"


def maskdistill(size: str) -> Data:
    """MaskDistill: layer-normalized CLIP features of hidden patches."""
    huge = size == "huge"
    clip = {
        "name": "open_clip",
        "model": "ViT-L-14-quickgelu" if huge else "ViT-B-16-quickgelu",
        "pretrained": "openai",
    }
    drop_path = {"base": 0.1, "large": 0.2, "huge": 0.25, "micro": 0.0}[size]
    recipe = {
        "title": "MaskDistill",
        "row": "MaskDistill (Peng et al., 2023)",
        "paper": "Peng et al., 2023, A Unified View of Masked Image Modeling",
        "status": "unverified",
        "teacher": paper(
            clip, "section 3 and Tables 2, 3; features after the final norm: ours, the paper does not say"
        ),
        "norm": paper("layer", "section 3; eps 1e-5: ours"),
        "student": paper(
            _student(size, 0.1 if size == "base" else 1e-5) | {"drop_path": drop_path},
            "Table 11 and section 4.1; start values and biases as BEiT v2: ours",
        ),
        "head": paper("fc", "section 3"),
        "loss": paper({"name": "smooth_l1", "beta": ours(1.0, "not stated; torch's default")}, "Eq. 3"),
        "mask": paper(
            {"name": "block", "ratio": 0.4, "exact": official(True, f"{BEIT2}, masking_generator.py")},
            "section 3, Figure 2",
        ),
        "views": paper({"name": "crop", "scale": official([0.2, 1.0], f"{BEIT2}, README"), "jitter": 0.4}, "Table 11"),
        "optimization": paper(
            {
                "lr": 1.5e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 10,
                "warmup_includes_peak": official(True, f"{BEIT2}, utils.py"),
                "weight_decay": 0.05,
                "no_decay": official(["pos_embed", "prefix"], f"{BEIT2}, optim_factory.py"),
                "clip_norm": 3.0,
            },
            "Table 11",
        ),
        "batch": paper(2048, "Table 11"),
        "epochs": paper(300, "Table 2 (also 800)"),
        "precision": ours("bfloat16", "not stated"),
    }
    if size != "micro":
        return recipe
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours({"name": "open_clip", "model": f"local-dir:{TEACHER}"}, "a small CLIP trained on the spot"),
            "student": micro_student(),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.4}, "the paper's ratio on a smaller grid"),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


def distillation(size: str) -> Data:
    """Knowledge distillation (Table 5): MaskDistill with nothing hidden, on all patches."""
    recipe = dict(maskdistill(size))
    student = recipe["student"]
    return recipe | {
        "title": "Distillation",
        "row": "",
        "mask": paper("none", "Table 5"),
        "where": paper("all", "Table 5"),
        "student": type(student)(student.value | {"masking": "none"}, student.source),
    }


def _student(size: str, layer_scale: float) -> dict[str, object]:
    patch = {"patch_size": 14} if size == "huge" else {}
    return {"name": "vit", "size": size} | patch | beit_style(layer_scale)


RECIPES = sized("maskdistill", maskdistill, "base", "large", "huge", "micro") | sized(
    "distillation", distillation, "base", "large", "micro"
)
