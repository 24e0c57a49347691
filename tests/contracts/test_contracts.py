"""Every registered component keeps the contract of its axis, as the kit for plugin authors checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from unimim import Encoded, Query, plugins, testing
from unimim.axes import HeadConfig, StudentConfig

CHECKS: Mapping[str, Callable[..., None]] = {
    "teachers": testing.check_teacher,
    "norms": testing.check_norm,
    "students": testing.check_student,
    "heads": testing.check_head,
    "losses": testing.check_loss,
    "masks": testing.check_mask,
    "views": testing.check_views,
}
VIT = dict(testing.TOY)
DROP = VIT | {"masking": "drop", "positions": "sincos"}
BEIT = VIT | {"positions": "none", "relative_positions": "shared", "layer_scale": 0.1, "qkv_bias": "qv"}
SWIN = {"name": "swin", "image_size": (32, 64), "patch_size": 2, "dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 2)}
SWIN |= {"window": 4}
CLIP = {"name": "open_clip", "model": "<tiny_clip>"}
TIMM = {"name": "timm", "model": "test_vit", "pretrained": False}
KMEANS = {"name": "kmeans", "teacher": "pixel", "num_codes": 16, "iterations": 2}

TOYS: Mapping[str, Mapping[str, list[Any]]] = {
    "teachers": {
        "pixel": ["pixel"],
        "self": [
            "self",
            {"name": "self", "layers": [0, 1], "layer_norm": "layer"},
            {"name": "self", "layers": [1], "point": "mlp", "layer_norm": "instance", "decay": 0.5},
            {"name": "self", "head": "patches", "update": "epoch_end", "average": "compensated"},
            {"name": "self", "weights": "live", "region": "hidden"},
            {"name": "self", "weights": "live", "region": "hidden", "differentiable_target": True},
        ],
        "open_clip": [
            CLIP,
            CLIP | {"feature": "projected"},
            CLIP | {"feature": "mean", "last": 2, "layer_norm_each": True},
            CLIP | {"precision": "bfloat16"},
            CLIP | {"saliency": True, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)},
        ],
        "timm": [TIMM, TIMM | {"feature": "raw", "block": 1}, TIMM | {"model": "test_resnet", "feature": "raw"}],
        "dvae": [{"name": "dvae", "weights": None, "num_hidden": 4, "vocab_size": 32, "blocks_per_group": 1}],
        "kmeans": [KMEANS, KMEANS | {"teacher": {"name": "self", "layers": [1]}, "normalize": True}],
    },
    "norms": {
        "identity": ["identity"],
        "layer": [
            "layer",
            {"name": "layer", "unbiased": True, "eps": 1e-6},
            {"name": "layer", "unbiased": True, "eps_place": "outside"},
            {"name": "layer", "eps_place": "outside"},
        ],
        "instance": ["instance"],
        "batch": ["batch"],
        "l2": ["l2"],
        "chain": [["instance", "l2"], ["layer", {"name": "chain", "norms": ["batch", "layer"]}]],
    },
    "students": {
        "vit": [
            VIT,
            DROP,
            BEIT,
            BEIT | {"relative_positions": "per_block", "masking": "drop"},
            VIT | {"masking": "none", "class_token": False},
            VIT | {"class_token": False, "num_registers": 2, "final_norm": False, "init": "xavier"},
            VIT | {"patch_size": (8, 4), "channels": 1, "mean": [0.5], "std": [0.2]},
            VIT | {"drop_path": 0.2, "attention_dropout": 0.1},
        ],
        "swin": [SWIN, SWIN | {"masking": "drop", "init": "xavier"}, SWIN | {"masking": "none", "window": 8}],
    },
    "heads": {
        "fc": ["fc", {"name": "fc", "init": "xavier"}],
        "decoder": [{"name": "decoder", "dim": 8, "depth": 1, "num_heads": 2}],
    },
    "losses": {
        "l1": ["l1"],
        "l2": ["l2"],
        "smooth_l1": ["smooth_l1", {"name": "smooth_l1", "beta": 0.1}],
        "cosine": ["cosine"],
        "cross_entropy": ["cross_entropy"],
        "info_nce": ["info_nce", {"name": "info_nce", "negatives": "world", "temperature": 0.5}],
        "variance": ["variance"],
        "sum": [{"name": "sum", "losses": [{"loss": "l2"}, {"loss": "cosine", "weight": 0.5}]}],
    },
    "masks": {
        "none": ["none"],
        "random": ["random", {"name": "random", "ratio": 0.1}],
        "split": ["split", {"name": "split", "folds": 4, "ratio": 0.8}],
        "block": [
            {"name": "block", "ratio": 0.4, "min_block": 4},
            {"name": "block", "count": 11, "min_block": 2, "exact": True},
            {"name": "block", "ratio": 0.6, "min_block": 15, "exact": True},
        ],
    },
    "views": {
        "crop": ["crop", {"name": "crop", "scale": [0.08, 1], "jitter": 0.4}],
        "center": ["center", {"name": "center", "share": 0.9}],
        "pair": [
            {"name": "pair", "crops": "shared", "other": {"jitter": 0.8, "grey": 0.2, "blur": 0.5, "solarize": 0.2}},
            {"name": "pair", "main": {"blur": 1}, "other": {"jitter": 1, "hue": 0}},
        ],
        "multi_crop": [{"name": "multi_crop", "num_focal": 3, "focal_size": 8, "colors": {"jitter": 0.8}}],
    },
}
"""Small settings of every registered component that differ in what they compute."""
ARGUMENTS: Mapping[tuple[str, str], list[dict[str, Any]]] = {
    ("teachers", "self"): [{}, {"student": DROP}],
    ("heads", "decoder"): [{}, {"student": DROP}, {"student": VIT | {"num_registers": 1}}],
    ("losses", "variance"): [{"distance": False}],
}
"""What the checks of a component need to be told, where the defaults do not do."""


def _label(toy: Any) -> str:
    return toy if isinstance(toy, str) else toy["name"] if isinstance(toy, Mapping) else "chain"


CASES = [
    (kind, toy, arguments)
    for kind, toys in TOYS.items()
    for name, settings in toys.items()
    for toy in settings
    for arguments in ARGUMENTS.get((kind, name), [{}])
]


@pytest.mark.parametrize("kind", TOYS)
def test_every_registered_component_has_toys(kind: str) -> None:
    missing = {*plugins()[kind]} - {*TOYS[kind]}
    assert not missing, f"add small settings of {sorted(missing)} to TOYS[{kind!r}], so that their contract is checked"


@pytest.mark.parametrize(("kind", "toy", "arguments"), CASES, ids=[f"{kind}-{_label(toy)}" for kind, toy, _ in CASES])
def test_keeps_its_contract(kind: str, toy: Any, arguments: dict[str, Any], tiny_clip: Path) -> None:
    if isinstance(toy, Mapping) and toy.get("model") == "<tiny_clip>":
        toy = {**toy, "model": str(tiny_clip)}
    CHECKS[kind](toy, **arguments)


@pytest.mark.parametrize("student", [VIT, DROP], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    "head", ["fc", {"name": "decoder", "dim": 8, "depth": 0, "num_heads": 2}], ids=["fc", "decoder"]
)
def test_a_head_without_attention_answers_from_the_token_at_the_queried_position(head: Any, student: Any) -> None:
    config, pupil = TypeAdapter(HeadConfig).validate_python(head), TypeAdapter(StudentConfig).validate_python(student)
    kept = torch.tensor([[1, 4, 5, 9, 23]]) if not pupil.dense else None
    tokens = torch.randn(1, 24 if kept is None else 5, 16, requires_grad=True)
    encoded = Encoded(tokens, torch.randn(1, 1, 16), (4, 6), kept)
    asked = torch.tensor([[9, 1, 23]])
    pred = config.build(pupil.build(), 3)(encoded, Query(asked))
    for place, position in enumerate(asked[0]):
        (slope,) = torch.autograd.grad(pred[0, place].sum(), tokens, retain_graph=True)
        (row,) = slope[0].abs().sum(-1).nonzero(as_tuple=True)
        assert row.tolist() == [position if kept is None else kept[0].tolist().index(position)]
