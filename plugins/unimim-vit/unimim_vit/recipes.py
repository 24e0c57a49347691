"""The masked patch prediction of the ViT paper."""

from __future__ import annotations

from unimim import ours, paper
from unimim.recipes import Data, sized
from unimim.recipes.micro import micro_optimization, micro_student

PLACE = "appendix B.1.2"


def vit_mpp(size: str) -> Data:
    """ViT's masked patch prediction: quantized mean colours of patches that BERT's corruption asks about."""
    half = (0.5, 0.5, 0.5)
    student = {
        "name": "vit",
        "size": size,
        "masking": "replace",
        "positions": "learned",
        "init": ours("xavier", "as the authors' later code for supervised runs"),
        "mean": ours(half, "not stated; pixels in [-1, 1]"),
        "std": ours(half, "not stated; pixels in [-1, 1]"),
    }
    recipe = {
        "title": "ViT",
        "row": "ViT (Dosovitskiy et al., 2020)",
        "paper": "Dosovitskiy et al., 2020, An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        "status": "unverified",
        "teacher": paper("mean_color", f"{PLACE}; equal bins of [0, 1]: ours"),
        "student": paper(student, f"{PLACE}, section 3.1"),
        "head": paper("fc", f"{PLACE}; bias and start values: ours"),
        "loss": paper("cross_entropy", f"{PLACE}: predictions of 512 colours; the mean over patches asked about: ours"),
        "mask": paper({"name": "bert", "ratio": 0.5}, f"{PLACE}; how each kind is drawn: ours"),
        "views": ours({"name": "crop", "scale": [0.08, 1.0]}, "not stated"),
        "optimization": paper(
            {
                "lr": 2e-4,
                "warmup_epochs": 0.14,
                "weight_decay": ours(0.1, "not stated; as in the paper's supervised runs on JFT"),
                "betas": ours([0.9, 0.999], "not stated; as in the paper's supervised runs"),
            },
            f"{PLACE}: Adam, 10k of 1M steps of warm-up",
        ),
        "batch": paper(4096, PLACE),
        "epochs": paper(14, f"{PLACE}: 1M steps on JFT"),
        "precision": ours("bfloat16", "not stated"),
    }
    if size != "micro":
        return recipe
    return recipe | micro_optimization() | {"student": micro_student(), "views": ours({"name": "crop"}, "small images")}


RECIPES = sized("vit-mpp", vit_mpp, "base", "micro")
