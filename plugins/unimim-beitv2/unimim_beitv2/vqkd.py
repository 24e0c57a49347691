"""The tokenizer of BEiT v2: the frozen encoder and codebook of VQ-KD."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Geometry, Mask, Rendition, Target, TargetSpec, Teacher, View, plugins
from unimim.importers import ENCODER, count, need, read_checkpoint

RULES = {rf"encoder\.{name}": ours.replace("student.", "encoder.") for name, ours in ENCODER.items()} | {
    r"encoder\.pos_embed": "encoder.pos_embed",
    r"encoder\.fc_norm\.(weight|bias)": r"encoder.norm.\1",
    r"encode_task_layer\.([02]\.(?:weight|bias))": r"project.\1",
    r"quantize\.embedding\.weight": "codes",
}
UNUSED = ("decoder.", "decode_task_layer.", "quantize.", "teacher_model.", "scaling_layer.", "loss.")
"""What only the training of the tokenizer needs: names that begin so, and follow no rule, are left out."""


class VQKD(Teacher):
    """T(I)_i = argmax_k <z_i / |z_i|, c_k>, z = W2 tanh(W1 ViT(2 I - 1)_i): the nearest of K unit codes c to patch i.

    ViT is plain, with learned positions and its final norm on every patch; its class token is dropped. Distances are
    squared and Euclidean, as officially, which on unit vectors is the same code; the first one wins a tie. Follows
    microsoft/unilm @ 768a3c8, beit2/modeling_vqkd.py and norm_ema_quantizer.py.
    Deviations: float32 outside autocast (officially float16 on CUDA, where 0.3 % of random vectors get another code); no
    one-hot matrix and no count of used codes, which the official tokenizer keeps updating while it is frozen; pixels are
    always those of [0, 1], where the official code looks at the greatest of the batch to tell.
    """

    class Config(Teacher.Config):
        """checkpoint: an official file of VQ-KD (with CLIP or DINO as its teacher), whose sizes are the defaults; None:
        random weights, for trials of the machinery only.
        dim, depth, num_heads, patch_size: the encoder's.  num_codes, code_dim: codes c (num_codes, code_dim).
        """

        name: Literal["vqkd"] = "vqkd"
        checkpoint: str | None = None
        patch_size: int = Field(16, gt=0, le=2**10)
        dim: int = Field(768, gt=0, le=2**16)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        num_codes: int = Field(8192, gt=1, le=2**20)
        code_dim: int = Field(32, gt=0, le=2**16)

        @model_validator(mode="after")
        def _divides(self) -> VQKD.Config:
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            return self

        @property
        def reloads(self) -> bool:
            return self.checkpoint is not None

        @property
        def discrete(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "VQ-KD"

    codes: Tensor

    def __init__(self, config: VQKD.Config, geometry: Geometry) -> None:
        """ValueError if the images are not RGB, or the checkpoint cannot be read, has other sizes or another grid."""
        super().__init__()
        if geometry.channels != 3:
            raise ValueError(f"teacher vqkd reads RGB, not {geometry.channels} channels")
        state = None if config.checkpoint is None else _read(Path(config.checkpoint), config, geometry)
        self.config = config
        size = geometry.grid[0] * config.patch_size, geometry.grid[1] * config.patch_size
        self.rendition = Rendition(size, "bicubic")
        self.spec = TargetSpec(config.num_codes, discrete=True)
        self.encoder = _encoder(config, size)
        self.project = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.Tanh(), nn.Linear(config.dim, config.code_dim)
        )
        self.register_buffer("codes", F.normalize(torch.randn(config.num_codes, config.code_dim), dim=1))
        if state is not None:
            try:
                self.load_state_dict(_rename(state))
            except RuntimeError as error:
                raise ValueError(f"teacher vqkd: {config.checkpoint} does not fit: {error}") from None

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64."""
        with torch.autocast(view.image.device.type, enabled=False):
            z = F.normalize(self.features(view), dim=-1)
            distances = torch.addmm(self.codes.square().sum(1), z.flatten(0, 1), self.codes.T, alpha=-2)
            return Target(distances.argmin(1).view(z.shape[:2]))

    def features(self, view: View) -> Tensor:
        """z (B, N, code_dim), before it is put on the unit sphere."""
        features: Tensor = self.project(self.encoder(View(view.pixels(self.rendition))).tokens)
        return features


def _read(path: Path, config: VQKD.Config, geometry: Geometry) -> Mapping[str, Tensor]:
    """The official tensors of a file, if it is a tokenizer of the configured sizes and of the student's grid."""
    if not path.is_file():
        raise ValueError(f"teacher vqkd: no tokenizer at {path}; fetch one: unimim teachers fetch vqkd --to DIR")
    state = read_checkpoint(path)
    try:
        sizes = sizes_of(state)
    except ValueError as error:
        raise ValueError(f"teacher vqkd: {path} is no VQ-KD tokenizer: {error}") from None
    other = [f"teacher.{name}={size}" for name, size in sizes.items() if size != getattr(config, name)]
    if other:
        raise ValueError(f"teacher vqkd: {path} has other sizes; set {' '.join(other)}")
    positions = len(state["encoder.pos_embed"][0]) - 1
    if positions != geometry.num_tokens:
        raise ValueError(
            f"teacher vqkd: {path} has {positions} positions, but the student {geometry.num_tokens} patches; choose "
            f"student.image_size and student.patch_size that give as many"
        )
    return state


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """{field of VQKD.Config: its value} that the tensors of an official file tell; all but the number of heads."""
    need(state, "encoder.patch_embed.proj.weight", "encoder.pos_embed", "quantize.embedding.weight")
    dim, _, patch_size, _ = state["encoder.patch_embed.proj.weight"].shape
    num_codes, code_dim = state["quantize.embedding.weight"].shape
    depth = count({name.removeprefix("encoder."): tensor for name, tensor in state.items()}, "blocks")
    return {"patch_size": patch_size, "dim": dim, "depth": depth, "num_codes": num_codes, "code_dim": code_dim}


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under our names; names that nothing is known of stay, so that a strict load reports them."""
    renamed = {}
    for name, tensor in state.items():
        found = next((match.expand(ours) for rule, ours in RULES.items() if (match := re.fullmatch(rule, name))), None)
        if found is not None or not name.startswith(UNUSED):
            renamed[found or name] = tensor
    return renamed


def _encoder(config: VQKD.Config, size: tuple[int, int]) -> Any:
    """The plain ViT that reads images of `size` pixels as 2 I - 1 = (I - 1/2) / (1/2)."""
    vit = plugins()["students"]["vit"]
    sizes = {name: getattr(config, name) for name in ("patch_size", "dim", "depth", "num_heads")}
    half = (0.5, 0.5, 0.5)
    return vit.Config(image_size=size, masking="none", qkv_bias="qv", mean=half, std=half, **sizes).build()
