"""Students as timm models, checked by loading them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..axes import Student
from ..engine.checkpoint import write_text
from ..students.vit import ViT
from ..types import View
from ..weights import write_tensors

TOLERANCE = 1e-4
"""Largest difference of features that float32 sums in another order explain."""


def export_timm(student: Student, folder: Path) -> float:
    """Write `student` as a folder that timm.create_model("local-dir:<folder>", pretrained=True) loads (timm >= 1.0.16).

    Plain ViTs become timm's VisionTransformer; those with relative positions or without a bias on keys, its Beit. Mask
    tokens stay behind. Returns the largest absolute difference between the patch features (after the final norm) of the
    student and of the model loaded again. ValueError if timm has no such model, or the difference is not below 1e-4.
    """
    if not isinstance(student, ViT):
        raise ValueError(f"timm export knows the student 'vit' only, not {student.config.name!r}")
    beit = student.config.relative_positions != "none" or student.config.qkv_bias == "qv"
    problems = _problems(student.config, beit)
    if problems:
        raise ValueError("timm has no such model: " + "; ".join(problems))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _beit(student) if beit else _vision_transformer(student)
    write_tensors(folder / "model.safetensors", tensors, format="pt")
    write_text(folder / "config.json", json.dumps(_config(student, beit), indent=1))
    difference = _difference(student, folder)
    if not difference < TOLERANCE:
        raise ValueError(f"the timm model in {folder} differs from the student by {difference:.2g}; do not use it")
    return difference


def _problems(config: ViT.Config, beit: bool) -> list[str]:
    """Fields of the student that timm's classes cannot express."""
    named = {f"student.eps: {config.eps:g} (timm's norms have 1e-6)": config.eps != 1e-6}
    if beit:
        named |= {
            "student.class_token: false (Beit has one)": not config.class_token,
            f"student.num_registers: {config.num_registers} (Beit has none)": config.num_registers > 0,
            "student.final_norm: false (Beit has one)": not config.final_norm,
        }
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
    pixels = {
        "input_size": [config.channels, *geometry.image],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": config.mean,
        "std": config.std,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": "beit_base_patch16_224" if beit else "vit_base_patch16_224",
        "num_classes": 0,
        "num_features": config.dim,
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


def _shared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What unimim and timm call the same."""
    return {name: tensor for name, tensor in state.items() if name.startswith(("patch_embed.", "blocks.", "norm."))}


@torch.no_grad()
def _difference(student: ViT, folder: Path) -> float:
    """Largest absolute difference of patch features on two random images."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(2, student.config.channels, *student.geometry.image, generator=noise)
    training = student.training
    ours = student.eval()(View(images)).tokens
    student.train(training)
    theirs = model.forward_features((images - student.mean) / student.std)[:, student.num_prefix :]
    return float((ours - theirs).abs().max())
