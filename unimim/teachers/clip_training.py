"""Training a small CLIP from captioned images, so that CLIP can teach where no released weights can be had.

A word-level vocabulary over the captions stands in for CLIP's tokenizer: only the image tower becomes a teacher.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's pixel statistics of [0, 1] RGB."""


class Pairs(Protocol):
    """Images and what they show: image(i) uint8 (3, H, W), caption(i) in words."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor: ...

    def caption(self, index: int) -> str: ...


class Labelled(Protocol):
    """Images with class names: read(i) uint8 (3, H, W), label(i) an index into classes."""

    @property
    def classes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor: ...

    def label(self, index: int) -> int: ...


@dataclass(frozen=True)
class Captioned:
    """Pairs from labelled images: the source's own `caption(index)` if it has that, else the template with the class."""

    source: Labelled
    template: str = "a photo of a {}"

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Tensor:
        return self.source.read(index)

    def caption(self, index: int) -> str:
        own: Callable[[int], str] | None = getattr(self.source, "caption", None)
        return own(index) if own else self.template.format(self.source.classes[self.source.label(index)])


def contrastive_loss(image: Tensor, text: Tensor, own: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss where one caption may belong to several images of the batch, which are then no negatives of each other.

    With logits z = scale * image @ text.T: mean over images of (-log softmax_texts(z)[i, own_i] - log
    softmax_images(z)[i, own_i]) / 2. image (B, D), text (U, D), unit rows; own (B,) int64 row of each image's caption.
    Where every caption belongs to one image, this is the loss of CLIP.
    """
    logits = scale * image @ text.T
    among = [logits.log_softmax(axis).gather(1, own.unsqueeze(1)).mean() for axis in (0, 1)]
    return -(among[0] + among[1]) / 2


def train_clip(
    pairs: Pairs,
    out_dir: str | Path,
    *,
    image_size: int,
    patch_size: int,
    width: int = 128,
    layers: int = 4,
    epochs: int = 4,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train CLIP on `pairs` and save it as an open_clip folder, for `open_clip.create_model("local-dir:...")`.

    A folder that holds the outcome of the same settings and data is returned as it is. Images are kept in memory as
    uint8, 3 * image_size^2 bytes each. The image embedding is the mean over patches, because patches are what MIM uses.
    CUDA devices compute under bfloat16 autocast, others in float32: many CPUs only emulate bfloat16.

    Raises ValueError if out_dir holds anything else, or the sizes do not fit.
    """
    if image_size % patch_size or width % 32:
        problem = f"image_size {image_size} is not whole patches of {patch_size}, or width {width} not a multiple of 32"
        raise ValueError(f"train_clip: {problem}")
    captions = [pairs.caption(index) for index in range(len(pairs))]
    texts = _read_texts(captions)
    tower = {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers, "head_width": 32}
    text = {"context_length": texts.tokens.shape[1], "vocab_size": int(texts.tokens.max()) + 1, "width": 64, "heads": 2}
    model = {"embed_dim": width, "vision_cfg": {**tower, "pool_type": "avg"}, "text_cfg": {**text, "layers": 2}}
    plan = _Plan(model, epochs, batch, lr, seed)
    out, key = Path(out_dir), _fingerprint(plan, captions, pairs)
    if _is_finished(out, key):
        return out
    images = torch.stack([_fit(pairs.image(index), image_size) for index in range(len(pairs))])
    device = torch.device(device)
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        trained = _train(plan, images, texts, device, log or (lambda line: None))
    _save(trained, model, key, out)
    return out


@dataclass(frozen=True)
class _Plan:
    """What decides the outcome, beside the data. model: open_clip's configuration of it."""

    model: dict[str, Any]
    epochs: int
    batch: int
    lr: float
    seed: int


class _Texts(NamedTuple):
    """tokens (U, length) of the distinct captions, own (n,) row of each image's."""

    tokens: Tensor
    own: Tensor


def _read_texts(captions: Sequence[str]) -> _Texts:
    """0 pads; the end has the highest id, where open_clip's text tower looks for it."""
    distinct = {caption: row for row, caption in enumerate(sorted(set(captions)))}
    split = [re.findall(r"\w+", caption.lower()) for caption in distinct]
    numbers = {word: number for number, word in enumerate(sorted({word for words in split for word in words}), 1)}
    start, end = len(numbers) + 1, len(numbers) + 2
    rows = [torch.tensor([start, *(numbers[word] for word in words), end]) for words in split]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return _Texts(tokens, torch.tensor([distinct[caption] for caption in captions]))


def augment(images: Tensor) -> Tensor:
    """(B, C, S, S) -> the same, each shifted by up to S // 8 pixels a side (mirrored at the border) and flipped or not."""
    num, channels, size, _ = images.shape
    reach = size // 8
    offsets = torch.randint(2 * reach + 1, (2, num, 1))
    steps = torch.arange(size).expand(num, size)
    columns = torch.where(torch.rand(num, 1) < 0.5, steps, size - 1 - steps)
    at = [(offset + line - reach).abs() for offset, line in zip(offsets, (steps, columns), strict=True)]
    rows, columns = (torch.where(line < size, line, 2 * (size - 1) - line) for line in at)
    flat = rows.unsqueeze(2) * size + columns.unsqueeze(1)
    return images.flatten(2).gather(2, flat.view(num, 1, -1).expand(-1, channels, -1)).view_as(images)


def _train(plan: _Plan, images: Tensor, texts: _Texts, device: torch.device, log: Callable[[str], None]) -> Any:
    model: Any = import_module("open_clip").CLIP(**plan.model).to(device).train()
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (MEAN, STD))
    parameters: list[Tensor] = list(model.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == many] for many in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, plan.lr, (0.9, 0.98))
    batch = min(plan.batch, len(images))
    per_epoch = len(images) // batch
    rate = partial(_rate, total=plan.epochs * per_epoch)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.monotonic()
    for epoch in range(1, plan.epochs + 1):
        total = torch.zeros((), device=device)
        for index in torch.randperm(len(images))[: per_epoch * batch].split(batch):
            present, own = texts.own[index].unique(return_inverse=True)
            pixels = (augment(images[index]).to(device).float() / 255 - mean) / std
            with torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
                pair = model.encode_image(pixels), model.encode_text(texts.tokens[present].to(device))
            image, text = (F.normalize(side.float(), dim=-1) for side in pair)
            loss = contrastive_loss(image, text, own.to(device), model.logit_scale.exp().clamp(max=100))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        speed = epoch * per_epoch * batch / (time.monotonic() - start)
        log(f"clip epoch {epoch}/{plan.epochs}: loss {float(total) / per_epoch:.3f}, {speed:.0f} images/s")
    return model


