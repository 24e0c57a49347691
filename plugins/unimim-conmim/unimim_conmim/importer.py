"""ConMIM's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from unimim import Recipe
from unimim.importers import BEIT_ENCODER, INDICES, Importer, beit_encoder, position_index


class ConMIM(Importer):
    """Official ConMIM pre-training checkpoints (TencentARC/ConMIM @ 4263955)."""

    name = "conmim"
    recipe = "conmim"
    rules: ClassVar = BEIT_ENCODER | {r"projectors\.(\d+\.\w+)": r"branches.mim.head.layers.\1"}
    ignored: ClassVar = {
        INDICES: "computed by unimim",
        r"lm_head\.(weight|bias)": "BEiT's head over ids, which ConMIM creates and never uses",
    }
    prediction = "projectors.6.weight"
    momentum = "model_copy"
    notes = (
        "official runs write two files with the same names inside: checkpoint-N.pth, the student, and checkpoint_copy-N.pth, "
        "the momentum teacher, which official fine-tuning loads; to go on training put both into one file, as parts model and "
        "model_copy",
        "the tensors do not tell the pixels' mean and std, eps, the temperature nor the momentum",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        sizes = beit_encoder(state)
        if self.prediction in state:
            width, hidden = state[self.prediction].shape
            sizes |= {"terms.mim.teacher.head_dim": width, "terms.mim.head.hidden_dim": hidden}
        return sizes

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        return position_index(recipe)
