"""The recipes of the discrete VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimim import official, ours, paper
from unimim.recipes import sized
from unimim.recipes.micro import micro_optimization

DALLE = "openai/DALL-E @ 5be4b23, dall_e"
UPDATES = 3_000_000
TAU = "over the whole short training; hard by half of it, codes came into use more slowly (README)"
KL = "with 0.0005 a batch used 15 of 256 codes, with 0.01 about 50 (32 pixels, README)"


def dvae(size: str) -> Mapping[str, Any]:
    """DALL-E's discrete VAE: images through 8192 codes, one for 8 x 8 pixels; its encoder is the tokenizer of BEiT."""
    mapped = {"name": "pixel", "mean": [-0.125] * 3, "std": [1.25] * 3}
    recipe = {
        "title": "dVAE",
        "paper": "Ramesh et al., 2021, Zero-Shot Text-to-Image Generation",
        "status": "unverified",
        "teacher": official(mapped, f"{DALLE}/utils.py map_pixels: (x + 0.125) / 1.25 = 0.8 x + 0.1"),
        "student": official(
            {"name": "dvae_encoder", "image_size": ours(112, "what BEiT asks of it; the paper trains at 256")},
            f"{DALLE}/encoder.py",
        ),
        "head": official(
            {
                "name": "gumbel",
                "tau": paper(
                    {"start": 1.0, "end": 1 / 16, "until": 150_000 / UPDATES, "shape": "cosine"},
                    "appendix A.2: over 150,000 of 3,000,000 updates",
                ),
                "kl_weight": paper(
                    {
                        "start": 0.0,
                        "end": ours(
                            0.002, "6.6 / 192, the paper's in nats a pixel, times 0.06, a scale of l1; not tried"
                        ),
                        "until": 5_000 / UPDATES,
                        "shape": "cosine",
                    },
                    "appendix A.2: over 5,000 updates",
                ),
            },
            f"{DALLE}/encoder.py, decoder.py",
        ),
        "loss": ours("l1", "the paper's logit-Laplace likelihood without its logit and its learned scale"),
        "where": paper("all", "section 2.1"),
        "mask": paper("none", "section 2.1"),
        "views": ours(
            {"name": "crop", "scale": [0.5, 1.0], "ratio": [1.0, 1.0], "flip": 0.0},
            "nearly the largest square, never mirrored, as in the paper's Listing 1, which draws it otherwise",
        ),
        "optimization": paper(
            {
                "lr": 1e-4,
                "min_lr": ours(1.25e-6, "reached at the end; the paper's after 1,200,000 updates"),
                "weight_decay": 1e-4,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
            },
            "appendix A.2",
        ),
        "batch": paper(512, "appendix A.2"),
        "epochs": ours(1200, "3,000,000 updates (appendix A.2) on the 1,281,167 images of ImageNet"),
        "precision": ours("bfloat16", "the paper: float16 with a loss scale"),
    }
    if size != "micro":
        return recipe
    head = {
        "name": "gumbel",
        "vocab_size": 256,
        "num_init": 64,
        "num_hidden": 16,
        "blocks_per_group": 1,
        "tau": ours({"start": 1.0, "end": 1 / 16, "shape": "cosine"}, TAU),
        "kl_weight": ours({"start": 0.0, "end": 0.01, "until": 0.05, "shape": "cosine"}, KL),
    }
    student = {"name": "dvae_encoder", "image_size": 64, "num_hidden": 16, "blocks_per_group": 1}
    return (
        recipe
        | micro_optimization()
        | {
            "student": ours(student, "8 x 8 tokens, as the micro ViT; narrow, since convolutions are slow on a laptop"),
            "head": ours(head, "in proportion to the student"),
            "views": ours({"name": "crop"}, "small images, cropped as for the recipes that ask for its codes"),
        }
    )


RECIPES = sized("dvae", dvae, "base", "micro")
