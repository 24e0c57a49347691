"""Reading official state dicts: sizes from shapes, every tensor accounted for, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unimim import Objective, load, plugins
from unimim.importers import Importer, encoder
from unimim.importers.base import Imported
from unimim.importers.beit import BEiT
from unimim.importers.data2vec import Data2vec
from unimim.importers.mae import MAE
from unimim.importers.vit import grid_of, ratio
from unimim.layers.positions import RelativePositionBias, relative_index

IMPORTERS: dict[str, Importer] = {"mae": MAE(), "beit": BEiT(), "data2vec": Data2vec()}
TOLD = {
    "mae": ["student.num_heads=2", "head.num_heads=2"],
    "beit": ["teacher.num_hidden=4", "mask.count=6", "mask.min_block=2", "student.drop_path=0"],
    "data2vec": ["mask.count=6", "mask.min_block=2", "student.drop_path=0"],
}
"""What the tensors of `official` do not tell."""


def same(ours: Objective, found: Imported) -> None:
    """All tensors, apart from frozen teachers of other files."""
    read = found.objective().state_dict()
    for name, tensor in ours.state_dict().items():
        assert name.startswith("teachers.mim.encoder.") or read[name].equal(tensor), name


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("mae", []),
        ("mae", ["student.patch_size=4", "student.depth=3", "student.mlp_ratio=2", "head.depth=2", "head.mlp_ratio=3"]),
        ("beit", []),
        ("beit", ["student.image_size=[32, 48]"]),
        ("beit", ["student.relative_positions=per_block", "student.num_heads=4", "student.layer_scale=null"]),
        ("beit", ["student.relative_positions=per_block", "student.positions=learned", "teacher.vocab_size=20"]),
        ("beit", ["student.qkv_bias=none"]),
        ("beit", ["student.qkv_bias=qkv", "student.patch_size=[16, 8]"]),
        ("data2vec", []),
        ("data2vec", ["student.depth=7", "teacher.layers=[1,2,3,4,5,6]"]),
    ],
)
def test_the_tensors_tell_the_recipe(official: Any, kind: str, overrides: list[str]) -> None:
    objective, state = official(kind, overrides)
    found = IMPORTERS[kind].read(state, TOLD[kind])
    told = found.recipe.data()
    for part in ("student", "masks", "terms"):
        # The value that scales started from is not in a checkpoint.
        if part == "student" and told[part]["layer_scale"]:
            told[part]["layer_scale"] = objective.recipe.data()[part]["layer_scale"]
        assert told[part] == objective.recipe.data()[part]
    same(objective, found)
    assert set(found.loaded) == set(found.state)
    assert {*found.loaded.values(), *found.ignored} == set(state)


@pytest.mark.parametrize("kind", ["mae", "beit", "data2vec"])
def test_published_sizes_need_no_overrides(kind: str) -> None:
    """The tensors of a shipped recipe tell exactly what the recipe says."""
    recipe = load(kind)
    with torch.device("meta"):
        student = {name: torch.empty_like(tensor) for name, tensor in recipe.student.build().state_dict().items()}
    renamed = {
        "prefix": "cls_token",
        "shared_bias.table": "rel_pos_bias.relative_position_bias_table",
    }
    state = {
        renamed.get(name, name).replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t
        for name, t in student.items()
    }
    if kind == "mae":
        state["pos_embed"] = torch.empty(1, 197, 768, device="meta")
    inferred = IMPORTERS[kind].infer(state)
    data = recipe.data()
    for path, value in inferred.items():
        place: Any = data
        for part in path.split("."):
            place = place[part]
        assert place == value, path


def test_published_widths_tell_the_heads_and_the_variant(official: Any) -> None:
    """A file as wide as ViT-L has its 16 heads and is completed by the recipe of that size."""
    _, state = official("mae", ["student.dim=1024", "student.num_heads=16", "student.depth=1"])
    recipe = MAE().read(state, ["head.num_heads=2"]).recipe
    assert recipe.name == "mae-large"
    assert recipe.data()["student"]["num_heads"] == 16


def test_unknown_heads_must_be_given(official: Any) -> None:
    _, state = official("mae")
    with pytest.raises(ValueError, match=r"do not tell student.num_heads, head.num_heads; give student.num_heads=..."):
        MAE().read(state)


def test_a_head_that_replaces_the_files_own_needs_none_of_its_sizes(official: Any) -> None:
    _, state = official("mae")
    with pytest.raises(ValueError, match=r"head 'fc' reads the student's tokens"):
        MAE().read(state, ["student.num_heads=2", "head=fc"])


@pytest.mark.parametrize("kind", ["mae", "beit", "data2vec"])
def test_missing_tensors_are_listed(official: Any, kind: str) -> None:
    _, state = official(kind)
    del state["blocks.1.mlp.fc2.bias"], state["norm.weight"]
    with pytest.raises(ValueError, match=r"2 missing: student.blocks.1.mlp.fc2.bias, student.norm.weight"):
        IMPORTERS[kind].read(state, TOLD[kind])


def test_misshapen_tensors_are_listed(official: Any) -> None:
    _, state = official("beit")
    state["norm.weight"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"1 of another shape: student.norm.weight \(7,\), wanted \(32,\)"):
        BEiT().read(state, TOLD["beit"])


def test_contradictory_tensors_are_refused(official: Any) -> None:
    """A key bias that the inferred student would silently drop."""
    _, state = official("beit", ["student.qkv_bias=qkv"])
    state["blocks.0.attn.q_bias"] = torch.zeros(32)
    with pytest.raises(ValueError, match=r"1 unexpected: student.blocks.0.attn.q_bias"):
        BEiT().read(state, TOLD["beit"])


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not the expected kind of checkpoint: it has no cls_token"):
        BEiT().read({"conv1.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"has no pos_embed"):
        MAE().read({})


def test_other_tensors_are_ignored_by_name(official: Any) -> None:
    _, state = official("mae")
    found = MAE().read(state | {"head.weight": torch.zeros(3)}, TOLD["mae"])
    assert found.ignored["head.weight"] == "unknown to importer 'mae'"
    assert set(found.ignored) == {"head.weight", "pos_embed", "decoder_pos_embed"}


@pytest.mark.parametrize("table", ["pos_embed", "decoder_pos_embed"])
def test_another_position_code_is_refused(official: Any, table: str) -> None:
    """Row-first positions, as mmpretrain's port has them."""
    _, state = official("mae")
    state[table] = torch.cat(
        [state[table][:, :1], state[table][:, 1:].view(1, 4, 4, -1).transpose(1, 2).flatten(1, 2)], 1
    )
    with pytest.raises(ValueError, match=rf"{table} is not the fixed table of this method"):
        MAE().read(state, TOLD["mae"])


