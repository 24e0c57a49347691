"""CLIP image towers as teachers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..axes import Teacher
from ..registry import did_you_mean
from ..types import Geometry, Mask, Rendition, Size, Target, TargetSpec, View


class OpenClip(Teacher):
    """T(I) = patch tokens of a frozen CLIP image tower; its class token is the target of the image as a whole.

    The tower reads the crop at the student's grid times its own patch size (14x14 tokens and a /14 tower: 196 px), with
    its own mean and std. open_clip resamples its positions once, at loading: bicubic, antialiased, to that grid size.
    microsoft/unilm @ 768a3c8 beit2/ resamples by a scale factor, not antialiased, which gives other targets.
    Its saliency, if asked for, is the class token's attention to the patches in the last block (MILAN).
    """

    class Config(Teacher.Config):
        """model: an open_clip name ("ViT-B-16-quickgelu"), "hf-hub:owner/name", or a folder that holds
        open_clip_config.json and weights ("local-dir:folder", or the folder itself).
        pretrained: a tag of that name or a weights file, None for random weights; folders and hubs bring their own.
        OpenAI, MetaCLIP and DFN weights need a "-quickgelu" name. Their tags are checked; a file does not tell.
        feature: "normed", after the final norm and before the projection (what beit2's CLIP wrapper returns; the paper
        does not say), "projected", after both, "raw", the last block, or "mean" of the `last` raw blocks (Table 10).
        layer_norm_each: a parameter-free layer norm of each block before their mean. Off by default: the paper does not
        say, and beit2's code for several blocks returns them as they are.
        precision: of weights and computation, outside autocast. Tokens come back as float32.
        saliency: also return the last block's attention of the class token, in float32, at the cost of one query.
        mean, std: statistics of [0, 1] RGB; None is the tower's own. Others belong to targets that were made with them.
        """

        weights_from: ClassVar[tuple[str, ...]] = ("pretrained",)
        name: Literal["open_clip"] = "open_clip"
        model: str = "ViT-B-16-quickgelu"
        pretrained: str | None = "openai"
        feature: Literal["normed", "projected", "raw", "mean"] = "normed"
        last: int = Field(1, ge=1, le=1024)
        layer_norm_each: bool = False
        precision: Literal["float32", "bfloat16"] = "float32"
        saliency: bool = False
        mean: tuple[float, float, float] | None = None
        std: tuple[float, float, float] | None = None

        @model_validator(mode="after")
        def _positive(self) -> OpenClip.Config:
            if self.std is not None and min(self.std) <= 0:
                raise ValueError(f"std must be positive, not {self.std}")
            return self

        @model_validator(mode="after")
        def _mean_only(self) -> OpenClip.Config:
            if self.feature != "mean" and (self.last > 1 or self.layer_norm_each):
                raise ValueError(f"last and layer_norm_each belong to feature: mean, not {self.feature}")
            return self

        @property
        def reloads(self) -> bool:
            return super().reloads or ":" in self.model or Path(self.model).is_dir()

        @property
        def label(self) -> str:
            return "CLIP"

    mean: Tensor
    std: Tensor
    tower: Any

    def __init__(self, config: OpenClip.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        name = f"local-dir:{config.model}" if Path(config.model).is_dir() else config.model
        name = name if ":" in name else name.replace("/", "-")
        size = _plan(name, config, geometry)
        self.tower = _load(name, config, size)
        if config.saliency and not isinstance(self.tower.transformer.resblocks[-1].attn, nn.MultiheadAttention):
            problem = "its blocks have an attention of their own, which saliency does not know; set saliency: false"
            raise ValueError(f"teacher open_clip, model {config.model!r}: {problem}")
        pixels = self.tower.preprocess_cfg
        self.rendition = Rendition(size, "bilinear" if pixels["interpolation"] == "bilinear" else "bicubic")
        self.spec = TargetSpec(self.tower.output_dim if config.feature == "projected" else self.tower.transformer.width)
        self.register_buffer("mean", torch.tensor(config.mean or pixels["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or pixels["std"]).view(-1, 1, 1), persistent=False)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, dim), image (B, 1, dim), saliency (B, N) or None, float32."""
        # Autocast would cast the packed attention weight anew for every image: 39 times slower on a CPU.
        with torch.autocast(view.image.device.type, enabled=False):
            x = (view.pixels(self.rendition) - self.mean) / self.std
            tokens, saliency = self._read_with_saliency(x.to(getattr(torch, self.config.precision)))
        return Target(tokens[:, 1:], tokens[:, :1], saliency)

    def _read_with_saliency(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.config.saliency:
            return self._read(x), None
        last, entered = self.tower.transformer.resblocks[-1], list[Tensor]()
        hook = last.ln_1.register_forward_hook(lambda module, args, out: entered.append(out))
        try:
            tokens = self._read(x)
        finally:
            hook.remove()
        return tokens, class_attention(last.attn, entered[0])

    def _read(self, x: Tensor) -> Tensor:
        """(B, 1 + N, dim) float32, class token first."""
        feature = self.config.feature
        found = self.tower.forward_intermediates(
            x,
            indices=self.config.last,
            normalize_intermediates=feature in ("normed", "projected"),
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        blocks = [torch.cat(pair, 1) for pair in pairs]
        if feature == "projected":
            blocks = [block @ self.tower.proj for block in blocks]
        blocks = [block.float() for block in blocks]
        if self.config.layer_norm_each:
            blocks = [F.layer_norm(block, block.shape[-1:]) for block in blocks]
        return torch.stack(blocks).mean(0)


def class_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of the first token's query, averaged over heads, without its share for itself.

    x (B, 1 + N, D), what `attention` mixes -> (B, N) float32. q . (W x + b) = (W^T q) . x + a constant that softmax removes,
    so that no key is computed a second time.
    """
    x, (batch, _, dim), heads = x.float(), x.shape, attention.num_heads
    query, key, _ = attention.in_proj_weight.float().chunk(3)
    q = F.linear(x[:, 0], query, attention.in_proj_bias[:dim].float()).view(batch, heads, -1)
    logits = torch.einsum("bhd,hdc->bhc", q, key.view(heads, -1, dim)) @ x.mT
    shares: Tensor = (logits * (dim // heads) ** -0.5).softmax(-1).mean(1)
    return shares[:, 1:]


def _plan(name: str, config: OpenClip.Config, geometry: Geometry) -> Size:
    """The image size (H, W) that gives the student's grid, from the model's configuration; no weight is read."""
    model = _describe(name)
    tower: Any = import_module("open_clip.model").CLIPVisionCfg(**model["vision_cfg"])
    problem = ""
    if tower.timm_model_name:
        problem = f"its image tower is the timm model {tower.timm_model_name!r}; use teacher timm with its weights"
    elif not isinstance(tower.layers, int):
        problem = "its image tower is a ResNet, which has no patch tokens; choose a ViT"
    elif tower.attentional_pool and config.feature in ("normed", "projected"):
        problem = "its final norm stands after attention pooling, so patches have none; set feature: raw"
    elif config.last > tower.layers:
        problem = f"last: {config.last} is more than its {tower.layers} blocks"
    elif geometry.channels != 3:
        problem = f"it reads RGB, not {geometry.channels} channels"
    elif tower.pos_embed_type == "sin_cos_2d" and geometry.grid[0] != geometry.grid[1]:
        problem = f"its sin-cos positions need a square grid, not {geometry.grid[0]}x{geometry.grid[1]}"
    if problem:
        raise ValueError(f"teacher open_clip, model {config.model!r}: {problem}")
    _check_weights(name, config, bool(model.get("quick_gelu")))
    patch = tower.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return geometry.grid[0] * rows, geometry.grid[1] * columns


def _describe(name: str) -> dict[str, Any]:
    """The model's configuration: from the library, from its folder, or from the hub."""
    open_clip: Any = import_module("open_clip")
    folder = name.removeprefix("local-dir:")
    if folder != name and not (Path(folder) / "open_clip_config.json").is_file():
        raise ValueError(
            f"teacher open_clip: {folder} holds no open_clip_config.json; give a folder that open_clip saved"
        )
    try:
        found: dict[str, Any] | None = open_clip.get_model_config(name)
    except Exception as error:  # whatever the hub client or a damaged file raises
        raise ValueError(f"teacher open_clip: no configuration of {name!r}: {error}. {_FETCH}") from error
    if found is None:
        near = did_you_mean(name, open_clip.list_models())
        raise ValueError(f"teacher open_clip: unknown model {name!r}{near}; open_clip.list_models() lists them")
    return found


def _check_weights(name: str, config: OpenClip.Config, quick: bool) -> None:
    """The weights exist, and were trained with the activation that the model has (`quick`: QuickGELU)."""
    open_clip: Any = import_module("open_clip")
    tag = config.pretrained
    if ":" in name:
        folder = Path(name.removeprefix("local-dir:"))
        if tag not in (None, "openai"):
            raise ValueError(f"teacher open_clip: {config.model} brings its own weights; unset pretrained: {tag}")
        if folder.is_dir() and not any([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth")]):
            raise ValueError(f"teacher open_clip: {folder} holds no weights (.safetensors, .bin or .pth)")
        return
    if tag is None or Path(tag).is_file():
        return
    plain = name.removesuffix("-quickgelu")
    trained = open_clip.get_pretrained_cfg(name, tag) or open_clip.get_pretrained_cfg(plain, tag)
    if not trained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"teacher open_clip: {tag!r} is neither a file nor a tag of {name!r}; tags: {tags}")
    if bool(trained.get("quick_gelu")) != quick:
        better = plain if quick else f"{plain}-quickgelu"
        raise ValueError(
            f"teacher open_clip: {tag!r} was trained with {'exact GELU' if quick else 'QuickGELU'}, which {name!r} "
            f"does not compute, so every target would be wrong; use model: {better}"
        )


def _load(name: str, config: OpenClip.Config, size: Size) -> Any:
    """The image tower alone, built for images of `size`, in the configured precision."""
    open_clip: Any = import_module("open_clip")
    own = ":" in name
    try:
        clip = open_clip.create_model(
            name,
            pretrained=None if own else config.pretrained,
            force_image_size=size[0] if size[0] == size[1] else size,
            pretrained_text=False,
            require_pretrained=own or config.pretrained is not None,
        )
    except Exception as error:  # whatever the hub client, the file or the constructor raises
        what = f"model {config.model!r}" if own else f"pretrained {config.pretrained!r} of model {config.model!r}"
        raise ValueError(f"teacher open_clip: cannot load {what}: {error}. {_FETCH}") from error
    return clip.visual.to(getattr(torch, config.precision))


_FETCH = "Without a network, fetch the weights ahead and give their file as pretrained, or their folder as model"
