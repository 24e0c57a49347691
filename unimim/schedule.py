"""Values that change while training, and the optimizer policy of a recipe."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator


class Frozen(BaseModel):
    """A validated value: unknown fields are errors, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Schedule(Frozen):
    """v(f) = end + (start - end) g(f / until) for f < until, then end; f in [0, 1] is the fraction of training done.

    With until above 1 training ends before the schedule does (MSN: 1.25).

    g(u) = 1 - u (linear) or (1 + cos(pi u)) / 2 (cosine). A bare number is a constant.  then: another schedule that takes
    over at `until` and runs over the rest of training, its own f from 0 to 1.
    """

    start: float
    end: float
    until: float = Field(1.0, gt=0, le=10)
    shape: Literal["linear", "cosine"] = "linear"
    then: Schedule | None = Field(None, exclude_if=lambda then: then is None)

    @model_validator(mode="after")
    def _leaves_time(self) -> Schedule:
        if self.then is not None and self.until >= 1:
            raise ValueError("then needs until below 1, which leaves time for it")
        return self

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, data: Any) -> Any:
        return {"start": data, "end": data} if isinstance(data, int | float | str) else data

    def bare(self) -> Any:
        """The number of a constant, else plain data."""
        return self.start if self == Schedule.model_validate(self.start) else self.model_dump()

    def __call__(self, fraction: float) -> float:
        if self.then is not None and fraction >= self.until:
            return self.then((fraction - self.until) / (1 - self.until))
        u = min(fraction / self.until, 1.0)
        remaining = 1 - u if self.shape == "linear" else (1 + math.cos(math.pi * u)) / 2
        return self.end + (self.start - self.end) * remaining


class Optimization(Frozen):
    """AdamW with linear warm-up, then a half cosine or a line, per step:

    lr(t) = w + (peak - w) t / W for t < W, w = warmup_lr, then min_lr + (peak - min_lr) (1 + cos(pi (t - W) / (T - W))) / 2,
    or with shape "linear" min_lr + (peak - min_lr) (T - t) / (T - W), where t counts steps, T is their total and W the
    warm-up steps. With `warmup_includes_peak` (BEiT) the warm-up is w + (peak - w) t / (W - 1), which reaches the peak one step
    earlier (MAE: it does not). peak = lr, or lr * batch / 256 with `lr_per_256`, which leaves warmup_lr and min_lr as they are.
    T is that total times `until`, if given: above 1 training ends before the cosine does. weight_decay may be a Schedule.
    Biases and vectors are never decayed; `no_decay` names further parameters by the last part of their name.
    optimizer "lars" puts that rate into LARS with momentum 0.9 and trust 0.001 instead, whose rate adapts to the norms of
    matrices and leaves vectors alone (MAE's linear probe); betas and eps are AdamW's.
    `layer_decay` d multiplies the rate of student block k of depth n (1-based) by d^(n + 1 - k), of its embeddings by
    d^(n + 1), and leaves everything else.
    """

    lr: float = Field(gt=0)
    lr_per_256: bool = False
    min_lr: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(0.0, ge=0, le=1e6)
    warmup_lr: float = Field(0.0, ge=0)
    warmup_includes_peak: bool = False
    until: float = Field(1.0, ge=1, le=10, exclude_if=lambda until: until == 1)
    weight_decay: Schedule = Field(0.05, validate_default=True)
    no_decay: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float | None = Field(None, gt=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    shape: Literal["cosine", "linear"] = Field("cosine", exclude_if=lambda shape: shape == "cosine")
    optimizer: Literal["adamw", "lars"] = Field("adamw", exclude_if=lambda name: name == "adamw")

    @field_validator("weight_decay")
    @classmethod
    def _not_negative(cls, decay: Schedule) -> Schedule:
        if min(decay.start, decay.end) < 0:
            raise ValueError(f"weight_decay must not be negative, as {min(decay.start, decay.end)}")
        return decay

    @field_serializer("weight_decay")
    def _bare_number(self, decay: Schedule) -> Any:
        return decay.bare()

    def peak(self, batch: int) -> float:
        return self.lr * batch / 256 if self.lr_per_256 else self.lr

    def rate(self, step: float, total_steps: int, steps_per_epoch: int, batch: int) -> float:
        """Learning rate of step `step` (0-based)."""
        peak, warmup = self.peak(batch), self.warmup_epochs * steps_per_epoch
        if step < warmup:
            ramp = warmup - 1 if self.warmup_includes_peak else warmup
            return self.warmup_lr + (peak - self.warmup_lr) * min(step / ramp, 1.0) if ramp > 0 else peak
        done = min((step - warmup) / max(total_steps * self.until - warmup, 1), 1.0)
        remaining = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.min_lr + (peak - self.min_lr) * remaining
