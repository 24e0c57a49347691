"""Training a small CLIP: its loss, its augmentation, and the folder it leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from unimim import Geometry, View
from unimim.teachers.clip_training import Captioned, augment, contrastive_loss, train_clip
from unimim.teachers.open_clip import OpenClip

SETTINGS: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "layers": 1,
    "epochs": 20,
    "batch": 48,
    "lr": 3e-3,
}


@dataclass(frozen=True)
class Stripes:
    """Dark and light stripes, upright or lying, of random strength and phase: the mean colour tells nothing."""

    length: int = 96
    size: int = 16
    seed: int = 0
    classes: tuple[str, ...] = ("upright stripe", "lying stripe")

    def __len__(self) -> int:
        return self.length

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int) -> Tensor:
        noise = torch.Generator().manual_seed(self.seed * 10_000 + index)
        strength, phase = torch.rand(2, generator=noise)
        wave: Tensor = 128 + 60 * (0.5 + strength) * torch.sin(torch.arange(self.size) * 1.57 + 6.28 * phase)
        image = wave.expand(3, self.size, self.size)
        image = image if self.label(index) == 0 else image.transpose(1, 2)
        return (image + 10 * torch.randn(image.shape, generator=noise)).clamp(0, 255).to(torch.uint8)


class Described(Stripes):
    def caption(self, index: int) -> str:
        return f"picture number {index}"


unit = {"seed": st.integers(0, 10**6), "num_texts": st.integers(1, 6), "dim": st.integers(2, 8)}


@given(**unit)
def test_loss_is_that_of_clip_where_no_caption_repeats(seed: int, num_texts: int, dim: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(num_texts, dim, generator=noise), dim=1) for _ in range(2))
    expected = open_clip.ClipLoss()(image, text, torch.tensor(14.0))
    assert_close(contrastive_loss(image, text, torch.arange(num_texts), torch.tensor(14.0)), expected)


@given(**unit, num_images=st.integers(1, 8))
def test_loss_of_repeated_captions(seed: int, num_texts: int, dim: int, num_images: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(num_images, dim, generator=noise, dtype=torch.float64), dim=1)
    text = F.normalize(torch.randn(num_texts, dim, generator=noise, dtype=torch.float64), dim=1)
    own = torch.randint(num_texts, (num_images,), generator=noise)
    chance = (5 * image @ text.T).exp()
    picked = chance[torch.arange(num_images), own]
    terms = (picked / chance.sum(1)).log() + (picked / chance.sum(0)[own]).log()
    assert_close(contrastive_loss(image, text, own, torch.tensor(5.0)), -terms.mean() / 2)
    turned = torch.randperm(num_images, generator=noise)
    assert_close(contrastive_loss(image[turned], text, own[turned], torch.tensor(5.0)), -terms.mean() / 2)


@given(seed=st.integers(0, 10**6))
def test_augmented_images_are_shifted_and_mirrored(seed: int) -> None:
    torch.manual_seed(seed)
    images = torch.randint(256, (3, 2, 8, 8), dtype=torch.uint8)
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    for image, result in zip(padded, augment(images), strict=True):
        cuts = [image[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        assert any(result.equal(cut) or result.equal(cut.flip(2)) for cut in cuts)


def test_augmentation_varies_from_image_to_image() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8).expand(64, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in augment(images)}) > 20


def features(folder: Path, source: Stripes) -> Tensor:
    """Mean patch tokens (n, D) of a trained folder."""
    teacher = OpenClip(OpenClip.Config(model=str(folder)), Geometry((16, 16), (2, 2), 8))
    teacher.freeze()
    images = torch.stack([source.read(index) for index in range(len(source))])
    assert teacher.rendition is not None
    tokens: Tensor = teacher(View(images, {teacher.rendition: images})).tokens
    return tokens.mean(1)


def separation(folder: Path) -> float:
    """Distance between the class means of new images over the spread inside the classes."""
    tokens = features(folder, Stripes(seed=1))
    first, second = tokens[0::2], tokens[1::2]
    return float((first.mean(0) - second.mean(0)).norm() / (first.std(0).norm() + second.std(0).norm()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_clip(Captioned(Stripes()), tmp_path_factory.mktemp("clip") / "out", **SETTINGS)


def test_a_trained_tower_tells_classes_apart(trained: Path, tmp_path: Path) -> None:
    start = train_clip(Captioned(Stripes()), tmp_path / "start", **{**SETTINGS, "lr": 0.0, "epochs": 1})
    assert separation(trained) > 2 * separation(start)


def test_open_clip_loads_the_folder(trained: Path) -> None:
    model = open_clip.create_model(f"local-dir:{trained}", require_pretrained=True)
    config = json.loads((trained / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["image_size"] == 16
    assert model.visual.preprocess_cfg["mean"] == config["preprocess_cfg"]["mean"]
    assert {path.name for path in trained.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert [path.name for path in trained.parent.iterdir()] == ["out"]


def test_the_same_settings_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = train_clip(Captioned(Stripes()), tmp_path / "again", **SETTINGS)
    assert torch.random.get_rng_state().equal(before)
    assert features(again, Stripes()).equal(features(trained, Stripes()))


def test_a_finished_folder_is_reused_and_another_is_refused(trained: Path) -> None:
    lines: list[str] = []
    weights = trained / "open_clip_model.safetensors"
    written = weights.stat().st_mtime_ns
    assert train_clip(Captioned(Stripes()), trained, **SETTINGS, log=lines.append) == trained
    assert weights.stat().st_mtime_ns == written
    assert lines == []
    for pairs, settings in (
        (Captioned(Stripes()), {**SETTINGS, "epochs": 21}),
        (Captioned(Stripes(), "a drawing of a {}"), SETTINGS),
        (Captioned(Stripes(seed=2)), SETTINGS),
    ):
        with pytest.raises(ValueError, match=r"out holds something else than this training's outcome"):
            train_clip(pairs, trained, **settings)


def test_an_interrupted_training_leaves_nothing(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_clip(Captioned(Stripes()), tmp_path / "out", **SETTINGS, log=stop)
    assert list(tmp_path.iterdir()) == []


def test_one_line_of_log_an_epoch(tmp_path: Path) -> None:
    lines: list[str] = []
    train_clip(Captioned(Stripes()), tmp_path / "out", **{**SETTINGS, "epochs": 2}, log=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["clip epoch 1/2", "clip epoch 2/2"]


def test_images_of_other_sizes_are_resized_and_cut(tmp_path: Path) -> None:
    class Mixed(Stripes):
        def read(self, index: int) -> Tensor:
            return torch.zeros(3, 20 + index % 3, 24, dtype=torch.uint8)

    folder = train_clip(Captioned(Mixed(length=12)), tmp_path / "out", **{**SETTINGS, "epochs": 1})
    assert features(folder, Stripes(length=2)).shape == (2, 32)


def test_captions() -> None:
    pairs = Captioned(Stripes(), "a drawing of a {}")
    assert [pairs.caption(0), pairs.caption(1)] == ["a drawing of a upright stripe", "a drawing of a lying stripe"]
    assert pairs.image(3).equal(Stripes().read(3))
    assert len(pairs) == 96
    assert Captioned(Described()).caption(7) == "picture number 7"


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    for wrong in ({"patch_size": 5}, {"width": 40}):
        with pytest.raises(ValueError, match="whole patches of"):
            train_clip(Captioned(Stripes()), tmp_path, **{**SETTINGS, **wrong})
