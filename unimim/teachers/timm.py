"""Any timm model as a teacher: DINO, MAE, BEiT, supervised ViTs, ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..axes import Teacher
from ..registry import did_you_mean
from ..types import Geometry, Mask, Rendition, Target, TargetSpec, View

_LABELS = {
    "dinov3": "DINOv3",
    "dinov2": "DINOv2",
    "dino": "DINO",
    "clip": "CLIP",
    "beitv2": "BEiT v2",
    "beit": "BEiT",
    ".mae": "MAE",
    "deit": "DeiT",
    "resnet": "ResNet",
}
"""Table 1's word for the first of these that the model's name contains."""


class Timm(Teacher):
    """T(I) = the feature map of a frozen timm model, one vector under each token of the student.

    The model reads the crop at the student's grid times its own stride (14x14 tokens: 224 px for a ViT/16, 448 px for a
    ResNet), with its own mean, std and interpolation. timm resamples positions once: bicubic, antialiased, to that grid
    size. Prefix tokens are dropped; the class token, where there is one, is the target of the image as a whole.
    """

    class Config(Teacher.Config):
        """model: a timm name, with its tag ("vit_base_patch16_224.dino"), "hf-hub:owner/name" or "local-dir:folder".
        checkpoint: a file of weights for it (.safetensors, or .pth read without running code), instead of `pretrained`.
        Every weight of the model must be in it; classifiers and decoders beside them are ignored.
        feature: "normed", after the model's final norm; "raw", as the block leaves it; or "mean" of the `last` raw
        blocks. block: which one, 0-based, negative from the end; in a ResNet, the stem is 0 and the stages are 1 to 4.
        layer_norm_each: a parameter-free layer norm of each block before their mean.
        precision: of weights and computation, outside autocast. Tokens come back as float32.
        """

        name: Literal["timm"] = "timm"
        model: str
        pretrained: bool = True
        checkpoint: str | None = None
        feature: Literal["normed", "raw", "mean"] = "normed"
        block: int = -1
        last: int = Field(1, ge=1, le=1024)
        layer_norm_each: bool = False
        precision: Literal["float32", "bfloat16"] = "float32"

        @model_validator(mode="after")
        def _mean_only(self) -> Timm.Config:
            if self.feature != "mean" and (self.last > 1 or self.layer_norm_each):
                raise ValueError(f"last and layer_norm_each belong to feature: mean, not {self.feature}")
            if self.feature == "mean" and self.block != -1:
                raise ValueError("feature: mean reads the last blocks; it has no block")
            return self

        @property
        def reloads(self) -> bool:
            return self.pretrained or self.checkpoint is not None

        @property
        def label(self) -> str:
            return next((label for part, label in _LABELS.items() if part in self.model), self.model)

    mean: Tensor
    std: Tensor
    model: Any

    def __init__(self, config: Timm.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        _check_name(config)
        model = _create(config, pretrained=False)
        self.blocks, stride, dim = _plan(model, config, geometry)
        if config.checkpoint is not None:
            _load(model, config.checkpoint)
        elif config.pretrained:
            model = _create(config, pretrained=True)
        size = geometry.grid[0] * stride, geometry.grid[1] * stride
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
        self.model = model.to(getattr(torch, config.precision))
        pixels = import_module("timm.data").resolve_model_data_config(model)
        self.rendition = Rendition(size, "bilinear" if pixels["interpolation"] == "bilinear" else "bicubic")
        self.spec = TargetSpec(dim)
        self.register_buffer("mean", torch.tensor(pixels["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixels["std"]).view(-1, 1, 1), persistent=False)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, dim), and image (B, 1, dim) from models with a class token; float32."""
        with torch.autocast(view.image.device.type, enabled=False):
            x = (view.pixels(self.rendition) - self.mean) / self.std
            return self._read(x.to(getattr(torch, self.config.precision)))

    def _read(self, x: Tensor) -> Target:
        normed, prefixed = self.config.feature == "normed", getattr(self.model, "num_prefix_tokens", 0) > 0
        more = {"return_prefix_tokens": True} if prefixed else {}
        found = self.model.forward_intermediates(
            x, self.blocks, norm=normed, stop_early=True, intermediates_only=True, **more
        )
        maps = [block[0] if prefixed else block for block in found]
        if maps[0].shape[-2:] != self.geometry.grid:
            made = "x".join(map(str, maps[0].shape[-2:]))
            raise ValueError(
                f"teacher timm: {self.config.model!r} made {made} tokens of {self.rendition}, where the student has "
                f"{self.geometry.grid}; choose a model that divides the image evenly"
            )
        tokens = self._mean([block.flatten(2).transpose(1, 2) for block in maps])
        has_class = prefixed and getattr(self.model, "cls_token", None) is not None
        return Target(tokens, self._mean([block[1][:, :1] for block in found]) if has_class else None)

    def _mean(self, blocks: list[Tensor]) -> Tensor:
        blocks = [block.float() for block in blocks]
        if self.config.layer_norm_each:
            blocks = [F.layer_norm(block, block.shape[-1:]) for block in blocks]
        return torch.stack(blocks).mean(0)