def test_a_shifted_position_index_is_refused(official: Any) -> None:
    _, state = official("beit")
    state["rel_pos_bias.relative_position_index"] = relative_index((4, 4), 1) - 1
    with pytest.raises(ValueError, match=r"do not tell student.image_size"):
        BEiT().read(state, TOLD["beit"])
    with pytest.raises(ValueError, match=r"relative_position_index is not the fixed table"):
        BEiT().read(state, [*TOLD["beit"], "student.image_size=32"])


def test_two_kinds_of_position_tables_are_refused(official: Any) -> None:
    _, state = official("beit")
    state["blocks.0.attn.relative_position_bias_table"] = state["rel_pos_bias.relative_position_bias_table"]
    with pytest.raises(ValueError, match=r"adds both"):
        BEiT().read(state, TOLD["beit"])


def test_encoder_only_files(official: Any) -> None:
    """The head starts afresh, by consent only."""
    objective, full = official("mae")
    state = {name: tensor for name, tensor in full.items() if "decoder" not in name and name != "mask_token"}
    with pytest.raises(ValueError, match=r"no tensors of the head.*_full.pth"):
        MAE().read(state, TOLD["mae"])
    found = MAE().read(
        state, ["student.num_heads=2", "head.dim=16", "head.depth=1", "head.num_heads=2"], allow_missing_head=True
    )
    assert set(found.fresh) == {name for name in objective.state_dict() if name.startswith("branches.")}
    built, again = found.objective().state_dict(), found.objective().state_dict()
    for name, tensor in objective.state_dict().items():
        assert built[name].equal(again[name])
        assert built[name].equal(tensor) != (name in found.fresh)


def test_part_of_a_head_is_an_error(official: Any) -> None:
    _, state = official("mae")
    del state["decoder_pred.bias"]
    with pytest.raises(ValueError, match=r"decoder_pred.bias"):
        MAE().read(state, TOLD["mae"], allow_missing_head=True)


def test_momentum_teacher(official: Any) -> None:
    """Its own tensors where the file has them; else the student's, and the report says so."""
    objective, state = official("data2vec")
    state["model_ema.rel_pos_bias.relative_position_index"] -= 1  # what the official update does to it in the long run
    state["model_ema.lm_head.bias"] = state["lm_head.bias"]
    found = Data2vec().read(state, TOLD["data2vec"])
    same(objective, found)
    assert "integer table" in found.ignored["model_ema.rel_pos_bias.relative_position_index"]
    assert "does without it" in found.ignored["model_ema.lm_head.bias"]
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("model_ema.")}
    found = Data2vec().read(bare, TOLD["data2vec"])
    assert any("has no model_ema" in note for note in found.notes)
    built = found.objective().state_dict()
    assert all(
        built[f"teachers.mim.copy.{name}"].equal(tensor)
        for name, tensor in built.items()
        if name.startswith("student.")
    )
    half = {name: tensor for name, tensor in state.items() if name != "model_ema.cls_token"}
    with pytest.raises(ValueError, match=r"1 missing: teachers.mim.copy.student.prefix"):
        Data2vec().read(half, TOLD["data2vec"])


