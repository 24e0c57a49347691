"""The axes of Eq. 1, loss = L(N(T(I_full)), H(S(I_masked))), as contracts; nothing here computes.

What validation must know before a weight is loaded is a property of the component's Config.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor, nn

from .registry import Component, by_name
from .types import (
    Encoded,
    Geometry,
    Mask,
    Penalized,
    Progress,
    Query,
    Rendition,
    Size,
    Tap,
    Target,
    TargetSpec,
    View,
)

Rng = np.random.Generator


class Student(Component, nn.Module):
    """S: a masked view to tokens. The same call without a mask serves evaluation and self-teachers.

    dim: width D of its tokens.  geometry: image and grid it was built for.
    """

    class Config(Component.Config):
        @property
        def geometry(self) -> Geometry:
            raise TypeError(f"{type(self).__qualname__} must say its geometry")

        @property
        def dense(self) -> bool:
            """One token per grid position even when masked (mask tokens, gates); False if hidden patches are dropped."""
            return True

        @property
        def answers(self) -> Literal["visible", "hidden", "all"]:
            """Positions it returns tokens for when masked: visible patches if it drops the others, unless it predicts them."""
            return "all" if self.dense else "visible"

        @property
        def can_hide(self) -> bool:
            """Takes a mask; False for students built to see whole images only."""
            return True

        @property
        def can_substitute(self) -> bool:
            """Takes a mask with `source`: another patch's embedding in place of a hidden one's."""
            return False

        @property
        def can_resize(self) -> bool:
            """Takes views of another size than its geometry's, of whole patches, with as many tokens as they have."""
            return False

        @property
        def can_narrow(self) -> bool:
            """Takes `asked`, and spares what only tokens at other positions need."""
            return False

        @property
        def num_blocks(self) -> int:
            """Blocks that a Tap can name, all as wide as the tokens."""
            return 0

        @property
        def num_layers(self) -> int:
            """Layers for layer-wise rates, between the embeddings and what follows the last block."""
            return self.num_blocks

        @property
        def on_labels(self) -> Mapping[str, Any]:
            """Fields that training on labels changes, and to what: see `Student.adapt`."""
            return {}

        @property
        def num_prefix(self) -> int:
            """Class and register tokens before the patches; the class token, if there is one, is the first."""
            return 0

        def build(self) -> Student:
            student: Student = self.component(self)
            return student

    config: Any
    dim: int
    geometry: Geometry

    @abstractmethod
    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view, mask (None: the whole image) -> Encoded with the asked taps.

        A student that can narrow has a fourth argument, asked (B, M) or None: the positions that anyone will read. It may
        answer for those alone (Encoded.index is `asked`), and then taps of its last block hold the prefix and those.
        """

    def adapt(self, **changes: Any) -> Student:
        """A student whose config differs in these fields, with this one's weights: for images of another size, drop path,
        and whatever else training on labels changes. Raises ValueError where the weights cannot follow."""
        config = type(self.config).model_validate(self.config.model_dump() | changes)
        twin: Student = config.build()
        state, wanted = self.state_for(twin), twin.state_dict()
        misfits = [name for name in {**state, **wanted} if name not in state or name not in wanted]
        misfits += [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
        if misfits:
            listed = ", ".join(f"{field}={value}" for field, value in changes.items())
            raise ValueError(
                f"student {self.config.name}: its weights cannot follow {listed}: {', '.join(misfits[:4])}"
            )
        twin.load_state_dict(dict(state))
        return twin

    def state_for(self, twin: Student) -> Mapping[str, Tensor]:
        """This one's weights under the names and in the shapes of `twin`, which is built from a changed config."""
        return self.state_dict()

    def layer_of(self, parameter: str) -> int:
        """For layer-wise rates: 0 for embeddings, k for block k (1-based), num_layers + 1 for the rest."""
        raise ValueError(
            f"student {type(self).__name__} does not say which layer {parameter!r} belongs to; unset layer_decay"
        )