def _check_name(config: Timm.Config) -> None:
    """The model exists, has weights if they are wanted, and computes the activation they were trained with."""
    timm: Any = import_module("timm")
    name = config.model
    if ":" in name:
        return
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise ValueError(f"teacher timm: unknown model {name!r}{near}; timm.list_models() lists them")
    try:
        trained = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(name.partition(".")[0] + "*"))
        raise ValueError(f"teacher timm: {name!r} names unknown weights; known: {tags}") from error
    notes = " ".join(getattr(trained, "notes", None) or ())
    if "QuickGELU" in notes and "_quickgelu_" not in name:
        better = name.replace("_clip_", "_clip_quickgelu_")
        raise ValueError(
            f"teacher timm: {name!r} computes exact GELU, but its weights were trained with QuickGELU, so every target "
            f"would be wrong; use model: {better}"
        )


def _create(config: Timm.Config, pretrained: bool) -> Any:
    timm: Any = import_module("timm")
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=0)
    except Exception as error:  # whatever the hub client, the file or the constructor raises
        weights = "the weights of " if pretrained else ""
        raise ValueError(
            f"teacher timm: cannot load {weights}{config.model!r}: {error}. Without a network, fetch the weights ahead "
            "of time and give their file as checkpoint"
        ) from error


def _plan(model: nn.Module, config: Timm.Config, geometry: Geometry) -> tuple[list[int], int, int]:
    """Blocks to read, their stride in pixels and their width, from the model's own description."""
    described: Any = getattr(model, "feature_info", [])
    info: list[Mapping[str, Any]] = list(getattr(described, "info", described))
    block = len(info) + config.block if config.block < 0 else config.block
    blocks = [block] if config.feature != "mean" else list(range(len(info) - config.last, len(info)))
    norm = getattr(model, "norm", None)
    problem = ""
    if not hasattr(model, "forward_intermediates") or not info:
        problem = "it does not describe its intermediate features; choose another model"
    elif min(blocks) < 0 or max(blocks) >= len(info):
        problem = f"block {config.block}, last {config.last} reach outside its {len(info)} blocks"
    elif len({(info[i]["reduction"], info[i]["num_chs"]) for i in blocks}) > 1:
        problem = f"its last {config.last} blocks have different sizes, so they have no mean; lower last"
    elif config.feature == "normed" and (norm is None or isinstance(norm, nn.Identity)):
        problem = "it has no final norm for single tokens; set feature: raw"
    elif geometry.channels != 3:
        problem = f"it reads RGB, not {geometry.channels} channels"
    if problem:
        raise ValueError(f"teacher timm, model {config.model!r}: {problem}")
    return blocks, info[blocks[0]]["reduction"], info[blocks[0]]["num_chs"]


def _load(model: nn.Module, path: str) -> None:
    """Weights of a file into `model`, at the model's own input size."""
    if not Path(path).is_file():
        raise ValueError(f"teacher timm: no checkpoint at {path}")
    try:
        state = import_module("timm.models").load_state_dict(path, weights_only=True)
        rename = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
        state = rename(state, model) if rename else state
        absent = model.load_state_dict(state, strict=False).missing_keys
    except Exception as error:  # whatever a damaged or foreign file raises
        raise ValueError(f"teacher timm: cannot read checkpoint {path}: {error}") from error
    if absent:
        listed = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise ValueError(f"teacher timm: checkpoint {path} lacks {len(absent)} weights of the model: {listed}")
