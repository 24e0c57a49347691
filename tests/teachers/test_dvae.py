"""The dVAE tokenizer: parity with openai/DALL-E @ 5be4b23, and weights from files that must not run anything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from unimim import Geometry, Rendition, View
from unimim.layers import map_pixels
from unimim.teachers.dvae import DVae

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parents[1] / "parity" / "data"))
SMALL = {"vocab_size": 24, "num_hidden": 8, "blocks_per_group": 1}


def make(geometry: Geometry | None = None, **config: Any) -> DVae:
    teacher = DVae(DVae.Config(**{**SMALL, **config}), geometry or Geometry((64, 64), (4, 4), 16))
    teacher.freeze()
    return teacher


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(FOLDER / "dvae.npz", allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files if name != "config"}
        config = json.loads(str(file["config"]))
    return {**{name: torch.from_numpy(array) for name, array in arrays.items()}, "config": config}


@pytest.fixture
def official(golden: dict[str, Any]) -> DVae:
    """The teacher with the official weights, on the grid of the stored images."""
    config = golden["config"]
    height, width = golden["images_01"].shape[-2:]
    geometry = Geometry((2 * height, 2 * width), (height // 8, width // 8), 16)
    sizes = {"vocab_size": config["vocab_size"], "num_hidden": config["n_hid"]}
    teacher = DVae(DVae.Config(**sizes, blocks_per_group=config["n_blk_per_group"]), geometry)
    state = {name.removeprefix("state/"): value for name, value in golden.items() if name.startswith("state/")}
    teacher.encoder.load_state_dict(state)
    return teacher


def test_pixel_map(golden: dict[str, Any]) -> None:
    assert_close(map_pixels(golden["images_01"]), golden["mapped"], rtol=0, atol=1e-7)


def test_logits_ids_and_gradients(golden: dict[str, Any], official: DVae) -> None:
    logits = official.encoder(map_pixels(golden["images_01"]))
    assert_close(logits, golden["logits"], rtol=0, atol=5e-5)
    assert logits.argmax(1).equal(golden["token_ids"])
    logits.square().mean().backward()
    stored = {name.removeprefix("grad/"): value for name, value in golden.items() if name.startswith("grad/")}
    ours = dict(official.encoder.named_parameters())
    assert stored
    for name, gradient in stored.items():
        found = ours[name].grad
        assert found is not None
        assert (found - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


def test_targets_are_the_ids_in_raster_order(golden: dict[str, Any], official: DVae) -> None:
    official.freeze()
    assert official.rendition == Rendition(tuple(golden["images_01"].shape[-2:]), "lanczos")
    view = View(torch.zeros(1), {official.rendition: golden["images_01"]})
    assert official.spec.discrete
    assert official.spec.dim == golden["config"]["vocab_size"]
    tokens = official(view).tokens
    assert tokens.dtype == torch.int64
    assert tokens.equal(golden["token_ids"].flatten(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert official(view).tokens.equal(tokens)


def test_official_size() -> None:
    teacher = DVae(DVae.Config(), Geometry((224, 224), (14, 14), 768))
    assert sum(p.numel() for p in teacher.parameters()) == 53_786_240
    assert teacher.rendition == Rendition((112, 112), "lanczos")
    assert teacher.encoder.state_dict()["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)


def test_bfloat16_keeps_the_last_convolution_exact() -> None:
    teacher = make(precision="bfloat16")
    assert teacher.encoder.state_dict()["blocks.input.w"].dtype == torch.bfloat16
    assert teacher.encoder.state_dict()["blocks.output.conv.w"].dtype == torch.float32
    exact = make()
    exact.encoder.load_state_dict(teacher.encoder.state_dict())
    view = View(torch.zeros(1), {teacher.rendition: torch.rand(4, 3, 32, 32)})  # type: ignore[dict-item]
    assert (teacher(view).tokens == exact(view).tokens).float().mean() > 0.5


class Encoder(nn.Module):
    """As the official module is when it is saved: parameters called w and b, odd attributes beside them."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.device, self.vocab_size, self.use_mixed_precision = torch.device("cpu"), 24, True
        for name, value in state.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Sequential())
                owner = owner.get_submodule(part)
            owner.register_parameter(last, nn.Parameter(value.clone(), requires_grad=False))


