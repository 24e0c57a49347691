"""The recipes of Ge2-AE. No official code is known, so most numbers are MAE's."""

from __future__ import annotations

from typing import Any

from unimim import ours, paper
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization, micro_student

TABLE = "Table 1 of Peng et al., 2023, A Unified View of Masked Image Modeling"
UNKNOWN = "MAE's; the paper's are not known here"


def ge2ae(size: str) -> dict[str, Any]:
    """Ge2-AE: pixels of hidden patches and the Fourier spectrum of the image, from two decoders."""
    micro = size == "micro"
    decoder = {"name": "decoder"} | ({"dim": 64, "depth": 2, "num_heads": 4} if micro else {})
    why = "in proportion to the student" if micro else UNKNOWN
    student = {"name": "vit", "size": size, "masking": "drop", "positions": "sincos", "init": "xavier"}
    recipe = {
        "title": "Ge2-AE",
        "row": "Ge2-AE (Liu et al., 2022a)",
        "paper": "Liu et al., 2022, The Devil is in the Frequency: Geminated Gestalt Autoencoder",
        "status": "unverified",
        "student": ours(student, UNKNOWN),
        "terms": {
            "pixel": {
                "teacher": paper("pixel", TABLE),
                "norm": paper("identity", TABLE),
                "head": ours(decoder, why),
                "loss": paper("l2", TABLE),
                "where": ours("hidden", UNKNOWN),
            },
            "frequency": {
                "teacher": paper(
                    "frequency",
                    f"{TABLE}; of the whole normalized image, real and imaginary parts, scaled by 1/sqrt(HW): ours",
                ),
                "norm": paper("identity", TABLE),
                "head": ours({"name": "spectrum", "head": decoder}, f"a decoder of its own, by way of pixels; {why}"),
                "loss": ours({"name": "focal_frequency"}, "second-hand; Table 1 says l2, which this is, weighted"),
                "where": ours("all", "a coefficient belongs to the whole image"),
                "weight": ours(1.0, "the focal frequency loss's own default; the paper's is not known here"),
            },
        },
        "mask": ours({"name": "random", "ratio": 0.75}, UNKNOWN),
        "views": ours({"name": "crop", "scale": [0.2, 1.0]}, UNKNOWN),
        "optimization": ours(
            {"lr": 1.5e-4, "lr_per_256": True, "warmup_epochs": 40, "weight_decay": 0.05, "betas": [0.9, 0.95]}, UNKNOWN
        ),
        "batch": ours(4096, UNKNOWN),
        "epochs": ours(800, "that of MAE's command; the paper's are not known here"),
        "precision": ours("bfloat16", "Fourier transforms are float32 in any case"),
    }
    return recipe | micro_optimization() | {"student": micro_student("drop")} if micro else recipe


RECIPES = sized("ge2ae", ge2ae, "base", "micro")
