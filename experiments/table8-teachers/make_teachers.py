"""Small teachers that unimim does not train: a supervised ResNet, SimCLR, DINO, and SLIP (CLIP and SimCLR on one tower).

python make_teachers.py simclr --data shapes:train=4000,val=1000 --epochs 10 --out DIR
timm.create_model("local-dir:DIR", pretrained=True) loads what it writes.

The ViT has the size of the tower of `unimim teachers train-clip`. Crops are drawn at addresses (seed, epoch, index, policy): runs
with the same seed see the same pixels. What is smaller than in the papers is said where it is.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import build_sincos2d_pos_embed
from timm.models import save_for_hf
from torch import Tensor, nn

from unimim.address import rng
from unimim.axes import Views
from unimim.engine.data.sources import ImageSource, in_memory, open_source
from unimim.teachers.clip_training import Captioned, contrastive_loss
from unimim.views import Colors, Crop, MultiCrop

SIZE, WIDTH = 64, 128
VIT: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": 16,
    "embed_dim": WIDTH,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 0,
}
VIT |= {"global_pool": "avg", "class_token": False, "fc_norm": False}  # patches are what teaches
COLORS = Colors(jitter=0.8, hue=0, grey=0.2)
PAIR = MultiCrop.Config(num_focal=0, scale=(0.3, 1.0), colors=COLORS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Teacher(nn.Module, ABC):
    """arch, arguments: what timm builds as `tower`.  policies: the crops of an image, in the order that `loss` takes them."""

    arch: str = "vit_tiny_patch16_224"
    arguments: Mapping[str, Any] = VIT
    policies: tuple[Views.Config, ...] = (PAIR,)

    def __init__(self, source: ImageSource, **more: Any) -> None:
        super().__init__()
        self.tower: Any = timm.create_model(self.arch, **self.arguments, **more)
        if isinstance(getattr(self.tower, "pos_embed", None), nn.Parameter):  # as MoCo v3: few steps suffice so
            self.tower.init_weights("moco")
            grid = build_sincos2d_pos_embed(list(self.tower.patch_embed.grid_size), WIDTH)
            self.tower.pos_embed = nn.Parameter(grid.unsqueeze(0), requires_grad=False)

    @abstractmethod
    def loss(self, crops: Sequence[Tensor], index: Tensor) -> Tensor:
        """crops: (B, 3, H, W) each, normalized.  index (B,): which images they are of."""

    def after_step(self, fraction: float) -> None:
        """fraction: of the training that is done."""

    def trained(self) -> Any:
        return self.tower


class ResNet(Teacher):
    """Cross-entropy of the classes. A thin ResNet-10 whose last stage is dilated to stride 16: at the size it was trained at, it
    has a vector under each patch of 16 pixels, where the paper's ResNet-50 has to read larger images."""

    arch, policies = "resnet10t", (Crop.Config(),)
    arguments = MappingProxyType({"channels": (32, 64, 128, 256), "output_stride": 16})

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, num_classes=len(source.classes))
        self.labels = torch.tensor([source.label(index) for index in range(len(source))])

    def loss(self, crops: Sequence[Tensor], index: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = self.tower(crops[0].contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), self.labels[index].to(DEVICE), label_smoothing=0.1)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths[:-1]):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class SimCLR(Teacher):
    """NT-Xent of two crops at temperature 0.1: which of 2B - 1 others is of the same image? The batch is a small one."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source)
        self.head = mlp(WIDTH, 512, 128)

    def loss(self, crops: Sequence[Tensor], index: Tensor) -> Tensor:
        z = F.normalize(self.head(self.tower(torch.cat([*crops[:2]]))), dim=1)
        logits = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


class SLIP(SimCLR):
    """SimCLR on two crops plus CLIP on a third, of equal weight. A bag of the caption's words stands in for the text tower."""

    policies = (PAIR, Crop.Config(scale=(0.5, 1.0)))

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source)
        pairs = Captioned(source)
        captions = [pairs.caption(index) for index in range(len(source))]
        distinct = {caption: row for row, caption in enumerate(sorted(set(captions)))}
        split = [re.findall(r"\w+", caption.lower()) for caption in distinct]
        ids = {word: number for number, word in enumerate(sorted({word for words in split for word in words}), 1)}
        rows = [torch.tensor([ids[word] for word in words]) for words in split]
        self.texts = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.own = torch.tensor([distinct[caption] for caption in captions])
        self.words = nn.EmbeddingBag(len(ids) + 1, WIDTH, mode="mean", padding_idx=0)
        self.text, self.image = mlp(WIDTH, 256, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def loss(self, crops: Sequence[Tensor], index: Tensor) -> Tensor:
        present, own = self.own[index].unique(return_inverse=True)
        text = F.normalize(self.text(self.words(self.texts[present].to(DEVICE))), dim=1)
        image = F.normalize(self.image(self.tower(crops[2])), dim=1)
        clip = contrastive_loss(image, text, own.to(DEVICE), self.scale.exp().clamp(max=100))
        return super().loss(crops, index) + clip


class DINO(Teacher):
    """Every crop is to give the prototypes that a momentum copy gives another, large crop; the copy's answers are centred and
    sharpened. 512 prototypes and two small crops, where the paper has 65536 and up to ten."""

    policies = (MultiCrop.Config(num_focal=2, focal_size=32, scale=(0.4, 1.0), focal_scale=(0.1, 0.4), colors=COLORS),)
    center: Tensor

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, dynamic_img_size=True)
        last = nn.utils.parametrizations.weight_norm(nn.Linear(64, 512, bias=False))
        last.parametrizations.weight.original0.data.fill_(1)
        last.parametrizations.weight.original0.requires_grad_(False)
        self.head, self.last = mlp(WIDTH, 512, 64), last
        self.copy = copy.deepcopy(nn.ModuleList([self.tower, self.head, self.last])).requires_grad_(False)
        self.register_buffer("center", torch.zeros(512))

    def loss(self, crops: Sequence[Tensor], index: Tensor) -> Tensor:
        tower, head, last = self.copy
        with torch.no_grad():
            raw = last(F.normalize(head(tower(torch.cat([*crops[:2]]))), dim=1))
            wanted = ((raw - self.center) / 0.04).softmax(1).chunk(2)
            self.center.lerp_(raw.mean(0), 0.1)
        large, small = self.tower(torch.cat([*crops[:2]])), self.tower(torch.cat([*crops[2:]]))
        logits = self.last(F.normalize(self.head(torch.cat([large, small])), dim=1)) / 0.1
        answers = logits.log_softmax(1).chunk(len(crops))
        pairs = [(w, a) for i, w in enumerate(wanted) for j, a in enumerate(answers) if i != j]
        return torch.stack([-(w * a).sum(1).mean() for w, a in pairs]).mean()

    def after_step(self, fraction: float) -> None:
        momentum = 1 - 0.01 * (1 + math.cos(math.pi * fraction)) / 2
        own = (*self.tower.parameters(), *self.head.parameters(), *self.last.parameters())
        for slow, fast in zip(self.copy.parameters(), own, strict=True):
            slow.data.lerp_(fast.data, 1 - momentum)

    def trained(self) -> Any:
        return self.copy[0]


