"""The checkpoints of BEiT v2 and of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from unimim import Recipe
from unimim.importers import (
    BEIT_ENCODER,
    BLOCK,
    ENCODER,
    INDICES,
    UNTOLD,
    Importer,
    beit_encoder,
    count,
    encoder,
    need,
    position_index,
)

from .recipes import DINO

EARLY = {12: 8, 24: 20}
"""Depth of the published models: the block (0-based) whose patches their branch reads."""
BRANCH_INDICES = INDICES.replace(r"blocks\.", r"cls_pt_layers\.")


class BEiTv2(Importer):
    """Official BEiT v2 pre-training checkpoints, with patch aggregation or without (microsoft/unilm @ 768a3c8, beit2)."""

    name = "beitv2"
    recipe = "beitv2"
    rules: ClassVar = BEIT_ENCODER | {
        r"lm_head\.(weight|bias)": r"branches.mim.head.proj.\1",
        rf"cls_pt_layers\.(\d+)\.{BLOCK}": r"branches.mim.head.blocks.\1.\2",
        r"cls_pt_layers\.(\d+)\.gamma_([12])": r"branches.mim.head.blocks.\1.ls\2.gamma",
        r"cls_pt_layers\.(\d+)\.attn\.relative_position_bias_table": r"branches.mim.head.block_bias.\1.table",
        r"cls_pt_norm\.(weight|bias)": r"branches.mim.head.norm.\1",
        r"cls_pt_lm_head\.(weight|bias)": r"branches.mim.head.branch.\1",
    }
    ignored: ClassVar = {INDICES: "computed by unimim", BRANCH_INDICES: "computed by unimim"}
    prediction = "lm_head.bias"
    notes = (
        "the tokenizer is another file; without teacher.checkpoint=FILE the teacher is random, so evaluate or export the "
        "student but do not go on training",
        "the tensors do not tell the pixels' mean and std, eps, nor which block patch aggregation reads (head.early: the 9th "
        "of 12 and the 21st of 24, as published)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        sizes = beit_encoder(state)
        if "lm_head.bias" in state:
            sizes["terms.mim.teacher.num_codes"] = len(state["lm_head.bias"])
        depth, num_blocks = sizes["student.depth"], count(state, "cls_pt_layers")
        if not num_blocks:
            return sizes | {"terms.mim.head": {"name": "fc"}}
        head = {
            "early": EARLY.get(depth, UNTOLD),
            "last": depth - 1,
            "num_blocks": num_blocks,
            "shared": "cls_pt_lm_head.bias" not in state,
        }
        return sizes | {f"terms.mim.head.{key}": value for key, value in head.items()}

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        (index,) = position_index(recipe).values()
        return {INDICES: index, BRANCH_INDICES: index}


VIT = {name: ours for name, ours in ENCODER.items() if not name.startswith("norm")} | {
    r"pos_embed": "student.pos_embed",
    r"fc_norm\.(weight|bias)": r"student.norm.\1",
}
"""The encoder and the decoder of VQ-KD, each under its own prefix."""
TASK = r"([02]\.(?:weight|bias))"
DECODER = "branches.mim.head.decoder."


class VQKD(Importer):
    """Official tokenizers of BEiT v2 with their decoders (microsoft/unilm @ 768a3c8, beit2/modeling_vqkd.py)."""

    name = "vqkd"
    recipe = "vqkd"
    rules: ClassVar = {
        **{rf"encoder\.{name}": ours for name, ours in VIT.items()},
        **{rf"decoder\.{name}": ours.replace("student.", DECODER) for name, ours in VIT.items()},
        rf"encode_task_layer\.{TASK}": r"branches.mim.head.project.\1",
        rf"decode_task_layer\.{TASK}": r"branches.mim.head.predict.\1",
        r"quantize\.embedding\.weight": "branches.mim.head.codebook.codes",
        r"quantize\.cluster_size": "branches.mim.head.codebook.cluster_size",
    }
    ignored: ClassVar = {
        r"quantize\.embedding\.(?:cluster_size|embed_avg|initted)": "written by the k-means start, then never read",
        r"teacher_model\..*": "the teacher has its own file",
        r"scaling_layer\..*": "pixel statistics of the teacher, which knows them",
        r"loss\..*": "no part of the network",
    }
    prediction = "decode_task_layer.2.bias"
    notes = (
        "the teacher is another file: convert with teacher.pretrained=null where it cannot be fetched, then use the tokenizer "
        "or export its student, but do not go on training",
        "cluster_size, and so the share of dead codes, is that of the file's last epoch or evaluation",
        "the tensors do not tell eps, nor the number of heads (taken from published models of this width)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "encoder.pos_embed", "quantize.embedding.weight", self.prediction)
        sizes, decoder = encoder(state, "encoder."), encoder(state, "decoder.")
        head = {key: decoder[f"student.{key}"] for key in ("dim", "depth", "num_heads")}
        head |= {"num_codes": len(state["quantize.embedding.weight"]), "code_dim": decoder["student.channels"]}
        teacher = {"terms.mim.teacher": DINO} if len(state[self.prediction]) == 768 else {}
        return sizes | {f"terms.mim.head.{key}": value for key, value in head.items()} | teacher
