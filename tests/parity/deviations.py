"""Measure the deviations that docs/numerics.md lists: python tests/parity/deviations.py [folder of photographs]."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import test_beit
import test_data2vec
import test_mae
import test_simmim
import torch
from conftest import FAMILIES, FOLDER, Golden
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from unimim import Batch, Mask, Objective, Progress, View, load
from unimim.address import rng
from unimim.layers.positions import relative_index
from unimim.masks import Block
from unimim.views import jitter, resize

PREPARE: Mapping[str, Callable[[Golden], Any]] = {
    "mae": test_mae.imported,
    "beit": test_beit.imported,
    "data2vec": test_data2vec.imported,
}


def cases() -> Iterator[tuple[str, Golden, Any, Any, Any]]:
    """(name, file, what was imported, its objective, its batch) of every stored training step."""
    for path in sorted(FOLDER.glob("*.npz")):
        for family, belongs in FAMILIES.items():
            if family in PREPARE and belongs(path.stem):
                golden = Golden(path)
                if family == "beit":
                    found, objective, batch = test_beit.prepared(golden)
                else:
                    found, batch = PREPARE[family](golden), golden.batch()
                    objective = found.objective()
                yield path.stem, golden, found, objective, batch


def largest(x: Tensor, y: Tensor) -> float:
    return float((x.detach().double() - y.double()).abs().max())


def gradients(objective: Any, batch: Any, precision: torch.dtype | None) -> tuple[float, Tensor]:
    """The loss, and all gradients in one vector."""
    objective.zero_grad()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        loss = objective(batch)["loss"]
    (loss * (2**12 if precision == torch.float16 else 1)).backward()  # against underflow, as the official scaler does
    return loss.item(), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


def parity() -> None:
    for name, golden, found, objective, batch in cases():
        (step,) = objective.predictions(batch)["mim"]
        real = torch.ones(step.target.shape[:2], dtype=torch.bool) if step.query.valid is None else step.query.valid
        loss, _ = gradients(objective, batch, None)
        ours = dict(objective.named_parameters())
        names = {official: own for own, official in found.loaded.items()}
        worst = max(
            largest(ours[names[key]].grad, stored) / float(stored.abs().max())
            for key, stored in golden.under("grad/").items()
        )
        off = [largest(step.target[real], golden["target"]), largest(step.preds[0][real], golden["pred"]), worst]
        relative = abs(loss / golden["loss"].item() - 1)
        print(
            f"parity {name}: loss {loss:.6f} off by {relative:.1e} of itself; targets, predictions and gradients "
            f"(by their largest entry) by {', '.join(f'{x:.1e}' for x in off)}"
        )


def simmim() -> None:
    for path in sorted(FOLDER.glob("simmim*.npz")):
        golden: Any = Golden(path)
        found, batch = test_simmim.imported(golden), test_simmim.batch(golden)
        objective: Any = found.objective()
        loss, _ = gradients(objective, batch, None)
        ours = {
            official: parameter.grad
            for name, parameter in objective.named_parameters()
            if (official := found.loaded.get(name))
        }
        stored = test_simmim.importer(golden).adapt(golden.under("grad/"))
        worst = max(largest(ours[key], value) / float(value.abs().max()) for key, value in stored.items())
        tokens = objective.student(batch.views["main"], batch.masks["main"][0]).tokens
        off = [
            largest(tokens.mT.reshape(golden["encoded"].shape), golden["encoded"]),
            test_simmim.reconstruction(golden),
            worst,
        ]
        pixels = float(golden["pixel_mask"].sum())
        print(
            f"parity {path.stem}: loss {loss:.6f} off by {abs(loss / golden['loss'].item() - 1):.1e} of itself; encoded tokens, "
            f"predictions and gradients by {', '.join(f'{x:.1e}' for x in off)}; denominator {1 - pixels / (pixels + 1e-5):.1e}"
        )


def base() -> tuple[str, Any, Batch]:
    """MAE with a ViT-B on noise images, start values."""
    torch.manual_seed(0)
    objective = Objective(load("mae"))
    hidden = torch.from_numpy(
        np.concatenate([objective.recipe.masks["main"].build().sample((14, 14), rng(i)) for i in range(4)])
    )
    views = {"main": View(torch.rand(4, 3, 224, 224))}
    return "mae with ViT-B", objective, Batch(views, {"main": (Mask.from_hidden(hidden),)}, torch.arange(4))


def precision() -> None:
    for name, objective, batch in [*((name, objective, batch) for name, _, _, objective, batch in cases()), base()]:
        loss, exact = gradients(objective, batch, None)
        for dtype in (torch.bfloat16, torch.float16):
            rough, gradient = gradients(objective, batch, dtype)
            cosine = float(torch.nn.functional.cosine_similarity(exact.double(), gradient.double(), 0))
            print(
                f"precision {name} {dtype}: loss relative {abs(rough / loss - 1):.1e}, 1 - cosine of gradients {1 - cosine:.1e}"
            )


def momentum() -> None:
    for name, golden, found, objective, batch in cases():
        if not name.startswith("data2vec"):
            continue
        teacher, view = objective.teachers["mim"], batch.views["main"]
        exact = teacher(view).tokens
        with torch.autocast("cpu", torch.bfloat16):
            rough = teacher(view).tokens
        relative = float((exact - rough).square().mean().sqrt() / exact.std())
        objective.on_step_end(Progress(0, 1, 1))
        names = {official: own for own, official in found.loaded.items()}
        after = objective.state_dict()
        worst = max(
            largest(after[names[f"model_ema.{key}"]], value) for key, value in golden.under("teacher_after/").items()
        )
        print(
            f"momentum {name}: update off by {worst:.1e}; target of a bfloat16 teacher off by {relative:.1e} of its deviation"
        )
    index = relative_index((14, 14), 1)
    for decay in (0.999, 0.9998, 0.9999, 0.99996):
        averaged = index.clone()
        averaged.copy_(decay * averaged + (1.0 - decay) * index)  # timm 0.3.2, ModelEmaV2
        wrong = averaged != index
        print(
            f"momentum over the integer index, decay {decay}: {float(wrong.float().mean()):.1%} of entries change, "
            f"{float(wrong[0].float().mean()):.1%} of the class token's row"
        )


def stalling(steps: int = 200_000) -> None:
    """What is left of the gap between a float32 momentum copy and weights that stand still, and of one in exact numbers."""
    gaps = torch.tensor([[0.003], [0.03], [0.3]], dtype=torch.float64)
    start = 0.02 * torch.randn(3, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    live, first = (start * (1 + gaps)).float(), start.float()
    whole = (live - first).abs().sum(1)
    for decay in (0.9999, 0.99999):
        official, ours, kept, lost = first.clone(), first.clone(), first.clone(), torch.zeros_like(first)
        for _ in range(steps):
            official.copy_(decay * official + (1.0 - decay) * live)  # timm 0.3.4, ModelEma
            torch._foreach_lerp_([ours], [live], 1 - decay)
            exact = torch.lerp(kept.double() + lost, live.double(), 1 - decay)  # average: compensated
            kept.copy_(exact)
            lost.copy_(exact - kept)
        for number, gap in enumerate(gaps.flatten().tolist()):
            left = [float((live - copy).abs().sum(1)[number] / whole[number]) for copy in (official, ours, kept)]
            print(
                f"momentum {decay}, {steps} steps, a gap of {gap:.1%} of the weights: official form leaves {left[0]:.1%}, "
                f"ours {left[1]:.1%}, compensated {left[2]:.1%}, exact numbers {decay**steps:.1%}"
            )


def order() -> None:
    for name, golden, _, objective, batch in cases():
        if not name.startswith("mae"):
            continue
        view, (mask,) = batch.views["main"], batch.masks["main"]
        encoded = objective.student(view, mask)
        tokens = torch.cat([encoded.prefix, encoded.tokens], 1)
        print(
            f"raster order {name}: encoded tokens off by {largest(tokens, test_mae.raster(golden, golden['encoded'])):.1e}"
        )
        (step,) = objective.predictions(batch)["mim"]
        everywhere = golden["pred_all"][golden["mask"]]
        print(
            f"hidden positions only {name}: predictions off by {largest(step.preds[0].flatten(0, 1), everywhere):.1e}"
        )


def means(processes: int = 16, images: int = 128, steps: int = 20) -> None:
    """How far a process's weight of one token is from its weight in the global mean: count of the process / mean count."""
    for count in (75, 120):
        sampler, generator = Block.Config(count=count).build(), rng(0)
        draws = [sampler.sample((14, 14), generator).sum() for _ in range(processes * images * steps)]
        counts = np.array(draws).reshape(steps, processes, images).sum(2)
        weight = counts / counts.mean(1, keepdims=True) - 1
        spread = f"deviation {weight.std():.2%}, largest {np.abs(weight).max():.2%}"
        print(f"means, {count} of 196 hidden, {processes} x {images}: {spread}")


