"""The tokenizer of BEiT v2: the frozen encoder and codebook of VQ-KD."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Geometry, Mask, Rendition, Target, TargetSpec, Teacher, View, plugins
from unimim.importers import ENCODER, count, need, read_checkpoint, read_weights
from unimim.layers import nearest

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

    ViT is plain, with learned positions and its final norm on every patch; its class token is dropped. A tokenizer that
    unimim trained (head vqkd) has the student of its recipe for ViT, with that student's pixel statistics. Distances are
    squared and Euclidean, as officially, which on unit vectors is the same code; the first one wins a tie. Follows
    microsoft/unilm @ 768a3c8, beit2/modeling_vqkd.py and norm_ema_quantizer.py.
    Deviations: the configured precision outside autocast, codes float32 (officially float16 on CUDA, where 0.3 % of random
    vectors get another code); no one-hot matrix and no count of used codes, which the official tokenizer keeps updating
    while it is frozen; pixels are always those of [0, 1], where the official code looks at the greatest of the batch to
    tell.
    """

    class Config(Teacher.Config):
        """checkpoint: an official file of VQ-KD (with CLIP or DINO as its teacher), whose sizes are the defaults; or the
        weights folder of a run of recipe vqkd; None: random weights, for trials of the machinery only.
        dim, depth, num_heads, patch_size: the encoder's.  num_codes, code_dim: codes c (num_codes, code_dim).
        precision: of the encoder's weights and computation; distances to codes are float32. Ids at near-ties depend on it.
        """

        weights_from: ClassVar[tuple[str, ...]] = ("checkpoint",)
        name: Literal["vqkd"] = "vqkd"
        checkpoint: str | None = None
        patch_size: int = Field(16, gt=0, le=2**10)
        dim: int = Field(768, gt=0, le=2**16)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        num_codes: int = Field(8192, gt=1, le=2**20)
        code_dim: int = Field(32, gt=0, le=2**16)
        precision: Literal["float32", "bfloat16"] = "float32"

        @model_validator(mode="after")
        def _divides(self) -> VQKD.Config:
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            return self

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
        found = None if config.checkpoint is None else _read(Path(config.checkpoint), config, geometry)
        self.config = config
        own = None if found is None else found.encoder
        self.encoder = (own or _plain(config, geometry)).build()
        self.rendition = Rendition(self.encoder.geometry.image, "bicubic")
        self.spec = TargetSpec(config.num_codes, discrete=True)
        self.project = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.Tanh(), nn.Linear(config.dim, config.code_dim)
        )
        self.register_buffer("codes", F.normalize(torch.randn(config.num_codes, config.code_dim), dim=1))
        if found is not None:
            try:
                self.load_state_dict(found.state)
            except RuntimeError as error:
                raise ValueError(f"teacher vqkd: {config.checkpoint} does not fit: {error}") from None
        for part in (self.encoder, self.project):
            part.to(getattr(torch, config.precision))

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64."""
        with torch.autocast(view.image.device.type, enabled=False):
            z = F.normalize(self.features(view).float(), dim=-1)
            return Target(nearest(z.flatten(0, 1), self.codes).view(z.shape[:2]))

    def features(self, view: View) -> Tensor:
        """z (B, N, code_dim), before it is put on the unit sphere."""
        features: Tensor = self.project(self.encoder(View(view.pixels(self.rendition))).tokens)
        return features


class _Found(NamedTuple):
    """A tokenizer as it was read: its sizes, how many patches it sees, its tensors under our names, and the Config of its
    encoder where that is not the official one."""

    sizes: Mapping[str, Any]
    num_tokens: int
    state: Mapping[str, Tensor]
    encoder: Any = None


def _read(path: Path, config: VQKD.Config, geometry: Geometry) -> _Found:
    """The tokenizer of an official file or of a weights folder, if it has the configured sizes and the student's grid."""
    if not path.exists():
        raise ValueError(
            f"teacher vqkd: no tokenizer at {path}; fetch one (unimim teachers fetch vqkd --to DIR), or train recipe vqkd and "
            f"give RUN/weights"
        )
    try:
        found = _own(path) if path.is_dir() else _official(path)
    except ValueError as error:
        raise ValueError(f"teacher vqkd: {path} is no VQ-KD tokenizer: {error}") from None
    other = [f"teacher.{name}={size}" for name, size in found.sizes.items() if size != getattr(config, name)]
    if other:
        raise ValueError(f"teacher vqkd: {path} has other sizes; set {' '.join(other)}")
    sides = None if found.encoder is None else found.encoder.geometry.grid
    if found.num_tokens != geometry.num_tokens or sides not in (None, geometry.grid):
        raise ValueError(
            f"teacher vqkd: {path} has {found.num_tokens} positions{'' if sides is None else f' {sides}'}, but the student "
            f"{geometry.num_tokens} patches {geometry.grid}; choose student.image_size and student.patch_size that give as many"
        )
    return found


def _official(path: Path) -> _Found:
    """An official file, whose tensors tell all but the number of heads and the sides of the grid."""
    state = read_checkpoint(path)
    return _Found(sizes_of(state), state["encoder.pos_embed"].shape[1] - 1, _rename(state))


def _own(folder: Path) -> _Found:
    """What unimim trained with the head vqkd: the encoder is the student, as its recipe says."""
    recipe, tensors = read_weights(folder)
    name = next((name for name, term in recipe.terms.items() if term.head.name == "vqkd"), None)
    if name is None or recipe.student.name != "vit":
        raise ValueError(f"recipe {recipe.name!r} trained no vit with the head vqkd; train recipe vqkd")
    student, head, patch = recipe.student, recipe.terms[name].head, recipe.student.geometry.patch
    sizes = {"patch_size": patch[0] if patch[0] == patch[1] else patch}
    sizes |= {key: getattr(student, key) for key in ("dim", "depth", "num_heads")}
    sizes |= {key: getattr(head, key) for key in ("num_codes", "code_dim")}
    at = f"branches.{name}.head."
    state: dict[str, Tensor] = {}
    for theirs, ours in (("student.", "encoder."), (f"{at}project.", "project."), (f"{at}codebook.codes", "codes")):
        state |= {ours + key.removeprefix(theirs): x for key, x in tensors.items() if key.startswith(theirs)}
    return _Found(sizes, student.geometry.num_tokens, state, student)


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


def _plain(config: VQKD.Config, geometry: Geometry) -> Any:
    """The official encoder on the student's grid: a plain ViT that reads pixels as 2 I - 1 = (I - 1/2) / (1/2)."""
    size = geometry.grid[0] * config.patch_size, geometry.grid[1] * config.patch_size
    sizes = {name: getattr(config, name) for name in ("patch_size", "dim", "depth", "num_heads")}
    half = (0.5, 0.5, 0.5)
    return plugins()["students"]["vit"].Config(
        image_size=size, masking="none", qkv_bias="qv", mean=half, std=half, **sizes
    )