class Teacher(Component, nn.Module):
    """T: a full view to a target on the student's grid. Frozen and in eval mode, buffers included, whatever the engine calls.

    spec: what it returns.  rendition: the cut of the view it reads (None: the student's own image).
    """

    class Config(Component.Config):
        weights_from: ClassVar[tuple[str, ...]] = ()
        """Fields that say where its weights come from; with None or False in all of them they are new."""

        @property
        def discrete(self) -> bool:
            """Returns ids instead of vectors."""
            return False

        @property
        def needs_mask(self) -> bool:
            """Reads the mask, so it runs once per fold."""
            return False

        @property
        def moves(self) -> bool:
            """It is made of the student, or of an average of it, so its target changes as the student learns."""
            return False

        @property
        def reads_folds(self) -> bool:
            """Its target under one mask fold is made of what the student returned under the others; see `from_folds`."""
            return False

        @property
        def differentiable(self) -> bool:
            """The gradient flows through the target."""
            return False

        @property
        def batch_statistics(self) -> bool:
            """Its BatchNorms normalize by the batch while training, and their running statistics follow."""
            return False

        @property
        def cacheable(self) -> bool:
            """Its target is the same whenever it sees the same crop. Also False where that costs less than keeping it."""
            changing = self.moves or self.needs_mask or self.reads_folds or self.differentiable or self.batch_statistics
            return not changing

        @property
        def taps(self) -> tuple[Tap, ...]:
            """Places of the student it reads, for teachers made of the student."""
            return ()

        @property
        def reloads(self) -> bool:
            """Its weights come from elsewhere whenever it is built, so checkpoints leave them out."""
            return any(getattr(self, field) not in (None, False) for field in self.weights_from)

        def untrained(self) -> Self:
            """The same teacher with new weights, which cost as much as others: for counting and trials."""
            absent = {field: False if isinstance(getattr(self, field), bool) else None for field in self.weights_from}
            return self.model_copy(update=absent)

        def build(self, geometry: Geometry) -> Teacher:
            teacher: Teacher = self.component(self, geometry)
            return teacher

    config: Any
    spec: TargetSpec
    rendition: Rendition | None = None

    @abstractmethod
    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """view (the whole image), mask -> Target on the student's grid."""

    def from_folds(self, others: Sequence[Encoded]) -> Target:
        """The student's answers under the view's other mask folds -> Target, for teachers that read folds."""
        raise TypeError(f"{type(self).__name__} does not read folds")

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, apart from BatchNorms of teachers with batch statistics."""
        super().train(False)
        if self.config.batch_statistics:
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.train(mode)
        return self

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def bind(self, student: Student, head: Head) -> None:
        """Called once, after all parts exist; self-teachers copy or keep what they need."""

    def fit(self, views: Iterable[View]) -> None:
        """Called once before a new run, with views of the training data (device of the run), if `needs_fit`."""

    @property
    def needs_fit(self) -> bool:
        return False

    def on_step_start(self, progress: Progress) -> None:
        """Before the forward passes of an optimizer step, once however many micro-batches it has."""

    def on_step_end(self, progress: Progress) -> None:
        """After the optimizer step; `progress.step` counts the steps done before it."""

    def on_epoch_end(self, progress: Progress) -> None:
        """After the last step of an epoch."""

    def picture(self, tokens: Tensor) -> Tensor | None:
        """Targets or predictions (B, N, dim) as images (B, C, H, W) in [0, 1], for teachers that live in pixel space."""
        return None


class Norm(Component, nn.Module):
    """N: (B, N, D) -> (B, N, D) on the dense target; no parameters, float32."""

    class Config(Component.Config):
        @property
        def world(self) -> bool:
            """Its value depends on the other images of the global batch."""
            return False

        def build(self) -> Norm:
            norm: Norm = self.component(self)
            return norm

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) float32 -> (B, N, D)."""


