"""Every registered recipe, made tiny, trained for twenty steps in one way of running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from tests.engine import toys
from unimim import Recipe, Sampling, load
from unimim.engine.distributed import process_group
from unimim.engine.log import Log
from unimim.engine.loop import train
from unimim.engine.run import Run
from unimim.registry import plugins
from unimim.training import build, plan_of

STEPS = 20
STUDENT = {
    "vit": ("image_size=16", "patch_size=4", "dim=16", "depth=2", "num_heads=2", "drop_path=0", "attention_dropout=0"),
    "swin": ("image_size=16", "patch_size=2", "dim=8", "depths=[2,2]", "num_heads=[1,2]", "window=4", "drop_path=0"),
}
TINY = ("batch=8", f"epochs={STEPS / 3}", "precision=float32")
POLICY = ("optimization.lr=1e-3", "optimization.lr_per_256=false", "optimization.warmup_epochs=1", toys.SMOOTH)
TEACHER = {
    "open_clip": ("teacher.model=local-dir:CLIP", "teacher.pretrained=null"),
    "dvae": ("teacher={name: kmeans, teacher: pixel, num_codes: 8}",),
    "kmeans": ("teacher.num_codes=8",),
    "timm": ("teacher.model=test_vit", "teacher.pretrained=false"),
    "self": ("teacher.layers=[0, 1]",),
}


def names() -> list[str]:
    return sorted(name for name, entry in plugins()["recipes"].entries.items() if entry.plugin == "unimim")


def distinct(clip: Path) -> dict[str, Recipe]:
    """The tiny recipes, each once: many sizes of a method are the same recipe when they are made tiny."""
    recipes = {name: tiny(name, clip) for name in names()}
    first = {recipe.hash: name for name, recipe in reversed(recipes.items())}
    return {name: recipes[name] for name in sorted(first.values())}


def tiny(name: str, clip: Path) -> Recipe:
    """The recipe with its own axes, mask, reduction and policy, at a size that trains in a second."""
    term, mask = load(name).terms["mim"], load(name).masks["main"]
    more = [change.replace("CLIP", str(clip)) for change in TEACHER.get(term.teacher.name, ())]
    if term.head.name == "decoder":
        more += toys.DECODER
    if mask.name == "block":
        more += ["mask.count=null", "mask.ratio=0.4", "mask.min_block=4"]
    student = (f"student.{change}" for change in STUDENT[load(name).student.name])
    return load(name, [*student, *TINY, *POLICY, *more])


def main(out: Path, clip: Path, **options: Any) -> None:
    """Losses of every recipe to out/NAME/metrics.jsonl, with the Run `options`.

    Blocks that are to be compiled must be: what torch.compile gives up on would run as it is, and so compare well.
    """
    compiled = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, suppress_errors=False)
    with compiled, process_group(Run(out=out, device="cpu", **options)) as device:
        for name, recipe in distinct(clip).items():
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            objective = build(recipe)
            sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
            plan = plan_of(recipe, toys.Noise())
            run = toys.run(folder, **options)
            with Log(folder, name, plan.total_steps, plan.batch, quiet=True) as log:
                train(objective, toys.Noise(), sampling, plan, run, device, log, {})
