"""Any timm model as a teacher: DINO, MAE, BEiT, MoCo v3, SLIP, SimCLR, supervised ViTs, ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..axes import Teacher
from ..foreign import choose, read_parts
from ..registry import did_you_mean
from ..types import Geometry, Mask, Rendition, Target, TargetSpec, View

_LABELS = {
    "base_encoder.": "MoCov3",
    "momentum_encoder.": "MoCov3",
    "simclr": "SimCLR",
    "slip": "SLIP",
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
"""Tables 1 and 8's word for the first of these that the name contains: the model's, or prefix and file name of a part."""
_FAMILIES = {"momentum_encoder.": "MoCo v3", "image_mlp.": "SLIP", "image_projection": "SLIP"}
"""What only these projects' files hold. Their small ViT has 12 heads (timm's: 6), their pixels ImageNet's statistics."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and std of its [0, 1] RGB."""


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
        prefix: before the names of the model's weights in that file: "module.base_encoder." in MoCo v3's files,
        "module.visual." in those of SLIP (facebookresearch/SLIP, which also brings SimCLR and CLIP).
        num_heads: of the ViT, where it is not timm's: 12 in MoCo v3's and SLIP's ViT-S, whose weights fit 6 as well.
        feature: "normed", after the model's final norm; "raw", as the block leaves it; or "mean" of the `last` raw
        blocks. block: which one, 0-based, negative from the end; in a ResNet, the stem is 0 and the stages are 1 to 4.
        layer_norm_each: a parameter-free layer norm of each block before their mean.
        precision: of weights and computation, outside autocast. Tokens come back as float32.
        mean, std: statistics of [0, 1] RGB; None is the model's own. Foreign weights may have been trained with others.
        """

        weights_from: ClassVar[tuple[str, ...]] = ("pretrained", "checkpoint")
        name: Literal["timm"] = "timm"
        model: str
        pretrained: bool = True
        checkpoint: str | None = None
        prefix: str = Field("", max_length=256)
        num_heads: int | None = Field(None, ge=1, le=2**10)
        feature: Literal["normed", "raw", "mean"] = "normed"
        block: int = -1
        last: int = Field(1, ge=1, le=1024)
        layer_norm_each: bool = False
        precision: Literal["float32", "bfloat16"] = "float32"
        mean: tuple[float, float, float] | None = None
        std: tuple[float, float, float] | None = None

        @model_validator(mode="after")
        def _positive(self) -> Timm.Config:
            if self.std is not None and min(self.std) <= 0:
                raise ValueError(f"std must be positive, not {self.std}")
            return self

        @model_validator(mode="after")
        def _part_of_a_file(self) -> Timm.Config:
            if self.prefix and self.checkpoint is None:
                raise ValueError(f"prefix {self.prefix!r} names a part of checkpoint; give its file as checkpoint")
            return self

        @model_validator(mode="after")
        def _mean_only(self) -> Timm.Config:
            if self.feature != "mean" and (self.last > 1 or self.layer_norm_each):
                raise ValueError(f"last and layer_norm_each belong to feature: mean, not {self.feature}")
            if self.feature == "mean" and self.block != -1:
                raise ValueError("feature: mean reads the last blocks; it has no block")
            return self

        @property
        def label(self) -> str:
            name = f"{self.prefix}{Path(self.checkpoint or '').name}" if self.prefix else self.model
            return next((label for part, label in _LABELS.items() if part in name), self.model)

    mean: Tensor
    std: Tensor
    model: Any

    def __init__(self, config: Timm.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        _check_name(config)
        state = None if config.checkpoint is None else _read(Path(config.checkpoint))
        _check_heads(config)
        model = _create(config, pretrained=False)
        self.blocks, stride, dim = _plan(model, config, geometry)
        pixels = import_module("timm.data").resolve_model_data_config(model)
        mean, std = config.mean or pixels["mean"], config.std or pixels["std"]
        if state is not None:
            _check_family(state, model, mean, std)
            _load(model, state, config)
        elif config.pretrained:
            model = _create(config, pretrained=True)
        size = geometry.grid[0] * stride, geometry.grid[1] * stride
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
        self.model = model.to(getattr(torch, config.precision))
        self.rendition = Rendition(size, "bilinear" if pixels["interpolation"] == "bilinear" else "bicubic")
        self.spec = TargetSpec(dim)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

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


def _check_heads(config: Timm.Config) -> None:
    """The model has heads, and its width divides into as many as are asked for."""
    if config.num_heads is None:
        return
    with torch.device("meta"):
        model = _create(config.model_copy(update={"num_heads": None}), pretrained=False)
    attention: Any = getattr(next(iter(getattr(model, "blocks", ())), None), "attn", None)
    if not hasattr(attention, "num_heads"):
        raise ValueError(f"teacher timm: {config.model!r} has no attention heads to count; unset num_heads")
    if model.embed_dim % config.num_heads:
        raise ValueError(
            f"teacher timm: {config.model!r} is {model.embed_dim} wide, which does not divide into num_heads "
            f"{config.num_heads}; its own are {attention.num_heads}"
        )


def _create(config: Timm.Config, pretrained: bool) -> Any:
    timm: Any = import_module("timm")
    heads = {} if config.num_heads is None else {"num_heads": config.num_heads}
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=0, **heads)
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


def _read(path: Path) -> dict[str, Tensor]:
    """Everything a file holds of weights, their average where it has one; no code of it is run."""
    if not path.is_file():
        raise ValueError(f"teacher timm: no checkpoint at {path}")
    try:
        parts = read_parts(path)
        averaged = next((parts[name] for name in ("state_dict_ema", "model_ema") if name in parts), None)
        return averaged or choose(parts, None, path)
    except ValueError as error:
        raise ValueError(f"teacher timm: cannot read checkpoint {path}: {error}") from error


def _check_family(state: Mapping[str, Tensor], model: Any, *pixels: tuple[float, ...]) -> None:
    """What files of known projects do not tell is set as they had it: the features would be wrong, and nothing else."""
    family = next((name for part, name in _FAMILIES.items() if any(key.startswith(part) for key in state)), None)
    if family is None:
        return
    settings = []
    if getattr(model, "embed_dim", 0) == 384 and model.blocks[0].attn.num_heads != 12:
        settings.append("teacher.num_heads=12")
    if pixels != _IMAGENET:
        mean, std = (",".join(map(str, values)) for values in _IMAGENET)
        settings.append(f"teacher.mean=[{mean}] teacher.std=[{std}]")
    if settings:
        raise ValueError(
            f"teacher timm: a file of {family} was trained otherwise than timm's model computes, which its tensors do "
            f"not tell; set {' '.join(settings)}"
        )


def _load(model: nn.Module, state: Mapping[str, Tensor], config: Timm.Config) -> None:
    """The weights below the prefix into `model`, at the model's own input size."""
    prefixes = (
        config.prefix,
        config.prefix.removeprefix("module."),
    )  # the one of DataParallel is off where all have it
    prefix = next((each for each in prefixes if any(name.startswith(each) for name in state)), config.prefix)
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    rename = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
    try:
        renamed = rename(part, model) if rename and part else part
        absent = model.load_state_dict(renamed, strict=False).missing_keys
    except Exception as error:  # whatever a damaged or foreign file raises
        raise ValueError(f"teacher timm: cannot read checkpoint {config.checkpoint}: {error}") from error
    if absent:
        listed = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        found = " or ".join(f"teacher.prefix={each}" for each in _prefixes(model, state))
        raise ValueError(
            f"teacher timm: checkpoint {config.checkpoint} lacks {len(absent)} weights of the model: {listed}"
            + (f"; it has all of them elsewhere, set {found}" if found else "")
        )


def _prefixes(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of all of the model's weights, wherever a file holds them."""
    names = [*model.state_dict()]
    starts = {name.removesuffix(names[0]) for name in state if name.endswith(names[0])}
    return sorted(start for start in starts if all(start + name in state for name in names))
