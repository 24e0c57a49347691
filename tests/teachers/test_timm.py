"""The timm teacher: ViTs and feature maps, their sizes, their weights, and what it refuses."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.testing import assert_close

from unimim import Geometry, View
from unimim.teachers.timm import Timm

GEOMETRY = Geometry((64, 64), (4, 4), 16)


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def make(model: str, geometry: Geometry = GEOMETRY, **config: Any) -> Timm:
    teacher = Timm(Timm.Config(**{"model": model, "pretrained": False, **config}), geometry)
    teacher.freeze()
    return teacher


def seen_by(teacher: Timm, batch: int = 2) -> View:
    """A view that holds random pixels of the teacher's rendition."""
    assert teacher.rendition is not None
    pixels = torch.rand(batch, 3, *teacher.rendition.size, generator=torch.Generator().manual_seed(1))
    return View(torch.zeros(batch, 3, 64, 64), {teacher.rendition: pixels})


def normalized(teacher: Timm, view: View) -> Tensor:
    pixels = timm.data.resolve_model_data_config(teacher.model)
    mean, std = (torch.tensor(pixels[name]).view(-1, 1, 1) for name in ("mean", "std"))
    out: Tensor = (view.pixels(teacher.rendition) - mean) / std
    return out


def blocks_of(teacher: Timm, view: View) -> list[Tensor]:
    """What every block of a ViT leaves, caught from the model's own forward pass."""
    caught: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: caught.append(out)) for block in teacher.model.blocks
    ]
    teacher.model.forward_features(normalized(teacher, view))
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("grid", [(4, 4), (2, 3)])
def test_vit_tokens_after_the_final_norm(grid: tuple[int, int]) -> None:
    teacher = make("test_vit", Geometry((64, 96), grid, 16))
    view = seen_by(teacher)
    assert teacher.rendition is not None
    assert teacher.rendition.size == (grid[0] * 16, grid[1] * 16)
    expected = teacher.model.forward_features(normalized(teacher, view))
    target = teacher(view)
    assert target.tokens.shape == (2, grid[0] * grid[1], teacher.spec.dim)
    assert_close(target.tokens, expected[:, 1:])
    assert_close(target.image, expected[:, :1])


def test_blocks_raw_and_mean() -> None:
    teacher = make("test_vit", feature="raw", block=1)
    view, state = seen_by(teacher), teacher.model.state_dict()
    blocks = blocks_of(teacher, view)
    assert_close(teacher(view).tokens, blocks[1][:, 1:])

    def same_weights(**config: Any) -> Tensor:
        other = make("test_vit", **config)
        other.model.load_state_dict(state)
        tokens: Tensor = other(view).tokens
        return tokens

    assert_close(same_weights(feature="raw"), blocks[-1][:, 1:])
    assert_close(same_weights(feature="raw", block=-2), blocks[-2][:, 1:])
    assert_close(same_weights(feature="normed", block=0), teacher.model.norm(blocks[0])[:, 1:])
    assert_close(same_weights(feature="mean", last=3), torch.stack(blocks[-3:]).mean(0)[:, 1:])
    each = torch.stack([F.layer_norm(block, block.shape[-1:]) for block in blocks[-3:]]).mean(0)[:, 1:]
    assert_close(same_weights(feature="mean", last=3, layer_norm_each=True), each)


def test_a_register_is_not_a_class_token() -> None:
    teacher = make("test_vit3")
    target = teacher(seen_by(teacher))
    assert teacher.model.num_prefix_tokens == 1
    assert target.tokens.shape == (2, 16, 96)
    assert target.image is None


@pytest.mark.parametrize(("block", "size", "dim"), [(-1, (128, 128), 96), (3, (64, 64), 192)])
def test_resnet_feature_map_in_raster_order(block: int, size: tuple[int, int], dim: int) -> None:
    teacher = make("test_resnet", feature="raw", block=block)
    view = seen_by(teacher)
    assert teacher.rendition is not None
    assert teacher.rendition.size == size
    assert teacher.spec.dim == dim
    maps = teacher.model.forward_intermediates(normalized(teacher, view), intermediates_only=True)[block]
    tokens = teacher(view).tokens
    assert tokens.shape == (2, 16, dim)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        assert_close(tokens[:, row * 4 + column], maps[:, :, row, column])