def _rate(step: int, total: int) -> float:
    """Share of the peak rate: a linear warm-up over a tenth of the steps, under a half cosine."""
    return min(1.0, (step + 1) / (0.1 * total)) * (1 + math.cos(math.pi * step / total)) / 2


def _fit(image: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) -> (3, size, size): the shorter side resized, the middle cut out."""
    functional = import_module("torchvision.transforms.v2.functional")
    if image.shape[-2:] != (size, size):
        image = functional.center_crop(functional.resize(image, [size], antialias=True), [size, size])
    return image


def _fingerprint(plan: _Plan, captions: Sequence[str], pairs: Pairs) -> str:
    """sha256 of the plan, every caption, and some of the images."""
    digest = hashlib.sha256(json.dumps([asdict(plan), captions], sort_keys=True).encode())
    for index in range(0, len(captions), max(1, len(captions) // 16)):
        digest.update(pairs.image(index).numpy().tobytes())
    return digest.hexdigest()


def _is_finished(out: Path, key: str) -> bool:
    """True if `out` holds the outcome of `key`, False if it is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    config = out / "open_clip_config.json"
    if config.is_file() and json.loads(config.read_text()).get("unimim_key") == key:
        return True
    raise ValueError(f"{out} holds something else than this training's outcome; remove it or choose another folder")


def _save(model: Any, config: dict[str, Any], key: str, out: Path) -> None:
    """All of the folder or nothing: written beside it, then renamed."""
    parts = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        parts / "open_clip_model.safetensors",
    )
    pixels = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    described = {"model_cfg": config, "preprocess_cfg": pixels, "unimim_key": key}
    (parts / "open_clip_config.json").write_text(json.dumps(described, indent=2))
    for path in parts.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    parts.rename(out)
