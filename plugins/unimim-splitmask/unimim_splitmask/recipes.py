"""SplitMask's recipe. No official code is known, so most numbers are ours."""

from __future__ import annotations

from typing import Any

from unimim import official, ours, paper
from unimim.recipes import Data, sized
from unimim.recipes.micro import micro_optimization

TABLE = "MaskDistill's Table 1"
SUMMARIES = "arXiv 2112.10740, by published summaries of it"
BEIT = "BEiT's (microsoft/unilm @ 768a3c8, beit), whose tokens these are"


def splitmask(size: str) -> Data:
    """SplitMask: tokens of what each half of the patches hides, and the other half's image among all images.

    The patch vocabulary instead of the dVAE: terms.tokens.teacher={name: kmeans, teacher: pixel, normalize: true}.
    """
    recipe: dict[str, Any] = {
        "title": "SplitMask",
        "row": "SplitMask (El-Nouby et al., 2021)",
        "paper": "El-Nouby et al., 2021, Are Large-scale Datasets Necessary for Self-Supervised Pre-training?",
        "status": "unverified",
        "terms": {
            "match": {
                "teacher": paper("other_fold", f"{SUMMARIES}; mean over all patches and no stopped gradient: ours"),
                "head": paper("mean", f"{SUMMARIES}; no projection: ours"),
                "loss": paper(
                    {
                        "name": "info_nce",
                        "negatives": "world",
                        "temperature": ours(0.2, "MoCo v3's for ViTs (facebookresearch/moco-v3 @ c349e6e, CONFIG.md)"),
                    },
                    f"{TABLE}; the other images of the batch: {SUMMARIES}; gathered from all processes: ours",
                ),
                "where": paper("image", SUMMARIES),
                "weight": ours(1.0, "not known"),
            },
            "tokens": {
                "teacher": official({"name": paper("dvae", TABLE)}, "openai/DALL-E @ 5be4b23"),
                "head": ours("fc", "one linear layer over the decoder's tokens"),
                "loss": paper("cross_entropy", TABLE),
                "where": paper("hidden", SUMMARIES),
            },
        },
        "student": ours(
            {"name": "splitmask", "decoder_depth": paper(2, SUMMARIES), "drop_path": 0.1},
            f"ViT-B; decoder width, positions and start values: MAE's; drop path: {BEIT}",
        ),
        "mask": paper({"name": "split", "folds": 2, "ratio": ours(0.5, "halves; uniformly random")}, SUMMARIES),
        "views": ours({"name": "crop", "scale": [0.2, 1.0]}, "MAE's; the paper does without hand-made augmentations"),
        "optimization": ours(
            {
                "lr": 1.5e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 10,
                "warmup_includes_peak": True,
                "weight_decay": 0.05,
                "no_decay": ["prefix"],
                "clip_norm": 3.0,
            },
            BEIT,
        ),
        "batch": ours(2048, BEIT),
        "epochs": ours(300, "not known; the shorter of the usual schedules"),
        "precision": ours("bfloat16", "not known"),
    }
    if size != "micro":
        return recipe
    match, tokens = recipe["terms"]["match"], recipe["terms"]["tokens"]
    vocabulary = {"name": "kmeans", "teacher": "pixel", "num_codes": 256, "normalize": True}
    encoder = {"image_size": 64, "patch_size": 8, "dim": 128, "depth": 6, "num_heads": 4}
    decoder = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4}
    return (
        recipe
        | micro_optimization()
        | {
            "terms": {
                "match": match,
                "tokens": tokens
                | {"teacher": ours(vocabulary, "the paper's own light tokenizer, a vocabulary of patches; made small")},
            },
            "student": ours({"name": "splitmask"} | encoder | decoder, "as small as the micro ViT and its decoder"),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


RECIPES = sized("splitmask", splitmask, "base", "micro")