def test_autocast_changes_nothing_and_bfloat16_is_near() -> None:
    teacher = make("test_vit")
    view = seen_by(teacher)
    tokens = teacher(view).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(view).tokens.equal(tokens)
    short = make("test_vit", precision="bfloat16")
    short.model.load_state_dict(teacher.model.state_dict())
    assert short(view).tokens.dtype == torch.float32
    assert 0 < (short(view).tokens - tokens).abs().max() < 0.1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoint_is_resampled_to_the_grid(tmp_path: Path, suffix: str) -> None:
    source = timm.create_model("test_vit", num_classes=10)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": source.state_dict(), "epoch": 3}, path)
    else:
        save_file(source.state_dict(), path)
    teacher = make("test_vit", checkpoint=str(path), pretrained=True)
    assert_close(teacher.model.blocks[2].mlp.fc1.weight, source.blocks[2].mlp.fc1.weight)
    expected = resample_abs_pos_embed(source.pos_embed, [4, 4], [10, 10], num_prefix_tokens=1)
    assert_close(teacher.model.pos_embed, expected)


def layout(family: str, model: torch.nn.Module) -> dict[str, Any]:
    """A training checkpoint as MoCo v3 and SLIP write theirs, with `model` as its image encoder."""
    own, torso = model.state_dict(), {"layer1.weight": torch.ones(4, 4)}
    other = {name: torch.zeros_like(value) for name, value in own.items()}
    parts = {
        "MoCo v3": {
            "base_encoder": own | {"head.0.weight": torch.ones(4, 64)},
            "momentum_encoder": other,
            "predictor": torso,
        },
        "SLIP": {"visual": own, "transformer": {"resblocks.0.ln_1.bias": torch.ones(4)}, "image_mlp": torso},
        "SimCLR": {"visual": own, "image_mlp": torso},
    }[family]
    state = {f"module.{part}.{name}": value for part, names in parts.items() for name, value in names.items()}
    if family == "SLIP":
        state |= {"module.image_projection": torch.ones(4, 4), "module.logit_scale": torch.ones(())}
    rest = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 2.0},
    }
    args = (
        {} if family == "MoCo v3" else {"args": argparse.Namespace(output_dir=Path("/checkpoint/1")), "best_acc1": -1}
    )
    return {"epoch": 300, "state_dict": state, **rest, **args}


@pytest.mark.parametrize(
    ("family", "file", "prefix", "label"),
    [
        ("MoCo v3", "vit-b-300ep.pth.tar", "module.base_encoder.", "MoCov3"),
        ("MoCo v3", "vit-b-300ep.pth.tar", "base_encoder.", "MoCov3"),
        ("SLIP", "slip_base_100ep.pt", "module.visual.", "SLIP"),
        ("SimCLR", "simclr_base_25ep.pt", "module.visual.", "SimCLR"),
        ("SLIP", "renamed.pt", "visual.", "test_vit"),
    ],
)
def test_official_training_checkpoints(family: str, file: str, prefix: str, label: str, tmp_path: Path) -> None:
    """The features are those of the model that the file was made from, positions and all."""
    source = make("test_vit", Geometry((160, 160), (10, 10), 16), **IMAGENET)
    torch.save(layout(family, source.model), tmp_path / file)
    found = make("test_vit", source.geometry, checkpoint=str(tmp_path / file), prefix=prefix, **IMAGENET)
    assert found.config.label == label
    view = seen_by(source)
    assert found(view).tokens.equal(source(view).tokens)
    assert found.model.pos_embed.equal(source.model.pos_embed)


def test_a_part_that_is_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vit-b-300ep.pth.tar"
    torch.save(layout("MoCo v3", timm.create_model("test_vit", num_classes=0)), path)
    for prefix in ("", "module.bas.", "predictor."):
        with pytest.raises(
            ValueError, match=r"set teacher.prefix=base_encoder\. or teacher.prefix=momentum_encoder\.$"
        ):
            make("test_vit", checkpoint=str(path), prefix=prefix, **IMAGENET)


