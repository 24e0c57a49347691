"""The CLIP teacher: which tokens it returns, from which pixels, and what it refuses."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import factory
from open_clip.transformer import QuickGELU
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from unimim import Geometry, View
from unimim.teachers.open_clip import OpenClip

GEOMETRY = Geometry((64, 64), (4, 4), 16)


def make(folder: Path | str, geometry: Geometry = GEOMETRY, **config: Any) -> OpenClip:
    teacher = OpenClip(OpenClip.Config(model=str(folder), **config), geometry)
    teacher.freeze()
    return teacher


def seen_by(teacher: OpenClip, batch: int = 2) -> View:
    """A view that holds random pixels of the teacher's rendition."""
    assert teacher.rendition is not None
    pixels = torch.rand(batch, 3, *teacher.rendition.size, generator=torch.Generator().manual_seed(1))
    return View(torch.zeros(batch, 3, 64, 64), {teacher.rendition: pixels})


def blocks_of(teacher: OpenClip, view: View) -> list[Tensor]:
    """What every block of the tower leaves, caught from the tower's own forward pass on normalized pixels."""
    caught: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: caught.append(out))
        for block in teacher.tower.transformer.resblocks
    ]
    teacher.tower((view.pixels(teacher.rendition) - 0.5) / 0.25)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.fixture