METHODS = {"resnet": ResNet, "simclr": SimCLR, "dino": DINO, "slip": SLIP}


def batches(teacher: Teacher, source: ImageSource, batch: int, seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
    """Crops (B, 3, H, W) of every policy, normalized, and the images' numbers; a last part of a batch is left out."""
    policies = [config.build() for config in teacher.policies]
    mean, std = (torch.tensor(v, device=DEVICE).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    order = torch.from_numpy(rng(seed, epoch).permutation(len(source)))
    for index in order[: len(source) // batch * batch].split(batch):
        samples = []
        for number in index.tolist():
            image, found = source.read(number), []
            for part, policy in enumerate(policies):
                draws = rng(seed, epoch, number, part + 1)
                found += [view.image for view in policy.sample(image, draws, (SIZE, SIZE), ()).values()]
            samples.append(found)
        yield [(torch.cat(crops).to(DEVICE).float() / 255 - mean) / std for crops in zip(*samples, strict=True)], index


def train(teacher: Teacher, source: ImageSource, epochs: int, batch: int, lr: float, seed: int) -> None:
    """AdamW under a half cosine that a tenth of the steps warm up for."""
    batch, learned = min(batch, len(source)), [p for p in teacher.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learned if (p.ndim > 1) == many], "weight_decay": 0.05 * many} for many in (0, 1)]
    optimizer, total = torch.optim.AdamW(groups, lr, (0.9, 0.98)), epochs * (len(source) // batch)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (0.1 * total)) * (1 + math.cos(math.pi * step / total)) / 2

    schedule, start, step = torch.optim.lr_scheduler.LambdaLR(optimizer, rate), time.monotonic(), 0
    for epoch in range(epochs):
        losses = []
        for crops, index in batches(teacher, source, batch, seed, epoch):
            loss = teacher.loss(crops, index)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 3.0)
            optimizer.step()
            schedule.step()
            step += 1
            teacher.after_step(step / total)
            losses.append(loss.item())
        mean, seconds = sum(losses) / len(losses), time.monotonic() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {mean:.3f}, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    for name, default in {"--epochs": 10, "--batch": 64, "--seed": 0}.items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    source = in_memory(open_source(options.data, "train"))
    teacher = METHODS[options.method](source).to(DEVICE)
    train(teacher, source, options.epochs, options.batch, options.lr, options.seed)
    pixels = {"input_size": (3, SIZE, SIZE), "crop_pct": 1.0, "interpolation": "bicubic"}
    pixels |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    arguments = {"model_args": dict(teacher.arguments), "model_config": {"pretrained_cfg": pixels}}
    save_for_hf(teacher.trained().cpu().float(), str(options.out), safe_serialization=True, **arguments)
    print(f'timm.create_model("local-dir:{options.out}", pretrained=True)')


if __name__ == "__main__":
    main()
