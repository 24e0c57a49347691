"""What SimMIM's tensors tell, and what they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimim.importers.simmim import SimMIM
from unimim.testing import Golden

FILE = Path(__file__).parent.parent / "parity" / "data" / "simmim_swin.npz"


def test_the_tensors_tell_every_size_of_a_swin() -> None:
    golden = Golden(FILE)
    config, student = golden.config, SimMIM().read(golden.under("state/")).recipe.student.model_dump()
    assert student["image_size"] == config["img_size"]
    assert (student["dim"], student["patch_size"], student["window"]) == (
        config["embed_dim"],
        config["patch_size"],
        config["window_size"],
    )
    assert (list(student["depths"]), list(student["num_heads"])) == (config["depths"], config["num_heads"])


def test_without_masks_of_shifted_windows_the_image_size_must_be_given() -> None:
    state = {name: x for name, x in Golden(FILE).under("state/").items() if not name.endswith("attn_mask")}
    with pytest.raises(ValueError, match=r"the tensors do not tell student.image_size; give student.image_size=\.\.\."):
        SimMIM().read(state)
    assert SimMIM().read(state, ["student.image_size=32"]).recipe.student.geometry.grid == (8, 8)


def test_every_tensor_of_the_file_is_loaded_or_named() -> None:
    state = Golden(FILE).under("state/")
    found = SimMIM().read(state)
    assert {*found.loaded.values(), *found.ignored} == {*state}
    assert {*found.ignored.values()} == {"computed by unimim"}
    with pytest.raises(ValueError, match=r"mask_token"):
        SimMIM().read({name: x for name, x in state.items() if name != "encoder.mask_token"})
