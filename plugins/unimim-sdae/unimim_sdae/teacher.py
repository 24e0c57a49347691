"""SdAE's teacher: a momentum encoder of what is hidden."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import nn

from unimim import Geometry, Head, Mask, Progress, Schedule, Student, Target, TargetSpec, Teacher, View, local
from unimim.layers import scatter


class SdAE(Teacher):
    """T(I) = e(hidden patches of I), group by group: each group of the mask is a sequence of its own, with class token and
    final norm; the class token is dropped.

    e is a network like the student's, averaged at the end of every epoch: e <- d e + (1 - d) s, with d from the schedule at
    the epoch's beginning. That covers the class token, patch embedding, blocks, final norm, and positions: where the
    student's are a fixed table, e starts from a random one and is pulled to it. Follows AbrahamYabo/SdAE @ 2e08b31,
    models_teacher.py and engine_pretrain.py (Chen et al., 2022).
    Every patch is embedded once a group, 2 % more work for a ViT-B teacher, so that any student that drops patches will do.
    """

    class Config(Teacher.Config):
        """start: "own", its own random draw, as the official code; "student", the student's.

        region: "hidden", groups of hidden patches; "full", the whole image as one sequence (official code without groups).
        """

        name: Literal["sdae"] = "sdae"
        decay: Schedule = Schedule(start=0.96, end=0.99, shape="cosine")
        start: Literal["own", "student"] = "own"
        region: Literal["hidden", "full"] = "hidden"

        @field_validator("decay")
        @classmethod
        def _share(cls, decay: Schedule) -> Schedule:
            if not (0 <= decay.start <= 1 and 0 <= decay.end <= 1):
                raise ValueError(f"decay is a share, from 0 to 1, not {decay.start} to {decay.end}")
            return decay

        @property
        def moves(self) -> bool:
            return True

        @property
        def needs_mask(self) -> bool:
            return self.region == "hidden"

        @property
        def label(self) -> str:
            return "EMA"

    def __init__(self, config: SdAE.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.spec = TargetSpec(geometry.dim)
        self.copy = nn.ModuleDict()
        self.source: dict[str, Student] = {}  # a plain dict: the objective owns the student

    def bind(self, student: Student, head: Head) -> None:
        """ValueError if the student keeps hidden patches, which the teacher would see as mask tokens."""
        if self.config.region == "hidden" and student.config.dense:
            raise ValueError(
                f"teacher sdae sees hidden patches alone, but student {student.config.name!r} replaces what it does not see; "
                f"use masking: drop, or region: full"
            )
        own: Any = student.config.build() if self.config.start == "own" else copy.deepcopy(student)
        self.source["student"], self.copy["student"] = student, own
        table = dict(student.named_buffers(recurse=False)).get("pos_embed")
        if table is not None:  # a buffer of the teacher's, so that it is never sharded: neither is what it follows
            own.register_buffer("pos_embed", table.clone())
        if self.config.start == "own":
            _draw(own)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, D), zero where nothing is hidden; with region "full" those of the whole image."""
        network = self.copy["student"]
        if mask is None:
            return Target(network(view).tokens)
        batch, num_tokens = mask.hidden.shape
        groups = mask.hidden_index.reshape(batch * mask.groups, -1)  # (B G, M / G)
        others = torch.ones(len(groups), num_tokens, dtype=torch.bool, device=groups.device).scatter(1, groups, False)
        pixels = View(view.image.repeat_interleave(mask.groups, 0))
        encoded = network(pixels, Mask.from_hidden(others, num_tokens - groups.shape[1]))
        tokens, index = (x.reshape(batch, -1, *x.shape[2:]) for x in (encoded.tokens, encoded.index))
        return Target(scatter(tokens, index, tokens.new_zeros(batch, num_tokens, tokens.shape[-1])))

    @torch.no_grad()
    def on_epoch_end(self, progress: Progress) -> None:
        """e <- d e + (1 - d) s."""
        student, averaged = self.source["student"], self.copy["student"].state_dict()
        followed = dict(student.named_parameters()) | dict(student.named_buffers())
        live = [local(followed[name]) for name in averaged]
        torch._foreach_lerp_([*map(local, averaged.values())], live, 1 - self.config.decay(progress.epoch_fraction))


def _draw(network: nn.Module) -> None:
    """timm's start: normal matrices, class token and positions of deviation 0.02, zero biases; torch's patch embedding."""
    for name, tensor in network.state_dict().items():
        if "." not in name:
            nn.init.trunc_normal_(tensor, std=0.02)
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            part.reset_parameters()
