"""The kit finds what is wrong: each component below breaks one rule, and the message names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from unimim import Tap, Target, TargetSpec, View, testing
from unimim.heads.fc import FC
from unimim.losses import L2, CrossEntropy
from unimim.masks import Random
from unimim.norms import Identity, Layer
from unimim.students.vit import ViT
from unimim.teachers.pixel import Pixel
from unimim.types import Mask
from unimim.views import Crop

TOY = dict(testing.TOY) | {"name": "bad"}
LARGE = {"name": "vit", "size": "micro", "image_size": 64, "patch_size": 8}
NUMBERS = count()


def bad(base: type[Any], promises: dict[str, Any] | None = None, **methods: Any) -> type[Any]:
    """A subclass of `base` registered as "bad" with other methods, and a Config with other properties."""
    name = f"Bad{next(NUMBERS)}"
    config: Any = create_model("Config", __base__=base.Config, name=(Literal["bad"], "bad"), __module__=__name__)
    config.__qualname__ = f"{name}.Config"  # where pickle looks it up
    for promise, value in (promises or {}).items():
        setattr(config, promise, value if callable(value) else property(lambda self, value=value: value))
    made = globals()[name] = type(name, (base,), {"Config": config, "__module__": __name__, **methods})
    return made


def after(base: type[Any], change: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """base.forward, its result changed by change(self, result)."""
    return lambda self, *args, **kwargs: change(self, base.forward(self, *args, **kwargs))


def built_with(base: type[Any], **parts: Callable[[], Any]) -> Callable[..., None]:
    """base.__init__ that also gives the module these parts."""

    def init(self: Any, *args: Any) -> None:
        base.__init__(self, *args)
        for name, make in parts.items():
            setattr(self, name, make())

    return init


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(1))


def fixed() -> nn.Parameter:
    return nn.Parameter(torch.rand(3), requires_grad=False)


def tokens(change: Callable[[Any, Tensor], Tensor], base: type[Any] = Pixel) -> Callable[..., Any]:
    return after(base, lambda self, target: Target(change(self, target.tokens)))


def counting(self: Pixel, view: View, mask: Mask | None = None) -> Target:
    self.mean.add_(0.1)
    return Pixel.forward(self, view)


def raw_image(self: Pixel, view: View, mask: Mask | None = None) -> Target:
    return Pixel.forward(self, replace(view, image=view.image.float() / 1000))


def ids(make: Callable[[Tensor], Tensor]) -> type[Any]:
    init = built_with(Pixel, spec=lambda: TargetSpec(8, discrete=True))
    return bad(Pixel, {"discrete": True}, __init__=init, forward=tokens(lambda self, x: make(x[..., 0])))


TEACHERS = {
    "these parameters require gradients": bad(
        Pixel, __init__=built_with(Pixel, extra=parameter), freeze=lambda self: None
    ),
    "answering must not change it": bad(Pixel, forward=counting),
    "same target twice": bad(Pixel, forward=tokens(lambda self, x: x + torch.rand_like(x))),
    r"tokens must be \(2, 24, 48\)": bad(Pixel, forward=tokens(lambda self, x: x[:, 1:])),
    "tokens must be finite": bad(Pixel, forward=tokens(lambda self, x: x / 0)),
    "uint8 and float": bad(Pixel, forward=raw_image),
    "rest of its batch": bad(Pixel, forward=tokens(lambda self, x: x - x.mean(0))),
    "Config says differentiable": bad(Pixel, {"differentiable": True}),
    "Config says discrete True": bad(Pixel, {"discrete": True}),
    "must keep its Config": bad(Pixel, __init__=built_with(Pixel, config=lambda: None)),
    "building it twice": bad(Pixel, {"reloads": True}, __init__=built_with(Pixel, extra=fixed)),
    "needs_fit stays True": bad(Pixel, needs_fit=True),
    "ids must be int64": ids(lambda x: x.int().clamp(0, 7)),
    r"lie in \[0, 8\)": ids(lambda x: x.long().clamp(0, 7) + 7),
    "vectors must be floating point": bad(Pixel, forward=tokens(lambda self, x: x.long())),
    "picture must be": bad(Pixel, picture=lambda self, x: x),
    "its Config must say moves": bad(Pixel, {"cacheable": True}, on_step_end=lambda self, p: self.std.mul_(2)),
    "after on_step_end these are not finite": bad(Pixel, on_step_end=lambda self, p: self.std.fill_(torch.nan)),
}
NORMS = {
    "no parameters": bad(Identity, __init__=built_with(Identity, scale=parameter)),
    "keeps the shape": bad(Identity, forward=lambda self, x: x[:, 1:]),
    "float32 stays float32": bad(Identity, forward=lambda self, x: x.double()),
    "constant tokens give values that are not finite": bad(
        Identity, forward=lambda self, x: x / x.std(-1, keepdim=True)
    ),
    "constant tokens give a gradient": bad(Identity, forward=lambda self, x: x / (x.var(-1, keepdim=True).sqrt() + 1)),
    "write into its input": bad(Identity, forward=lambda self, x: x + x.detach().add_(1)),
    "same result twice": bad(Layer, forward=lambda self, x: x + torch.rand_like(x)),
}


def fail() -> Any:
    raise ValueError("unknown")


def unmasked(self: ViT, view: View, mask: Mask | None = None, taps: Any = ()) -> Any:
    return ViT.forward(self, view, None, taps)


def leaking(self: ViT, view: View, mask: Mask | None = None, taps: Any = ()) -> Any:
    encoded = ViT.forward(self, view, mask, taps)
    return replace(encoded, prefix=encoded.prefix + 1e-6 * view.pixels().mean((1, 2, 3)).view(-1, 1, 1))


def shortened(self: ViT, view: View, mask: Mask | None = None, taps: Any = ()) -> Any:
    encoded = ViT.forward(self, view, mask, taps)
    return encoded if mask is None else replace(encoded, tokens=encoded.tokens[:, 1:])


def shifted(self: ViT, view: View, mask: Mask | None = None, taps: Any = ()) -> Any:
    encoded = ViT.forward(self, view, mask, taps)
    return encoded if mask is None else replace(encoded, tokens=encoded.tokens + 1)


def half_known(self: ViT, name: str) -> int:
    return fail() if name == "norm.bias" else ViT.layer_of(self, name)


def on_encoded(**change: Any) -> Callable[..., Any]:
    return after(ViT, lambda self, encoded: replace(encoded, **{k: f(encoded) for k, f in change.items()}))


STUDENTS = {
    "in eval mode the same view": bad(ViT, forward=on_encoded(tokens=lambda e: e.tokens + torch.rand(()))),
    "hidden pixels must not reach": bad(ViT, forward=unmasked),
    "changed it by": bad(ViT, forward=leaking),
    "hides nothing must change nothing": bad(ViT, forward=shifted),
    "visible pixels do not reach": bad(ViT, forward=on_encoded(tokens=lambda e: torch.zeros_like(e.tokens))),
    "of a masked image must be": bad(ViT, forward=shortened),
    "index must be mask.visible_index": bad(ViT, {"dense": False}, forward=on_encoded(index=lambda e: None)),
    "index must be mask.hidden_index": bad(ViT, {"dense": False, "answers": "hidden"}),
    "index must be None": bad(ViT, forward=on_encoded(index=lambda e: torch.zeros(2, 24, dtype=torch.int64))),
    "promises a prefix": bad(ViT, forward=on_encoded(prefix=lambda e: e.prefix[:, 0])),
    "grid must be": bad(ViT, forward=on_encoded(grid=lambda e: (6, 4))),
    "hand on box": bad(ViT, forward=on_encoded(box=lambda e: None)),
    "promises these taps": bad(ViT, {"num_blocks": 3}),
    "a tap holds prefix and tokens": bad(
        ViT, forward=on_encoded(taps=lambda e: {tap: x[:, 1:] for tap, x in e.taps.items()})
    ),
    "get no gradient": bad(ViT, __init__=built_with(ViT, extra=parameter)),
    "layer_of answers for some": bad(ViT, layer_of=half_known),
    "layer_of must lie in": bad(ViT, layer_of=lambda self, name: 9),
    "differs from its geometry": bad(ViT, __init__=built_with(ViT, dim=lambda: 8)),
}


def slots(self: FC, encoded: Any, query: Any) -> Tensor:
    pred = FC.forward(self, encoded, query)
    return pred + torch.arange(pred.shape[1]).view(1, -1, 1)


HEADS = {
    "at hidden positions must be": bad(FC, forward=after(FC, lambda self, x: x[:, 1:])),
    "of the image": bad(FC, forward=after(FC, lambda self, x: x if x.shape[1] > 1 else x[:, 0])),
    "only reorder": bad(FC, forward=slots),
    "with include_class must be": bad(
        FC, forward=lambda self, e, q: FC.forward(self, e, replace(q, include_class=False))
    ),
    "patches' predictions stay": bad(FC, forward=after(FC, lambda self, x: x.roll(1, 1) if x.shape[1] == 13 else x)),
    "must be finite": bad(FC, forward=after(FC, lambda self, x: x.sqrt())),
    "get no gradient": bad(FC, __init__=built_with(FC, extra=parameter)),
    "but the student has 2 blocks": bad(FC, {"taps": (Tap(7),)}),
}
LOSSES = {
    "promises a value of shape": bad(L2, forward=lambda self, p, t, valid=None: L2.forward(self, p, t).mean()),
    "joint True promises": bad(L2, {"joint": True}),
    "float32 stays float32": bad(L2, forward=lambda self, p, t, valid=None: L2.forward(self, p, t).double()),
    "value and gradient must be finite": bad(L2, forward=lambda self, p, t, valid=None: L2.forward(self, p, p).sqrt()),
    "cost the same twice": bad(L2, forward=lambda self, p, t, valid=None: L2.forward(self, p, t) + torch.rand(())),
    "predictions that are not valid": bad(
        L2, forward=lambda self, p, t, valid=None: L2.forward(self, p - p.mean(1, True), t)
    ),
    "least where the prediction": bad(L2, forward=lambda self, p, t, valid=None: -L2.forward(self, p, t)),
    "it must be least": bad(CrossEntropy, forward=lambda self, p, t, valid=None: -CrossEntropy.forward(self, p, t)),
}


def sampled(change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda self, grid, rng: change(Random.sample(self, grid, rng))


def one(self: Random, grid: tuple[int, int], rng: Any) -> Any:
    return np.arange(grid[0] * grid[1])[None] == 0


def salient(self: Random, saliency: Tensor, noise: Tensor) -> tuple[Mask, ...]:
    return (Mask.from_hidden(saliency > 0.5),)


VARYING = {"num_hidden": lambda self, grid: None}
MASKS = {
    "promises 6 hidden": bad(Random, sample=sampled(lambda hidden: ~hidden)),
    "bool array": bad(Random, sample=sampled(lambda hidden: hidden.astype(int))),
    r"must draw a \(2, 24\)": bad(Random, {"num_folds": 2}),
    "from the generator": bad(
        Random, sample=lambda self, grid, rng: Random.sample(self, grid, np.random.default_rng())
    ),
    "hid every patch": bad(Random, VARYING, sample=sampled(np.ones_like)),
    "hid nothing": bad(Random, VARYING, sample=sampled(np.zeros_like)),
    "num_hidden must be exact": bad(Random, VARYING | {"reads_saliency": True}, sample=one),
    "from_saliency gave 0": bad(Random, {"reads_saliency": True}, from_saliency=lambda self, saliency, noise: ()),
    "from_saliency hid": bad(Random, {"reads_saliency": True}, from_saliency=salient),
    "workers get it pickled": bad(Random, __reduce__=lambda self: fail()),
}


def on_view(change: Callable[[View], View]) -> Callable[..., Any]:
    return lambda self, *args: {name: change(view) for name, view in Crop.sample(self, *args).items()}


def overwriting(self: Crop, image: Tensor, *args: Any) -> Any:
    return Crop.sample(self, image.zero_(), *args)


def unseeded(self: Crop, image: Tensor, rng: Any, *args: Any) -> Any:
    return Crop.sample(self, image, np.random.default_rng(), *args)


VIEWS = {
    "promises views": bad(Crop, {"names": ("left", "right")}),
    "every rendition asked for": bad(Crop, sample=on_view(lambda view: replace(view, renditions={}))),
    r"a cut must be \(1, 3, 16, 24\)": bad(Crop, sample=on_view(lambda view: replace(view, image=view.image.mT))),
    "uint8, not": bad(Crop, sample=on_view(lambda view: replace(view, image=view.image / 255))),
    "must tell its box": bad(Crop, sample=on_view(lambda view: replace(view, box=None))),
    "fractions of the image": bad(Crop, sample=on_view(lambda view: replace(view, box=view.box * 2 + 0.3))),
    "must not write": bad(Crop, sample=overwriting),
    "drawn from the generator": bad(Crop, sample=unseeded),
}
CHECKS = {
    "teachers": (testing.check_teacher, TEACHERS),
    "norms": (testing.check_norm, NORMS),
    "students": (testing.check_student, STUDENTS),
    "heads": (testing.check_head, HEADS),
    "losses": (testing.check_loss, LOSSES),
    "masks": (testing.check_mask, MASKS),
    "views": (testing.check_views, VIEWS),
}
CASES = [(kind, rule) for kind, (_, broken) in CHECKS.items() for rule in broken]


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_a_broken_component_is_told_which_rule_it_breaks(kind: str, rule: str, register: Any) -> None:
    check, broken = CHECKS[kind]
    register(**{kind: {"bad": broken[rule]}})
    named = {"masks": {"name": "bad", "ratio": 0.25}, "students": TOY}.get(kind, "bad")
    with pytest.raises(AssertionError, match=rule):
        check(named)


def test_an_unregistered_component_is_named_with_what_is_registered() -> None:
    with pytest.raises(AssertionError, match="unknown teacher 'pixels', did you mean 'pixel'"):
        testing.check_teacher("pixels")


def test_a_config_must_be_hashable(register: Any) -> None:
    class Listed(Identity):
        class Config(Identity.Config):
            name: Literal["listed"] = "listed"
            scales: list[float] = Field(default_factory=list)

    register(norms={"listed": Listed})
    with pytest.raises(AssertionError, match="must be hashable"):
        testing.check_norm("listed")


def test_a_recipe_whose_student_leaks_is_refused(register: Any) -> None:
    register(students={"bad": STUDENTS["changed it by"]})
    with pytest.raises(AssertionError, match="hidden pixels must not reach"):
        testing.check_recipe("mae-micro", [f"student={ {**LARGE, 'name': 'bad', 'depth': 1} }"])


def test_a_recipe_with_an_untrained_parameter_is_refused(register: Any) -> None:
    register(heads={"bad": bad(FC, __init__=built_with(FC, extra=parameter))})
    with pytest.raises(AssertionError, match=r"get no gradient: \['branches.mim.head.extra'\]"):
        testing.check_recipe("data2vec-micro", ["head=bad", "student.depth=1", "teacher.layers=[0]"])


@pytest.mark.slow
def test_a_recipe_that_draws_anew_in_each_process_is_told_from_one_that_adds_up() -> None:
    """Statistics of the global batch add up; drop path does not, and stands for whatever a process keeps to itself."""
    small = ["student.depth=2", "teacher.layers=[0]", "norm=batch"]
    testing.check_processes("data2vec-micro", small)
    with pytest.raises(AssertionError, match="in 2 processes differs from that in one by"):
        testing.check_processes("data2vec-micro", [*small, "student.drop_path=0.9"])


def test_what_a_file_raises_in_one_of_several_processes_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "meeting.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "def main(folder, factor):\n"
        "    x = torch.tensor(float(factor)) * (dist.get_rank() + 1)\n"
        "    dist.all_reduce(x)\n"
        "    assert dist.get_rank() or factor != '4', 'four is refused'\n"
        "    torch.save(x, f'{folder}/{dist.get_rank()}.pt')\n"
    )
    testing.in_processes(script, tmp_path, 2)
    assert [float(torch.load(tmp_path / f"{rank}.pt")) for rank in range(2)] == [6, 6]
    with pytest.raises(RuntimeError, match=r"one of 2 processes failed: (.|\n)*four is refused"):
        testing.in_processes(script, tmp_path, 4)