class Head(Component, nn.Module):
    """H: encoded tokens and a query to predictions. Gathers before its last projection."""

    class Config(Component.Config):
        @property
        def needs_dense(self) -> bool:
            """Reads mask tokens at hidden positions from the student."""
            return False

        @property
        def needs_class(self) -> bool:
            """Reads the student's class token where the image or the class token is asked for."""
            return False

        @property
        def reads_asked(self) -> bool:
            """Of the student's final tokens, and of its last block, it reads the prefix and the queried positions only."""
            return False

        @property
        def taps(self) -> tuple[Tap, ...]:
            """Places of the student it reads beside the final tokens."""
            return ()

        def build(self, student: Student, out_dim: int) -> Head:
            head: Head = self.component(self, student, out_dim)
            return head

    student_only: tuple[str, ...] = ()
    """Names of modules of it that serve the student's predictions alone, such as a predictor; `target` does without them."""

    @abstractmethod
    def forward(self, encoded: Encoded, query: Query) -> Tensor | tuple[Tensor, ...] | Penalized:
        """-> (B, M, out_dim); (B, 1, out_dim) for the image; or several predictions of one target, whose losses add; or
        predictions with a price of their own."""

    def forward_all(self, encoded: Sequence[Encoded], queries: Sequence[Query]) -> list[Any]:
        """Its answers on all passes of the student; a head whose statistics are of all passes overrides this."""
        return [self(one, query) for one, query in zip(encoded, queries, strict=True)]

    def target(self, encoded: Encoded, query: Query) -> Tensor:
        """What a self-teacher's copy of it answers: the prediction itself, unless the head ends in a predictor."""
        answer: Tensor = self(encoded, query)
        return answer

    def momentum_copy(self) -> Head:
        """A copy for `target`, without the modules that serve the student alone."""
        twin = copy.deepcopy(self)
        for name in self.student_only:
            delattr(twin, name)
        return twin

    @property
    def needs_fit(self) -> bool:
        return False

    def fit(self, encoded: Iterable[Encoded]) -> None:
        """Called once before a new run, with what the student makes of training data, if `needs_fit`."""

    def on_step_start(self, progress: Progress) -> None:
        """Before the forward passes of an optimizer step, once however many micro-batches it has."""

    def on_step_end(self, progress: Progress) -> None:
        """After the optimizer step: where a codebook moves, once for all micro-batches and processes."""

    @property
    def health(self) -> Mapping[str, Tensor]:
        """Scalars worth logging, detached, on the device: how a codebook is used, and the like."""
        return {}


class Loss(Component, nn.Module):
    """L: per-query distances. Averaging happens once, in Objective.

    out_dim: width that predictions of this target need.
    """

    class Config(Component.Config):
        @property
        def discrete(self) -> bool:
            """Compares with ids."""
            return False

        @property
        def joint(self) -> bool:
            """A function of the set of queries: forward returns (), and all folds and views are passed at once."""
            return False

        @property
        def world(self) -> bool:
            """Its value depends on the other images of the global batch."""
            return False

        @property
        def contrasts(self) -> bool:
            """Compares with every patch of the image, asked about or not: its forward takes a fourth argument, `keys`
            (B, N, dim), the dense target, or None."""
            return False

        @property
        def num_groups(self) -> int | None:
            """Runs of equal length that it takes hidden patches in, each as a whole, as masks of so many groups give them;
            None if it takes each query alone."""
            return None

        def build(self, spec: TargetSpec) -> Loss:
            loss: Loss = self.component(self, spec)
            return loss

    out_dim: int

    def __init__(self, config: Any, spec: TargetSpec) -> None:
        super().__init__()
        self.config = config
        self.out_dim = spec.dim

    @abstractmethod
    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """pred (B, M, out_dim), target (B, M, dim) or ids (B, M), valid (B, M) bool or None -> (B, M), or ()."""

    @property
    def health(self) -> Mapping[str, Tensor]:
        """Scalars of the last forward's targets worth logging beside those of every target, detached, on the device."""
        return {}