def test_momentum_teacher_with_a_copy_of_the_head(official: Any) -> None:
    """Read where the file has it, copied where it has no teacher at all, and fresh together with a missing head."""
    _, state = official("data2vec")
    told = [*TOLD["data2vec"], "teacher.layers=[]", "teacher.head=patches"]
    copied = state | {f"model_ema.{name}": 2 * state[name] for name in ("lm_head.weight", "lm_head.bias")}
    built = Data2vec().read(copied, told).objective().state_dict()
    assert built["teachers.mim.copy.head.proj.weight"].equal(2 * state["lm_head.weight"])
    with pytest.raises(ValueError, match=r"2 missing: teachers.mim.copy.head.proj"):
        Data2vec().read(state, told)
    alone = {name: tensor for name, tensor in state.items() if not name.startswith("model_ema.")}
    built = Data2vec().read(alone, told).objective().state_dict()
    assert built["teachers.mim.copy.head.proj.weight"].equal(state["lm_head.weight"])
    bare = {name: tensor for name, tensor in alone.items() if not name.startswith("lm_head.")}
    found = Data2vec().read(bare, told, allow_missing_head=True)
    assert {*found.fresh} == {
        f"{at}.proj.{part}" for at in ("branches.mim.head", "teachers.mim.copy.head") for part in ("weight", "bias")
    }


@given(height=st.integers(2, 12), width=st.integers(2, 12), learned=st.booleans())
@settings(deadline=None, max_examples=30)
def test_grids_from_position_tables(height: int, width: int, learned: bool) -> None:
    """The index table tells every grid (but a single row from a column); a table alone tells square ones."""
    table = RelativePositionBias((height, width), 1, 2).table
    names = {"rel_pos_bias.relative_position_bias_table": table}
    state = names | ({"pos_embed": torch.zeros(1, 1 + height * width, 4)} if learned else {})
    index = {"rel_pos_bias.relative_position_index": relative_index((height, width), 1)}
    assert grid_of(state | index) == (height, width)
    if height == width:
        assert grid_of(state) == (height, width)


@given(dim=st.integers(1, 3000), hidden=st.integers(1, 12000))
@settings(deadline=None)
def test_mlp_ratios(dim: int, hidden: int) -> None:
    assert int(dim * ratio(hidden, dim)) == hidden


def test_a_plugin_brings_an_importer(official: Any) -> None:
    """The tables are all that it writes, whatever prefix its names have."""

    class Prefixed(Importer):
        """Checkpoints of some project."""

        name = "prefixed"
        recipe = "data2vec"
        rules: ClassVar[Mapping[str, str]] = {
            r"net\.(patch_embed|norm)\.(.+)": r"student.\1.\2",
            r"net\.cls_token": "student.prefix",
            r"net\.mask_token": "student.mask_token",
            r"net\.(blocks\.\d+)\.(norm1|norm2|attn|mlp)\.(.+)": r"student.\1.\2.\3",
            r"proj\.(.+)": r"branches.mim.head.proj.\1",
        }
        prediction = "proj.bias"

        def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
            return encoder(state, "net.") | {"student.relative_positions": "none", "student.layer_scale": None}

    objective, plain = official("data2vec", ["student.relative_positions=none", "student.layer_scale=null"])
    ours = {name: tensor for name, tensor in plain.items() if not name.startswith("model_ema.")}
    state = {
        name.replace("lm_head", "proj") if "lm_head" in name else f"net.{name}": tensor for name, tensor in ours.items()
    }
    found = Prefixed().read(
        state, [*TOLD["data2vec"], "student.image_size=32", "student.num_heads=2", "teacher.layers=[0,1]"]
    )
    assert Prefixed().summary == "Checkpoints of some project."
    read = found.objective().state_dict()
    assert all(
        read[name].equal(tensor) for name, tensor in objective.state_dict().items() if not name.startswith("teachers.")
    )


def test_registered_importers() -> None:
    registry = plugins()["importers"]
    for name in ("mae", "beit", "data2vec"):
        importer = registry[name]()
        assert importer.name == name
        assert importer.recipe in plugins()["recipes"]
        assert importer.summary == registry.entries[name].summary != ""


def test_listing_importers_does_not_import_torch() -> None:
    code = (
        "import sys; from unimim import plugins; "
        "print([e.summary for e in plugins()['importers'].entries.values()]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