def named(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model under a name, "tiny", as open_clip's built-in models have; -> its weights file."""
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", config)
    return tiny_clip / "open_clip_model.safetensors"


def test_rendition_gives_the_grid_of_the_student(tiny_clip: Path) -> None:
    teacher = make(tiny_clip)
    target = teacher(seen_by(teacher))
    assert teacher.rendition is not None
    assert teacher.rendition.size == (32, 32)
    assert target.tokens.shape == (2, 16, teacher.spec.dim) == (2, 16, 16)
    assert target.image is not None
    assert target.image.shape == (2, 1, 16)


def test_non_square_grid(tiny_clip: Path) -> None:
    teacher = make(tiny_clip, Geometry((64, 32), (4, 2), 16))
    assert teacher.rendition is not None
    assert teacher.rendition.size == (32, 16)
    assert teacher(seen_by(teacher)).tokens.shape == (2, 8, 16)


def test_normed_is_the_final_norm_of_the_last_block(tiny_clip: Path) -> None:
    teacher = make(tiny_clip)
    view = seen_by(teacher)
    expected = teacher.tower.ln_post(blocks_of(teacher, view)[-1])
    target = teacher(view)
    assert_close(target.tokens, expected[:, 1:])
    assert_close(target.image, expected[:, :1])


def test_projected_class_token_is_the_embedding_of_the_image(tiny_clip: Path) -> None:
    teacher = make(tiny_clip, feature="projected")
    view = seen_by(teacher)
    target = teacher(view)
    assert teacher.spec.dim == 8
    assert target.tokens.shape == (2, 16, 8)
    assert target.image is not None
    assert_close(target.image[:, 0], teacher.tower((view.pixels(teacher.rendition) - 0.5) / 0.25))


def test_raw_and_mean_of_blocks(tiny_clip: Path) -> None:
    teacher = make(tiny_clip, feature="raw")
    view = seen_by(teacher)
    first, last = blocks_of(teacher, view)
    assert_close(teacher(view).tokens, last[:, 1:])
    assert_close(make(tiny_clip, feature="mean", last=2)(view).tokens, (first + last)[:, 1:] / 2)
    each = make(tiny_clip, feature="mean", last=2, layer_norm_each=True)(view).tokens
    assert_close(each, (F.layer_norm(first, (16,)) + F.layer_norm(last, (16,)))[:, 1:] / 2)


def test_positions_are_resampled_once_bicubic_antialiased(tiny_clip: Path) -> None:
    saved = open_clip.create_model(f"local-dir:{tiny_clip}").visual.positional_embedding
    for grid in ((4, 4), (3, 2), (2, 2)):
        table = make(tiny_clip, Geometry((64, 64), grid, 16)).tower.positional_embedding
        square = saved[1:].T.reshape(1, -1, 2, 2)
        expected = F.interpolate(square, grid, mode="bicubic", antialias=True).flatten(2)[0].T
        assert_close(table[0], saved[0])
        assert_close(table[1:], expected)


@pytest.mark.parametrize("grid", [(2, 2), (4, 4)])
def test_images_do_not_mix(tiny_clip: Path, grid: tuple[int, int]) -> None:
    teacher = make(tiny_clip, Geometry((64, 64), grid, 16))
    view = seen_by(teacher, 3)
    assert teacher.rendition is not None
    order = torch.tensor([2, 0, 1])
    turned = View(view.image, {teacher.rendition: view.pixels(teacher.rendition)[order]})
    assert_close(teacher(turned).tokens, teacher(view).tokens[order])


def test_autocast_changes_nothing(tiny_clip: Path) -> None:
    teacher = make(tiny_clip)
    view = seen_by(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher(view).tokens
    assert inside.dtype == torch.float32
    assert inside.equal(teacher(view).tokens)


def test_bfloat16_is_near_and_returns_float32(tiny_clip: Path) -> None:
    exact, short = make(tiny_clip), make(tiny_clip, precision="bfloat16")
    tokens = short(seen_by(short)).tokens
    assert {p.dtype for p in short.tower.parameters()} == {torch.bfloat16}
    assert tokens.dtype == torch.float32
    difference = (tokens - exact(seen_by(exact)).tokens).abs().max()
    assert 0 < difference < 0.1


def attention_of(teacher: OpenClip, view: View) -> Tensor:
    """(B, 1 + N, 1 + N): the last block's attention, averaged over heads, as nn.MultiheadAttention gives it."""
    last = teacher.tower.transformer.resblocks[-1]
    entering = last.ln_1(blocks_of(teacher, view)[-2]).float()
    attention: Tensor = deepcopy(last.attn).float()(entering, entering, entering, need_weights=True)[1]
    return attention


def test_saliency_is_the_attention_of_the_class_token_in_the_last_block(tiny_clip: Path) -> None:
    teacher = make(tiny_clip, saliency=True)
    view = seen_by(teacher)
    saliency, expected = teacher(view).saliency, attention_of(teacher, view)
    assert saliency is not None
    assert saliency.std() > 1e-4  # tells patches apart
    assert_close(saliency, expected[:, 0, 1:], rtol=0, atol=1e-6)
    assert_close(saliency.sum(1) + expected[:, 0, 0], torch.ones(2))


def test_saliency_costs_no_second_pass_and_changes_no_token(tiny_clip: Path) -> None:
    plain, asked = make(tiny_clip), make(tiny_clip, saliency=True)
    calls: list[Any] = []
    for block in asked.tower.transformer.resblocks:
        block.register_forward_hook(lambda module, args, out: calls.append(module))
    target = asked(seen_by(asked))
    assert calls == [*asked.tower.transformer.resblocks]
    assert target.tokens.equal(plain(seen_by(plain)).tokens)
    assert plain(seen_by(plain)).saliency is None
    asked(seen_by(asked))
    assert not asked.tower.transformer.resblocks[-1].ln_1._forward_hooks


@pytest.mark.parametrize("feature", ["raw", "projected", "mean"])
def test_saliency_does_not_depend_on_the_feature(tiny_clip: Path, feature: str) -> None:
    normed, other = make(tiny_clip, saliency=True), make(tiny_clip, saliency=True, feature=feature)
    assert_close(other(seen_by(other)).saliency, normed(seen_by(normed)).saliency)


def test_saliency_in_bfloat16(tiny_clip: Path) -> None:
    exact, short = make(tiny_clip, saliency=True), make(tiny_clip, saliency=True, precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        saliency = short(seen_by(short)).saliency
    assert saliency is not None
    assert saliency.dtype == torch.float32
    assert_close(saliency, exact(seen_by(exact)).saliency, rtol=0.05, atol=0)


def test_a_tower_with_another_attention_has_no_saliency(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    config["vision_cfg"]["scale_attn"] = True
    monkeypatch.setitem(factory._MODEL_CONFIGS, "scaled", config)
    make("scaled", pretrained=None)
    with pytest.raises(ValueError, match="set saliency: false"):
        make("scaled", pretrained=None, saliency=True)


def test_pixel_statistics_are_the_towers_own_unless_given(tiny_clip: Path) -> None:
    own, plain = make(tiny_clip), make(tiny_clip, mean=(0, 0, 0), std=(1, 1, 1))
    view = seen_by(own)
    normalized = View(view.image, {own.rendition: (view.pixels(own.rendition) - 0.5) / 0.25})
    assert_close(plain(normalized).tokens, own(view).tokens)
    assert_close(make(tiny_clip, std=(0.25, 0.25, 0.25))(view).tokens, own(view).tokens)
    with pytest.raises(ValidationError, match="std must be positive"):
        OpenClip.Config(std=(0.2, 0.0, 0.2))


def test_local_dir_and_folder_are_the_same(tiny_clip: Path) -> None:
    teacher = make(tiny_clip)
    assert_close(make(f"local-dir:{tiny_clip}")(seen_by(teacher)).tokens, teacher(seen_by(teacher)).tokens)


def test_named_model_with_a_file_or_random(tiny_clip: Path, named: Path) -> None:
    saved, random = make("tiny", pretrained=str(named)), make("tiny", pretrained=None)
    weight = make(tiny_clip).tower.conv1.weight
    assert saved.tower.conv1.weight.equal(weight)
    assert not random.tower.conv1.weight.equal(weight)


def test_quickgelu_model_computes_quickgelu(tiny_clip: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes((tiny_clip / "open_clip_model.safetensors").read_bytes())
    quick, plain = make(tmp_path), make(tiny_clip)
    assert all(isinstance(block.mlp.gelu, QuickGELU) for block in quick.tower.transformer.resblocks)
    assert (quick(seen_by(quick)).tokens - plain(seen_by(plain)).tokens).abs().max() > 1e-4


@pytest.mark.parametrize("tag", ["openai", "metaclip_400m", "dfn2b"])
def test_weights_of_quickgelu_are_refused_by_an_exact_model(tag: str) -> None:
    with pytest.raises(ValueError, match=r"QuickGELU.*use model: ViT-B-16-quickgelu"):
        make("ViT-B-16", pretrained=tag)


def test_weights_of_exact_gelu_are_refused_by_a_quickgelu_model() -> None:
    with pytest.raises(ValueError, match=r"exact GELU.*use model: ViT-B-16$"):
        make("ViT-B-16-quickgelu", pretrained="laion2b_s34b_b88k")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "ViT-B-61"}, "unknown model 'ViT-B-61', did you mean 'ViT-B-16'"),
        (
            {"model": "ViT-B-16", "pretrained": "lion2b"},
            "neither a file nor a tag of 'ViT-B-16'; tags: .*laion2b_s34b_b88k",
        ),
        ({"model": "RN50", "pretrained": None}, "ResNet"),
        ({"model": "ViT-B-16-SigLIP", "pretrained": None}, "vit_base_patch16_siglip_224.*use teacher timm"),
        ({"model": "coca_ViT-B-32", "pretrained": None}, "set feature: raw"),
        ({"model": "ViT-B/16", "pretrained": None, "feature": "mean", "last": 13}, "more than its 12 blocks"),
    ],
)
def test_models_that_cannot_teach_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"folder": config.pop("model"), **config})