def pixels(folder: Path) -> None:
    torch.manual_seed(0)
    resized, jittered, number = [], [], 0
    for number, path in enumerate(sorted(folder.iterdir()), 1):
        image = tv.pil_to_tensor(Image.open(path).convert("RGB"))
        top, left, height, width = RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
        cut = image[:, top : top + height, left : left + width]
        ours = resize(cut, (224, 224), "bicubic").int()
        theirs = tv.pil_to_tensor(tv.to_pil_image(cut).resize((224, 224), Image.Resampling.BICUBIC)).int()
        resized.append((ours - theirs).abs().float())
        after = resize(jitter(cut, 0.4, rng(1, number)), (224, 224), "bicubic").int()
        before = resize(
            jitter(image, 0.4, rng(1, number))[:, top : top + height, left : left + width], (224, 224), "bicubic"
        ).int()
        jittered.append((after - before).abs().float())
    for name, levels in (
        ("tensors for Pillow", torch.stack(resized)),
        ("jitter after the crop", torch.stack(jittered)),
    ):
        print(
            f"pixels, {name}, {number} photographs: mean {levels.mean():.3f} of 255 levels, largest {levels.max():.0f}"
        )


def tokenizer() -> None:
    for name, _, _, objective, _ in cases():
        if not name.startswith("beit"):
            continue
        encoder = objective.teachers["mim"].encoder
        images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        exact = encoder(images).argmax(1)
        for dtype in (torch.bfloat16, torch.float16):
            for part in encoder.blocks[:-1]:
                part.to(dtype)
            changed = (encoder(images.to(dtype)).argmax(1) != exact).float().mean()
            for part in encoder.blocks[:-1]:
                part.float()
            print(f"tokenizer {name} {dtype}: {changed:.1%} of {exact.numel()} ids change")


if __name__ == "__main__":
    torch.manual_seed(0)
    for measure in (parity, simmim, precision, momentum, stalling, order, means, tokenizer):
        measure()
    if len(sys.argv) > 1:
        pixels(Path(sys.argv[1]))