@pytest.fixture
def dall_e(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder lives in a package `dall_e` while it is saved; whoever loads it has no such package."""
    module = ModuleType("dall_e.encoder")
    monkeypatch.setitem(sys.modules, "dall_e", ModuleType("dall_e"))
    monkeypatch.setitem(sys.modules, "dall_e.encoder", module)
    monkeypatch.setattr(Encoder, "__module__", "dall_e.encoder")
    module.Encoder = Encoder  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.save cannot find the source of a class made in a test
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_from_a_pickled_module(dall_e: None, tmp_path: Path, zipped: bool) -> None:
    source, path = make(), tmp_path / "encoder.pkl"
    torch.save(Encoder(source.encoder.state_dict()), path, _use_new_zipfile_serialization=zipped)
    del sys.modules["dall_e.encoder"], sys.modules["dall_e"]
    loaded = make(weights=str(path)).encoder.state_dict()
    assert list(loaded) == list(source.encoder.state_dict())
    assert all(value.equal(loaded[name]) for name, value in source.encoder.state_dict().items())


@pytest.mark.parametrize("kind", ["pth", "wrapped.pth", "legacy.pth", "safetensors"])
def test_weights_from_a_state_dict(tmp_path: Path, kind: str) -> None:
    state, path = make().encoder.state_dict(), tmp_path / f"encoder.{kind}"
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        saved = {"state_dict": state} if kind == "wrapped.pth" else state
        torch.save(saved, path, _use_new_zipfile_serialization=kind != "legacy.pth")
    loaded = make(weights=str(path)).encoder.state_dict()
    assert all(value.equal(loaded[name]) for name, value in state.items())


def test_weights_from_a_folder_that_unimim_wrote(tmp_path: Path) -> None:
    state = make().encoder.state_dict()
    names = {name: name.replace("blocks.output.conv.", "branches.mim.head.output.") for name in state}
    saved = {name if name.startswith("branches.") else f"student.{name}": state[key] for key, name in names.items()}
    more = {"branches.mim.head.decoder.blocks.group_1.block_1.res_path.conv_1.b": torch.zeros(2)}
    save_file({name: value.contiguous() for name, value in (saved | more).items()}, tmp_path / "objective.safetensors")
    with pytest.raises(ValueError, match="no whole weights folder"):
        make(weights=str(tmp_path))
    (tmp_path / "recipe.yaml").touch()
    loaded = make(weights=str(tmp_path)).encoder.state_dict()
    assert all(value.equal(loaded[name]) for name, value in state.items())
    with pytest.raises(ValueError, match=r"\(vocab_size=24 num_hidden=8 blocks_per_group=1\)"):
        make(weights=str(tmp_path), num_hidden=4)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class HostileByName(Hostile):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


@pytest.mark.parametrize("hostile", [Hostile, HostileByName])
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_without_running(tmp_path: Path, hostile: type[Hostile], zipped: bool) -> None:
    trace, path = tmp_path / "ran", tmp_path / "encoder.pkl"
    state: dict[str, Any] = {**make().encoder.state_dict(), "blocks.input.b": hostile(trace)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"cannot read weights from .*encoder\.pkl: it names .*nothing was run"):
        make(weights=str(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works: torch's own loader falls into it
    assert trace.exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pkl"
    with pytest.raises(ValueError, match=r"no weights at .*encoder\.pkl; fetch"):
        make(weights=str(path))
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="cannot read weights from"):
        make(weights=str(path))
    for zipped in (True, False):
        torch.save(make().encoder.state_dict(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ValueError, match="cannot read weights from"):
            make(weights=str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="neither a module nor a state dict"):
        make(weights=str(path))
    torch.save(make(vocab_size=32).encoder.state_dict(), path)
    with pytest.raises(ValueError, match="does not fit; vocab_size, num_hidden and blocks_per_group"):
        make(weights=str(path))


def test_fields() -> None:
    assert DVae.Config().discrete
    assert DVae.Config().label == "dVAE"
    with pytest.raises(ValidationError):
        DVae.Config(num_hidden=10)
    with pytest.raises(ValueError, match="RGB, not 1 channels"):
        make(Geometry((64, 64), (4, 4), 16, channels=1))
