"""PeCo's recipes."""

from __future__ import annotations

from unimim import official, ours, paper
from unimim.recipes import Data, beit_style, sized
from unimim.recipes.micro import MICRO_BLOCK, TEACHER, micro_optimization, micro_student

BEIT = "BEiT's (microsoft/unilm @ 768a3c8, beit): PeCo changes the prediction target alone (second hand)"
BEVT = "xyzforever/BEVT @ 8881b21, README: PeCo's codebook is as large as DALL-E's"
TABLE1 = "MaskDistill's Table 1"


def peco(size: str) -> Data:
    """PeCo: ids of a perceptual codebook at hidden patches."""
    recipe = {
        "title": "PeCo",
        "row": "PeCo (Dong et al., 2021)",
        "paper": "Dong et al., 2021, PeCo: Perceptual Codebook for BERT Pre-training of Vision Transformers",
        "status": "unverified",
        "teacher": ours(
            {"name": paper("vqgan", TABLE1), "num_codes": official(8192, BEVT)},
            "sizes of CompVis/taming-transformers @ 3ba01b2 for 16 pixels a code; PeCo's tokenizer was not published",
        ),
        "student": ours({"name": "vit", "size": size, "drop_path": 0.1} | beit_style(0.1), BEIT),
        "head": paper("fc", TABLE1),
        "loss": paper("cross_entropy", TABLE1),
        "mask": ours({"name": "block", "count": 75}, BEIT),
        "views": ours({"name": "crop", "scale": [0.08, 1.0], "jitter": 0.4}, BEIT),
        "optimization": ours(
            {
                "lr": 1.5e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 10,
                "warmup_includes_peak": True,
                "weight_decay": 0.05,
                "no_decay": ["pos_embed", "prefix"],
                "clip_norm": 3.0,
            },
            BEIT,
        ),
        "batch": ours(2048, "BEiT's; an index quotes the AAAI 2023 paper with the same"),
        "epochs": paper(800, "MaskDistill's Table 2 (also 300)"),
        "precision": ours("bfloat16", "not stated"),
    }
    if size != "micro":
        return recipe
    clip = {"name": "open_clip", "model": f"local-dir:{TEACHER}"}
    tokenizer = {"name": "kmeans", "teacher": clip, "num_codes": 256, "normalize": True, "max_tokens": 65536}
    return (
        recipe
        | micro_optimization()
        | {
            "teacher": ours(
                tokenizer,
                "codes of a small CLIP's features, which group patches by what they show as a perceptual codebook should; "
                "PeCo's come from pixels and a self-supervised network, and no such one is made at this size",
            ),
            "student": micro_student(),
            "mask": ours(MICRO_BLOCK | {"ratio": 0.4}, "75 of 196 patches, on a smaller grid"),
            "views": ours({"name": "crop"}, "small images"),
        }
    )


RECIPES = sized("peco", peco, "base", "micro")