@pytest.mark.parametrize("family", ["MoCo v3", "SLIP"])
def test_twelve_heads_and_pixel_statistics_that_no_tensor_tells(family: str, tmp_path: Path) -> None:
    described = {
        "architecture": "vit_small_patch16_224",
        "model_args": {"depth": 1, "img_size": 64},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    small = f"local-dir:{tmp_path}"
    source = make(small, num_heads=12, **IMAGENET)
    path = tmp_path / "small.pth.tar"
    torch.save(layout(family, source.model), path)
    given: dict[str, Any] = {"checkpoint": str(path), "prefix": "visual." if family == "SLIP" else "base_encoder."}
    both = r"file of .*set teacher.num_heads=12 teacher.mean=\[0.485,0.456,0.406\] teacher.std=\[0.229,0.224,0.225\]$"
    with pytest.raises(ValueError, match=both):
        make(small, **given)
    with pytest.raises(ValueError, match=r"set teacher.num_heads=12$"):
        make(small, **given, **IMAGENET)
    view = seen_by(source)
    assert make(small, num_heads=12, **given, **IMAGENET)(view).tokens.equal(source(view).tokens)
    six = make(small, **IMAGENET)
    six.model.load_state_dict(source.model.state_dict())
    assert (six(view).tokens - source(view).tokens).abs().max() > 1e-3


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .*absent\.pth"):
        make("test_vit", checkpoint=str(tmp_path / "absent.pth"))
    state = timm.create_model("test_vit").state_dict()
    partial = tmp_path / "partial.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("blocks.5.")}, partial)
    with pytest.raises(ValueError, match=r"lacks 12 weights of the model: blocks\.5\.norm1\.weight"):
        make("test_vit", checkpoint=str(partial))
    torch.save(timm.create_model("test_vit3").state_dict(), partial)
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*partial\.pth"):
        make("test_vit", checkpoint=str(partial))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_hostile_checkpoint_is_refused_without_running(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "hostile.pth"
    torch.save({"model": Hostile(trace)}, path)
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        make("test_vit", checkpoint=str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("test_vit", {"num_heads": 7}, "is 64 wide, which does not divide into num_heads 7; its own are 2"),
        ("test_resnet", {"num_heads": 2, "feature": "raw"}, "no attention heads to count; unset num_heads"),
        ("test_vitt", {}, "unknown model 'test_vitt', did you mean 'test_vit'"),
        ("vit_base_patch16_224.dinosaur", {}, r"unknown weights; known: .*vit_base_patch16_224\.dino,"),
        ("test_resnet", {}, "no final norm for single tokens; set feature: raw"),
        ("test_vit2", {}, "no final norm for single tokens; set feature: raw"),
        ("test_resnet", {"feature": "mean", "last": 2}, "different sizes"),
        ("test_vit", {"block": 6}, "outside its 6 blocks"),
        ("test_vit", {"block": -7}, "outside its 6 blocks"),
        ("test_vit", {"feature": "mean", "last": 7}, "outside its 6 blocks"),
        (
            "vit_base_patch16_clip_224.openai",
            {},
            "QuickGELU.*use model: vit_base_patch16_clip_quickgelu_224.openai",
        ),
    ],
)
def test_models_that_cannot_teach_are_refused(model: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(model, **config)


def test_every_quickgelu_name_that_an_error_gives_exists() -> None:
    refused = [
        name
        for name in timm.list_pretrained("vit_*_clip_*")
        if "_quickgelu_" not in name and "QuickGELU" in " ".join(timm.get_pretrained_cfg(name).notes or ())
    ]
    assert len(refused) > 5
    named = {name.replace("_clip_", "_clip_quickgelu_").partition(".")[0] for name in refused}
    assert named <= set(timm.list_models())


def test_channels_are_rgb() -> None:
    with pytest.raises(ValueError, match="RGB, not 1 channels"):
        make("test_vit", Geometry((64, 64), (4, 4), 16, channels=1))


def test_fields_that_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="belong to feature: mean"):
        Timm.Config(model="test_vit", last=3)
    with pytest.raises(ValidationError, match="it has no block"):
        Timm.Config(model="test_vit", feature="mean", last=3, block=2)
    with pytest.raises(ValidationError, match="give its file as checkpoint"):
        Timm.Config(model="test_vit", prefix="module.visual.")
    with pytest.raises(ValidationError, match="std must be positive"):
        Timm.Config(model="test_vit", std=(1, 0, 1))


def test_without_a_network_the_error_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of 'test_vit'.*give their file as checkpoint"):
        make("test_vit", pretrained=True)


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("vit_base_patch16_224.dino", "DINO"),
        ("vit_small_patch14_dinov2.lvd142m", "DINOv2"),
        ("vit_base_patch16_224.mae", "MAE"),
        ("beitv2_base_patch16_224", "BEiT v2"),
        ("beit_base_patch16_224", "BEiT"),
        ("vit_base_patch16_clip_quickgelu_224.openai", "CLIP"),
        ("resnet50", "ResNet"),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
    ],
)
def test_label(model: str, label: str) -> None:
    assert Timm.Config(model=model).label == label
