"""The student as its own teacher: a momentum copy, or the live weights."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..axes import Head, NormConfig, Student, Teacher
from ..schedule import Schedule
from ..types import Geometry, Mask, Progress, Query, Tap, Target, TargetSpec, View, scatter
from ..world import local


class SelfTeacher(Teacher):
    """T(I) = mean over `layers` of `layer_norm`(block output of the student), without prefix tokens.

    With weights "ema" it reads a float32 copy e <- d e + (1 - d) s, updated at the time `update` names; with "live" the
    student's own weights. No layers: the final tokens instead, or with `head` what a copy of the head makes of them, without
    its predictor if it ends in one (`Head.target`).
    data2vec (facebookresearch/data2vec_vision @ af9a363, beit/engine_for_cyclical.py) takes the last six blocks, each
    layer-normalized. Deviation: the copy follows floating-point parameters only; the official one also averages integer
    buffers, which corrupts its position index at decays of 0.9999 and above (docs/numerics.md).
    """

    class Config(Teacher.Config):
        """layers: 0-based blocks.  point: "block", the residual stream after the block, or "mlp", its MLP branch.

        average: "plain", in float32, where a step smaller than the last bit of a weight is lost: at decays above 0.9999 the
        copy stands still before it has arrived, as the official ones do; "compensated" keeps what is lost, a second copy.
        decay_per: read the schedule at every update ("step"), or at the epoch's beginning ("epoch").
        head: what a copy of the head makes of the whole image, for its patches or for the image, `head_dim` wide (None: as
        wide as the student's tokens).
        region: what it sees, the whole image or only the patches hidden from the student (a student that drops).
        batch_norm: the copy's BatchNorms normalize by their running statistics, or by the batch they see, as in training.
        differentiable_target: let the gradient flow through the target (live weights only).
        """

        name: Literal["self"] = "self"
        weights: Literal["ema", "live"] = "ema"
        decay: Schedule = Field(0.9998, validate_default=True)
        average: Literal["plain", "compensated"] = Field("plain", exclude_if=lambda average: average == "plain")
        decay_per: Literal["step", "epoch"] = "step"
        update: Literal["step_start", "step_end", "epoch_end"] = "step_end"
        layers: tuple[int, ...] = ()
        point: Literal["block", "mlp"] = "block"
        layer_norm: NormConfig = Field("identity", validate_default=True)
        head: Literal["none", "patches", "image"] = "none"
        head_dim: int | None = Field(None, gt=0, le=2**16)
        region: Literal["full", "hidden"] = "full"
        batch_norm: Literal["running", "batch"] = "running"
        differentiable_target: bool = False

        @model_validator(mode="after")
        def _consistent(self) -> SelfTeacher.Config:
            if self.average == "compensated" and self.weights == "live":
                raise ValueError("average says how the momentum copy is kept; live weights have none")
            if self.differentiable_target and self.weights == "ema":
                raise ValueError("differentiable_target needs weights: live; a momentum copy gets no gradient")
            if self.head != "none" and self.layers:
                raise ValueError("head reads the final tokens; give either head or layers")
            if self.head == "none" and self.head_dim is not None:
                raise ValueError("head_dim is the width of the head's copy; set head: patches or head: image")
            if self.head == "image" and self.region == "hidden":
                raise ValueError("head: image is asked about the whole image; set region: full")
            return self

        @property
        def batch_statistics(self) -> bool:
            return self.batch_norm == "batch"

        @property
        def moves(self) -> bool:
            return True

        @property
        def needs_mask(self) -> bool:
            return self.region == "hidden"

        @property
        def differentiable(self) -> bool:
            return self.differentiable_target

        @property
        def taps(self) -> tuple[Tap, ...]:
            return tuple(Tap(layer, self.point) for layer in self.layers)

        @property
        def label(self) -> str:
            return "EMA" if self.weights == "ema" else "Self"

    def __init__(self, config: SelfTeacher.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.spec = TargetSpec(config.head_dim or geometry.dim)
        self.layer_norm = config.layer_norm.build()
        self.copy, self.lost = nn.ModuleDict(), nn.ModuleDict()
        self.source: dict[str, Any] = {}  # a plain dict: the objective owns the student

    def bind(self, student: Student, head: Head) -> None:
        self.source = {"student": student, **({"head": head} if self.config.head != "none" else {})}
        if self.config.weights == "ema":
            self.copy["student"] = copy.deepcopy(student)
            if self.config.head != "none":
                self.copy["head"] = head.momentum_copy()
        if self.config.average == "compensated":
            self.lost.update(dict(copy.deepcopy(self.copy).items()))
            for parameter in self.lost.parameters():
                nn.init.zeros_(parameter)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, D); with region "hidden" only hidden positions are filled, others are zero."""
        parts: Any = self.copy if self.config.weights == "ema" else self.source
        encoded = parts["student"](view, self._complement(mask), self.config.taps)
        prefix = encoded.prefix.shape[1]
        if self.config.layers:
            tokens = [self.layer_norm(encoded.taps[tap][:, prefix:].float()) for tap in self.config.taps]
            target = torch.stack(tokens).mean(0)
        elif self.config.head == "image":
            image = parts["head"].target(encoded, Query(None))
            return Target(image.expand(-1, self.geometry.num_tokens, -1), image)
        elif self.config.head == "patches":
            everywhere = torch.arange(self.geometry.num_tokens, device=encoded.tokens.device)
            index = encoded.index if encoded.index is not None else everywhere.expand(len(encoded.tokens), -1)
            target = parts["head"].target(encoded, Query(index))
        else:
            target = encoded.tokens
        image = encoded.prefix[:, :1] if prefix and self.config.head == "none" else None
        return Target(self._dense(target, encoded.index), image)

    def _complement(self, mask: Mask | None) -> Mask | None:
        """The mask that hides what the student saw."""
        if mask is None or self.config.region == "full":
            return None
        return Mask(~mask.hidden, mask.visible_index, mask.hidden_index, mask.visible_valid, mask.hidden_valid)

    def _dense(self, tokens: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            return tokens
        return scatter(tokens, index, tokens.new_zeros(len(tokens), self.geometry.num_tokens, tokens.shape[-1]))

    @torch.no_grad()
    def update(self, progress: Progress) -> None:
        """e <- d e + (1 - d) s over parameters; d from the schedule at the fraction of training done."""
        if self.config.weights == "live":
            return
        per_step = self.config.decay_per == "step"
        decay = self.config.decay(progress.fraction if per_step else progress.epoch_fraction)
        averaged, live = [], []
        for name, part in self.copy.items():
            followed = dict(self.source[name].named_parameters())
            for inner, parameter in part.named_parameters():
                averaged.append(local(parameter))
                live.append(local(followed[inner]))
        if self.config.average == "plain":
            torch._foreach_lerp_(averaged, live, 1 - decay)
            return
        for mean, lost, new in zip(averaged, map(local, self.lost.parameters()), live, strict=True):
            exact = torch.lerp(mean.double() + lost, new.double(), 1 - decay)
            mean.copy_(exact)
            lost.copy_(exact - mean)

    def on_step_start(self, progress: Progress) -> None:
        if self.config.update == "step_start" and progress.step:
            self.update(progress)

    def on_step_end(self, progress: Progress) -> None:
        if self.config.update == "step_end":
            self.update(progress)

    def on_epoch_end(self, progress: Progress) -> None:
        if self.config.update == "epoch_end":
            self.update(progress)
