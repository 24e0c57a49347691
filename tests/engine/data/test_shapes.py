"""Shapes: pure, balanced, free of shortcuts, and neither trivial nor impossible."""

from __future__ import annotations

import hashlib
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unimim.engine.data import Shapes
from unimim.engine.data.shapes import SHAPES, SPLITS, TEXTURE_OF_CLASS, TEXTURES, Split

HASH_BACKWARDS = """
import hashlib
from unimim.engine.data import Shapes
for split in {splits!r}:
    source = Shapes(split, 40)
    images = {{index: source.read(index) for index in reversed(range(40))}}
    print(hashlib.sha256(b"".join(images[index].numpy().tobytes() for index in range(40))).hexdigest())
"""


def images(source: Shapes) -> Tensor:
    return torch.stack([source.read(index) for index in range(len(source))])


def test_an_image_is_a_pure_function_of_its_address() -> None:
    code = HASH_BACKWARDS.format(splits=SPLITS)
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    here = [hashlib.sha256(images(Shapes(split, 40)).numpy().tobytes()).hexdigest() for split in SPLITS]
    assert elsewhere == here


@pytest.mark.parametrize("split", SPLITS)
def test_a_longer_set_begins_with_the_shorter_and_a_copy_equals(split: Split) -> None:
    short, long = Shapes(split, 3), Shapes(split, 1000)
    copy = pickle.loads(pickle.dumps(long))
    for index in range(3):
        assert torch.equal(short.read(index), long.read(index))
        assert torch.equal(copy.read(index), long.read(index))
    assert copy.fingerprint() == long.fingerprint() != short.fingerprint()


def test_images_splits_and_seeds_differ() -> None:
    sets = [images(Shapes(split, 30, seed=seed)) for split in SPLITS for seed in (0, 1)]
    assert len({image.numpy().tobytes() for image in torch.cat(sets)}) == len(sets) * 30
    prints = {Shapes(split, 30, size, seed).fingerprint() for split in SPLITS for size in (32, 64) for seed in (0, 1)}
    assert len(prints) == len(SPLITS) * 4


# Means of red, green and blue over the left and right halves of ten images. With other numbers here, every result on
# shapes is another: raise shapes._VERSION with them.
PINNED: dict[Split, list[list[float]]] = {
    "train": [[106.94, 106.05], [112.27, 112.85], [119.62, 121.47]],
    "val": [[125.19, 109.79], [138.88, 118.8], [124.9, 107.46]],
    "sketch": [[203.97, 199.47], [195.79, 191.39], [180.97, 176.93]],
    "rendition": [[117.17, 116.6], [129.85, 123.9], [120.18, 117.8]],
    "cue-conflict": [[129.2, 114.01], [143.52, 128.97], [135.42, 119.94]],
}


@pytest.mark.parametrize("split", SPLITS)
def test_drawing_has_not_changed(split: Split) -> None:
    halves = images(Shapes(split, 10)).float().unflatten(3, (2, 32)).mean((0, 2, 4))
    torch.testing.assert_close(halves, torch.tensor(PINNED[split]), atol=0.02, rtol=0)


def test_texture_is_independent_of_the_class() -> None:
    source = Shapes(length=5000)
    counts = np.zeros((10, 10), int)
    for index in range(5000):
        counts[source.label(index), source.texture(index)] += 1
    assert (counts.sum(1) == 500).all()
    chi_square = ((counts - 50) ** 2 / 50).sum()
    assert chi_square < 126  # 90 = 10 x 9 degrees of freedom (the row sums are given): the 99.3 % quantile