class MaskSampler(Component):
    """Which patches to hide, drawn in loader workers from the address of the image."""

    class Config(Component.Config):
        def num_hidden(self, grid: Size) -> int | None:
            """Patches hidden in every image of `grid`; None if the count varies. ValueError if no such mask exists."""
            raise TypeError(f"{type(self).__qualname__} must say how many patches it hides")

        @property
        def num_folds(self) -> int:
            """K masks for each image."""
            return 1

        @property
        def substitutes(self) -> bool:
            """Some hidden patches show another patch, or themselves, instead of the mask token; see `source`."""
            return False

        @property
        def num_groups(self) -> int:
            """Groups of equal size that the hidden patches of a fold are dealt to; see `group`."""
            return 1

        @property
        def weighs(self) -> bool:
            """Some positions count more than others in every loss; see `weight`."""
            return False

        @property
        def reads_saliency(self) -> bool:
            """Drawn on the device from the first term's teacher instead of in the loader; its count must be exact."""
            return False

        def build(self) -> MaskSampler:
            sampler: MaskSampler = self.component(self)
            return sampler

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def sample(self, grid: Size, rng: Rng) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """-> (K, N) bool, True = hidden. A sampler that reads saliency returns any mask of the right count."""

    def source(self, hidden: np.ndarray[Any, np.dtype[np.bool_]], rng: Rng) -> np.ndarray[Any, np.dtype[np.int64]]:
        """hidden (K, N) -> (K, N) int64, the patch shown at each position or -1, for samplers that substitute."""
        raise TypeError(f"{type(self).__name__} does not substitute patches")

    def group(self, hidden: np.ndarray[Any, np.dtype[np.bool_]], rng: Rng) -> np.ndarray[Any, np.dtype[np.int64]]:
        """hidden (K, N) -> (K, N) int64, the group of each hidden patch (others: any), for samplers of several groups."""
        raise TypeError(f"{type(self).__name__} does not group hidden patches")

    def weight(self, hidden: np.ndarray[Any, np.dtype[np.bool_]], grid: Size) -> np.ndarray[Any, np.dtype[np.float32]]:
        """hidden (K, N) -> (K, N) float32, the factor of each position's loss, for samplers that weigh."""
        raise TypeError(f"{type(self).__name__} does not weigh positions")

    def from_saliency(self, saliency: Tensor, noise: Tensor) -> tuple[Mask, ...]:
        """saliency (B, N), noise (B, N) uniform in [0, 1) -> K masks, for samplers that read saliency."""
        raise TypeError(f"{type(self).__name__} does not read saliency")


class Views(Component):
    """From one decoded image to the named crops the student and the teachers see."""

    class Config(Component.Config):
        @property
        def names(self) -> tuple[str, ...]:
            """Names of the views it makes."""
            return ("main",)

        def size_of(self, view: str, size: Size) -> Size:
            """Pixels (H, W) of a view, for a student that was built for `size`."""
            return size

        def build(self) -> Views:
            views: Views = self.component(self)
            return views

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        """image uint8 (C, H, W) of any size -> {name: View with batch size 1, image of its size, and every rendition}.

        A view of another size than `size` needs no renditions.
        """


if TYPE_CHECKING:
    StudentConfig = Student.Config
    TeacherConfig = Teacher.Config
    NormConfig = Norm.Config
    HeadConfig = Head.Config
    LossConfig = Loss.Config
    MaskConfig = MaskSampler.Config
    ViewsConfig = Views.Config
else:
    StudentConfig = by_name(Student.Config, "students")
    TeacherConfig = by_name(Teacher.Config, "teachers")
    NormConfig = by_name(Norm.Config, "norms")
    HeadConfig = by_name(Head.Config, "heads")
    LossConfig = by_name(Loss.Config, "losses")
    MaskConfig = by_name(MaskSampler.Config, "masks")
    ViewsConfig = by_name(Views.Config, "views")
