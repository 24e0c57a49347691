"""MSN's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from unimim.importers import ENCODER, Importer, encoder, need


class MSNImporter(Importer):
    """Official MSN pre-training checkpoints: encoder, target encoder and prototypes (facebookresearch/msn @ 4388dc1)."""

    name = "msn"
    recipe = "msn"
    rules: ClassVar = ENCODER | {
        r"pos_embed": "student.pos_embed",
        r"fc\.((?:fc[123]|bn[12])\..+)": r"branches.mim.head.\1",
        r"prototypes": "branches.mim.loss.prototypes",
    }
    prediction = "fc.fc3.bias"
    part = "encoder"
    momentum = "target_encoder"
    notes = (
        "official evaluations read the target encoder (here teachers.mim.copy.student), its class token before the last norm",
        "the tensors do not tell the number of heads (taken from published models of this width), the pixels' mean and std, "
        "eps, nor the views and the share of patches left out",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "pos_embed")
        sizes = encoder(state)
        if "fc.fc3.bias" in state:
            sizes["terms.mim.head.hidden"] = len(state["fc.fc1.bias"])
            sizes["terms.mim.teacher.head_dim"] = len(state["fc.fc3.bias"])
        if "prototypes" in state:
            sizes["terms.mim.loss.num_prototypes"] = len(state["prototypes"])
        return sizes