def test_neither_colour_nor_size_tells_the_class() -> None:
    source = Shapes(length=1000)
    light = np.zeros((10, 100))
    area = np.zeros((10, 100))
    for index in range(1000):
        light[source.label(index), index // 10] = source.read(index).float().mean()
        area[source.label(index), index // 10] = (source.mask(index) > 0).float().mean()
    assert np.ptp(light.mean(1)) < 0.5 * light.std()
    assert np.ptp(area.mean(1)) < 0.25 * area.mean()


def test_cue_conflict_textures_stand_for_another_class() -> None:
    assert sorted(TEXTURE_OF_CLASS) == list(range(len(TEXTURES)))
    source = Shapes("cue-conflict", 2000)
    pairs = {(source.label(index), source.texture(index)) for index in range(2000)}
    assert pairs == {(label, other) for label in range(10) for other in range(10) if other != TEXTURE_OF_CLASS[label]}


@pytest.mark.parametrize("split", SPLITS)
def test_masks_and_captions_name_the_figure(split: Split) -> None:
    source = Shapes(split, 60)
    for index in range(60):
        mask, label = source.mask(index), source.label(index)
        assert mask.dtype == torch.uint8
        assert mask.shape == (64, 64)
        assert set(mask.unique().tolist()) == {0, 1 + label}
        assert 0.05 < (mask > 0).float().mean() < 0.5
        assert source.caption(index) == f"a {TEXTURES[source.texture(index)]} {SHAPES[label]}"


def test_masks_lie_on_the_figure() -> None:
    source = Shapes("sketch", 60)
    for index in range(60):
        inside = source.mask(index) > 0
        image = source.read(index).float().mean(0)
        assert image[inside].mean() < image[~inside].mean() - 20  # pencil on paper


def test_size_changes_the_resolution_and_nothing_else() -> None:
    large, small = images(Shapes(length=20, size=128)).float(), images(Shapes(length=20, size=64)).float()
    shrunk = nn.functional.avg_pool2d(large, 2)
    assert (shrunk - small).abs().mean() < 2.5  # of 255
    assert Shapes(size=30).read(5).shape == (3, 30, 30)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no split 'dusk': choose one of train, val, sketch, rendition, cue-conflict"):
        Shapes("dusk")  # type: ignore[arg-type]
    for wrong in ({"length": 0}, {"size": 8}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            Shapes(**wrong)  # type: ignore[arg-type]
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"image {index} of 5 in shapes/train"):
            Shapes(length=5).read(index)


def linear_accuracy(x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> float:
    """Best over five strengths of ridge regression on pixels, chosen on the validation images in its favour."""
    x, x_val = x.flatten(1) - x.flatten(1).mean(0), x_val.flatten(1) - x.flatten(1).mean(0)
    values, vectors = torch.linalg.eigh(x @ x.T)
    target = vectors.T @ (nn.functional.one_hot(y, 10).float() - 0.1)
    seen = x_val @ x.T @ vectors
    scores = [seen @ (target / (values + strength)[:, None]) for strength in (1e2, 1e3, 1e4, 1e5, 1e6)]
    return max(float((score.argmax(1) == y_val).float().mean()) for score in scores)


class TinyViT(nn.Module):
    """Patches of 16 pixels, four blocks, 96 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * 16 * 16, 96)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, 96))
        block = nn.TransformerEncoderLayer(96, 4, 384, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 16, stride=16).transpose(1, 2)
        logits: Tensor = self.head(self.blocks(self.patch(patches) + self.position).mean(1))
        return logits


def vit_accuracy(x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor, epochs: int = 6, batch: int = 64) -> float:
    model = TinyViT()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    total = epochs * (len(x) // batch)
    for step in range(total):
        if step % (len(x) // batch) == 0:
            chunks = torch.randperm(len(x)).split(batch)
        warmup, decay = min(1, (step + 1) / 200), 0.5 * (1 + math.cos(math.pi * step / total))
        optimizer.param_groups[0]["lr"] = 1.5e-3 * warmup * decay
        chosen = chunks[step % (len(x) // batch)]
        loss = nn.functional.cross_entropy(model(2 * x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return float((model(2 * x_val).argmax(1) == y_val).float().mean())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_linear_model_fails_where_a_small_vit_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    x, x_val = images(Shapes("train", 12_000)) / 127.5 - 1, images(Shapes("val", 2_000)) / 127.5 - 1
    y, y_val = torch.arange(12_000) % 10, torch.arange(2_000) % 10
    linear = linear_accuracy(
        x[:3_000], y[:3_000], x_val, y_val
    )  # as much as with 12,000 images, in a tenth of the time
    vit = vit_accuracy(x, y, x_val, y_val)
    with capsys.disabled():
        print(f"\nshapes, accuracy of 10 classes: linear on pixels {linear:.1%}, tiny ViT {vit:.1%}")
    assert linear < 0.4
    assert vit > 0.8
