"""Students as timm models, checked by loading them again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from ..axes import Student
from ..engine.checkpoint import write_text
from ..students.swin import Swin
from ..students.vit import ViT
from ..weights import write_tensors
from .base import Trained, compare

SWIN_NAMES = {
    r"^patch_norm\.": "patch_embed.norm.",
    r"^stages\.(\d+)\.(\d+)\.": r"layers.\1.blocks.\2.",
    r"^merges\.(\d+)\.": r"layers.\1.downsample.",
    r"attn\.bias\.table$": "attn.relative_position_bias_table",
}
"""Ours to Swin's own, which every timm reads; only newer ones (not 1.0.16) take their own names without a classifier."""


def export_timm(trained: Trained, folder: Path) -> float:
    """Write a folder that timm.create_model("local-dir:<folder>", pretrained=True) loads (timm >= 1.0.16).

    Plain ViTs become timm's VisionTransformer; those with relative positions or without a bias on keys, its Beit; Swins its
    SwinTransformer. Mask tokens stay behind. Returns the largest absolute difference between the patch features (after the
    final norm) of the student and of the model loaded again. ValueError if timm has no such model, or it differs.
    """
    student = trained.student
    problems = _problems(student)
    if problems or not isinstance(student, ViT | Swin):
        raise ValueError(f"timm has no such model: {'; '.join(problems)}. Use --to torch, which takes any student")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(student, Swin):
        config, tensors = _swin_config(student), _swin(student)
    else:
        beit = _is_beit(student)
        config, tensors = _config(student, beit), _beit(student) if beit else _vision_transformer(student)
    write_tensors(folder / "model.safetensors", tensors, format="pt")
    write_text(folder / "config.json", json.dumps(config, indent=1))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def patches(image: Tensor) -> Tensor:
        tokens: Tensor = model.forward_features((image - student.mean) / student.std)
        return tokens.flatten(1, 2) if isinstance(student, Swin) else tokens[:, student.num_prefix :]

    return compare(student, patches, "the timm model")


def _is_beit(student: ViT) -> bool:
    return bool(student.config.relative_positions != "none" or student.config.qkv_bias == "qv")


def _problems(student: Student) -> list[str]:
    """Why timm's classes cannot express the student."""
    config = student.config
    if isinstance(student, Swin):
        sizes = [(config.map_of(stage), config.window_of(stage)[0]) for stage in range(len(config.depths))]
        named = {
            f"student.eps: {config.eps:g} (timm's Swin has 1e-5)": config.eps != 1e-5,
            "student.image_size: a stage is one window wide and longer than that (timm's window is then not square)": any(
                height != width and min(height, width) <= side for (height, width), side in sizes
            ),
        }
    elif isinstance(student, ViT):
        beit = _is_beit(student)
        named = {
            f"student.eps: {config.eps:g} (timm's norms have 1e-6)": config.eps != 1e-6,
            "student.class_token: false (Beit has one)": beit and not config.class_token,
            f"student.num_registers: {config.num_registers} (Beit has none)": beit and config.num_registers > 0,
            "student.final_norm: false (Beit has one)": beit and not config.final_norm,
        }
    else:
        named = {f"student {config.name!r} is neither vit nor swin": True}
    return [problem for problem, applies in named.items() if applies]


def _config(student: ViT, beit: bool) -> dict[str, Any]:
    """timm's config.json: an architecture of the right class, every argument that differs, and the pixels it wants."""
    config, geometry = student.config, student.geometry
    arguments = {
        "img_size": geometry.image,
        "patch_size": geometry.patch,
        "in_chans": config.channels,
        "num_classes": 0,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias != "none",
        "init_values": config.layer_scale,
        "global_pool": "token" if config.class_token else "avg",
    }
    if beit:
        arguments |= {
            "init_values": config.layer_scale or 0.0,  # timm drops a null and falls back on the architecture's own 0.1
            "use_abs_pos_emb": config.positions != "none",
            "use_rel_pos_bias": config.relative_positions == "per_block",
            "use_shared_rel_pos_bias": config.relative_positions == "shared",
        }
    else:
        arguments |= {
            "pos_embed": "none" if config.positions == "none" else "learn",
            "class_token": config.class_token,
            "reg_tokens": config.num_registers,
            "final_norm": config.final_norm,
            "fc_norm": False,
        }
    return _described("beit_base_patch16_224" if beit else "vit_base_patch16_224", arguments, student, "head")


def _swin_config(student: Swin) -> dict[str, Any]:
    """The same for Swin; a window larger than a stage's map is cut to it by timm as by us."""
    config = student.config
    arguments = {
        "img_size": student.geometry.image,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "num_classes": 0,
        "embed_dim": config.dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
        "global_pool": "avg",
    }
    return _described("swin_base_patch4_window7_224", arguments, student, "head.fc")


def _described(architecture: str, arguments: Mapping[str, Any], student: ViT | Swin, classifier: str) -> dict[str, Any]:
    config = student.config
    pixels = {
        "input_size": [config.channels, *student.geometry.image],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": config.mean,
        "std": config.std,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": classifier,
    }
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": student.dim,
        "model_args": {key: value for key, value in arguments.items() if value is not None},
        "pretrained_cfg": pixels,
    }


def _vision_transformer(student: ViT) -> dict[str, Tensor]:
    """Names of timm's VisionTransformer: prefix tokens apart, and a position code of every token."""
    state = _shared(student.state_dict())
    if student.prefix is not None:
        first = int(student.config.class_token)
        parts = {"cls_token": student.prefix[:, :first], "reg_token": student.prefix[:, first:]}
        state |= {name: part for name, part in parts.items() if part.shape[1]}
    if student.pos_embed is not None:
        state["pos_embed"] = student.pos_embed
    return state


def _beit(student: ViT) -> dict[str, Tensor]:
    """Names of timm's Beit: one prefix token, biases of queries and values, position tables, layer scale in the block."""
    state = _vision_transformer(student)
    if student.shared_bias is not None:
        state["rel_pos_bias.relative_position_bias_table"] = student.shared_bias.table
    for number in range(student.config.depth):
        block = f"blocks.{number}."
        if student.block_bias:
            state[f"{block}attn.relative_position_bias_table"] = student.block_bias[number].table  # type: ignore[assignment]
        for scale in ("1", "2"):
            if f"{block}ls{scale}.gamma" in state:
                state[f"{block}gamma_{scale}"] = state.pop(f"{block}ls{scale}.gamma")
        if f"{block}attn.qkv.bias" in state:
            # A bias on keys adds the same number to all logits of a query, and softmax takes it away again.
            q, _, v = state.pop(f"{block}attn.qkv.bias").chunk(3)
            state |= {f"{block}attn.q_bias": q, f"{block}attn.v_bias": v}
    return state


def _swin(student: Swin) -> dict[str, Tensor]:
    """Names of the official Swin, without the mask token."""
    state = {}
    for name, tensor in student.state_dict().items():
        for pattern, other in SWIN_NAMES.items():
            name = re.sub(pattern, other, name)
        state[name] = tensor
    state.pop("mask_token", None)
    return state


def _shared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What unimim and timm call the same."""
    return {name: tensor for name, tensor in state.items() if name.startswith(("patch_embed.", "blocks.", "norm."))}