def test_folders_that_cannot_teach_are_refused(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no open_clip_config\.json"):
        make(tmp_path)
    (tmp_path / "open_clip_config.json").write_text((tiny_clip / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match="holds no weights"):
        make(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"cannot load model '{tmp_path}'"):
        make(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match="no configuration of"):
        make(tmp_path)
    with pytest.raises(ValueError, match="brings its own weights; unset pretrained: laion2b"):
        make(tiny_clip, pretrained="laion2b")
    with pytest.raises(ValueError, match="RGB, not 1 channels"):
        make(tiny_clip, Geometry((64, 64), (4, 4), 16, channels=1))


def test_last_belongs_to_mean() -> None:
    with pytest.raises(ValidationError, match="belong to feature: mean"):
        OpenClip.Config(last=3)


def test_without_a_network_the_error_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"laion2b_s34b_b88k.*fetch the weights ahead"):
        make("ViT-B-16", pretrained="laion2b_s34b_b88k")
    with pytest.raises(ValueError, match=r"hf-hub:nobody/nothing.*fetch the weights ahead"):
        make("hf-hub:nobody/nothing")


def test_label() -> None:
    assert OpenClip.Config().label == "CLIP"


def test_every_quickgelu_name_that_an_error_gives_exists() -> None:
    plain = [model for model in open_clip.list_models() if not model.endswith("-quickgelu")]
    trained = {model: open_clip.list_pretrained_tags_by_model(model) for model in plain}
    quick = [
        m for m, tags in trained.items() if any(open_clip.get_pretrained_cfg(m, t).get("quick_gelu") for t in tags)
    ]
    assert len(quick) > 5
    assert {f"{model}-quickgelu" for model in quick} <= set(open_clip.list_models())
