"""Eq. 1 of the paper as a module: loss = sum over terms of weight * L(N(T(I_full)), H(S(I_masked)))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .address import uniform
from .axes import Head, Loss, Norm, Student, Teacher
from .health import agreement, target_health, warnings
from .layers.blocks import Block
from .recipe import Recipe, Term, Where
from .registry import Component
from .targets import Replayed, rounded
from .types import Batch, Encoded, Mask, Penalized, Progress, Query, Rendition, Target, View, gather


@dataclass(frozen=True)
class Pass:
    """One run of the student: on one view under one mask fold."""

    view: View
    mask: Mask
    encoded: Encoded


@dataclass(frozen=True)
class Prediction:
    """One term on one pass, before the loss: pred and target at the queried positions, and the dense target.

    penalty (B, M): what the head adds to each query's loss, if it does.  weight (B, M): factor of each query's distance.
    """

    query: Query
    preds: tuple[Tensor, ...]
    target: Tensor
    dense: Tensor
    penalty: Tensor | None = None
    weight: Tensor | None = None


class Branch(nn.Module):
    """Norm, head and loss of one term, and which of the objective's teachers it listens to."""

    def __init__(self, term: Term, teacher: Teacher, student: Student) -> None:
        super().__init__()
        self.term = term
        self.teacher = [teacher]  # in a list: the objective owns it, two branches may share it
        self.norm: Norm = term.norm.build()
        self.loss: Loss = term.loss.build(teacher.spec)
        self.head: Head = term.head.build(student, self.loss.out_dim)

    def query(self, mask: Mask, view: View) -> Query:
        """The positions of `where`, with the geometry of the target's view."""
        return query(self.term.where, mask, view)

    def predict(self, targets: Sequence[Target], passes: Sequence[Pass], view: View) -> list[Prediction]:
        """Its predictions on all passes of the student, and what each should be."""
        queries = [self.query(step.mask, view) for step in passes]
        answers = self.head.forward_all([step.encoded for step in passes], queries)
        distinct = {id(target): target for target in targets}  # folds may share one
        normed = {key: self._normalize(target) for key, target in distinct.items()}
        meeting = zip(answers, (normed[id(target)] for target in targets), passes, queries, strict=True)
        return [_meet(*each) for each in meeting]

    def _normalize(self, target: Target) -> Target:
        with torch.autocast(target.tokens.device.type, enabled=False):
            dense = target.tokens if self.term.teacher.discrete else self.norm(target.tokens.float())
            image = None if target.image is None else self.norm(target.image.float())
        return Target(dense, image)

    def distances(self, pred: Tensor, target: Tensor, valid: Tensor | None, dense: Tensor | None = None) -> Tensor:
        """Per-query distances in float32."""
        keys = {"keys": dense} if self.term.loss.contrasts else {}
        with torch.autocast(pred.device.type, enabled=False):
            distances: Tensor = self.loss(pred.float(), target, valid, **keys)
        return distances


class Objective(nn.Module):
    """Eq. 1 for one recipe: a pure function of a Batch, drop path and dropout aside. Never subclassed.

    The engine sees forward, count and the three hooks; evaluation sees student.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student: Student = recipe.student.build()
        self.teachers = nn.ModuleDict()
        self.branches = nn.ModuleDict()
        made: dict[Component.Config, Teacher] = {}
        for name, term in recipe.terms.items():
            if term.teacher not in made:
                made[term.teacher] = self.teachers[name] = term.teacher.build(self.student.geometry)
            self.branches[name] = Branch(term, made[term.teacher], self.student)
        for name, teacher in self.teachers.items():
            teacher.bind(self.student, self.terms[name].head)  # type: ignore[operator]
            teacher.freeze()  # type: ignore[operator]
        self.hides = {view: recipe.hides(view) for view in recipe.masks}
        self.narrows = _narrows(recipe)
        self.taps = tuple(dict.fromkeys(tap for term in recipe.terms.values() for tap in term.head.taps))
        self.progress = Progress(0, 1, 1)
        self.health: dict[str, Tensor] = {}
        """Scalars of the last forward, detached, on the device: "target/<term>/<what>", see `target_health`, and
        "head/<term>/<what>" of heads that tell of themselves."""

    @property
    def terms(self) -> Mapping[str, Branch]:
        return dict(self.branches.items())  # type: ignore[arg-type]

    @property
    def renditions(self) -> tuple[Rendition, ...]:
        """What the loader must cut beside the student's image."""
        wanted = [teacher.rendition for teacher in self._teachers()]
        return tuple(dict.fromkeys(rendition for rendition in wanted if rendition is not None))

    def forward(self, batch: Batch, totals: Tensor | None = None) -> dict[str, Tensor]:
        """{term: its loss, ..., "loss": their weighted sum}, scalars.

        totals (number of terms,): what each term's sum is divided by; None is the batch's own count. An engine that
        splits a step over micro-batches and processes gives the global counts, and the parts add up to the whole exactly.
        """
        own = self.count(batch) if totals is None else totals
        predictions = self.predictions(batch)
        counts = own.clamp_min(torch.finfo(own.dtype).tiny)  # nothing asked, nothing lost: 0, not 0 / 0
        losses = {name: self._reduce(name, predictions[name]) / counts[i] for i, name in enumerate(self.branches)}
        self.health = {what: value for name in self.branches for what, value in self._told(name, predictions[name][0])}
        weights = {name: term.weight(self.progress.fraction) for name, term in self.recipe.terms.items()}
        return {**losses, "loss": torch.stack([weights[name] * value for name, value in losses.items()]).sum()}

    def _told(self, name: str, first: Prediction) -> Iterator[tuple[str, Tensor]]:
        """Health of one term, by its columns in the log."""
        branch, spec = self.terms[name], self.terms[name].teacher[0].spec
        of_target = {**target_health(first.dense, spec), **branch.loss.health}
        if not spec.discrete and branch.loss.out_dim == spec.dim:
            of_target["cosine"] = agreement(first.preds[0], first.target)
        yield from ((f"target/{name}/{what}", value) for what, value in of_target.items())
        yield from ((f"head/{name}/{what}", value) for what, value in branch.head.health.items())

    def count(self, batch: Batch) -> Tensor:
        """(number of terms,) float32: what each term's sum over this batch is an average of."""
        counts = []
        for name, branch in self.terms.items():
            passes = [(batch.views[branch.term.view], mask) for view in batch.masks for mask in batch.masks[view]]
            counts.append(sum(self._weight(branch.query(mask, view), len(batch), name) for view, mask in passes))
        zero = torch.zeros((), device=batch.index.device)  # made there: a number copied to the device would wait for it
        return torch.stack([zero + count for count in counts])

    def predictions(self, batch: Batch) -> dict[str, list[Prediction]]:
        """For each term, its prediction and target on every pass of the student."""
        seen: dict[Any, Target] = {}
        if any(mask.reads_saliency for mask in self.recipe.masks.values()):
            batch = self._draw_masks(batch, seen)
        passes = []
        for view, folds in batch.masks.items():
            for mask in folds:
                passes.append(Pass(batch.views[view], mask, self._encode(batch.views[view], mask, self.hides[view])))
        made = {}
        for name, branch in self.terms.items():
            targets = [self._target(branch, batch, step.mask, seen, _others(step, passes)) for step in passes]
            made[name] = branch.predict(targets, passes, batch.views[branch.term.view])
        return made

    def _encode(self, view: View, mask: Mask, hides: bool) -> Encoded:
        """The student on one view, at the positions that anyone will read."""
        hiding = mask if hides else None
        if self.narrows is None:
            return self.student(view, hiding, self.taps)  # type: ignore[no-any-return]
        return self.student(view, hiding, self.taps, query(self.narrows, mask, view).index)  # type: ignore[no-any-return]

    def fit(self, batches: Iterable[Batch]) -> None:
        """Teachers that learn from the data before training (codebooks) do so, each from the same batches."""
        if not self.needs_fit:
            return
        seen = list(batches)
        for branch in self.terms.values():
            if branch.teacher[0].needs_fit:
                branch.teacher[0].fit(batch.views[branch.term.view] for batch in seen)
            if branch.head.needs_fit:
                branch.head.fit(self._encoded(seen))

    @torch.no_grad()
    def _encoded(self, batches: Iterable[Batch]) -> Iterator[Encoded]:
        """What the student makes of every masked view, one after the other; drop path and dropout aside."""
        training = self.student.training
        self.student.eval()
        try:
            for batch in batches:
                for view, folds in batch.masks.items():
                    for mask in folds:
                        yield self.student(batch.views[view], mask if self.hides[view] else None, self.taps)
        finally:  # also for a head that has seen enough before the last batch
            self.student.train(training)

    def replayed(self) -> dict[str, Replayed]:
        """The targets that come again with their crops, by "<teacher>/<view>"; none unless the recipe replays any."""
        recipe, found = self.recipe, {}
        geometry = self.student.geometry
        seen = {"image": geometry.image, "grid": geometry.grid, "channels": geometry.channels}
        for branch in self.terms.values():
            teacher = branch.teacher[0]
            if recipe.replay is None or not teacher.config.cacheable:
                continue
            about = {
                "teacher": teacher.config.model_dump(mode="json"),
                "rendition": teacher.rendition and asdict(teacher.rendition),
                "view": branch.term.view,
                "views": recipe.views.model_dump(mode="json"),
                "student": seen,
                "replay": recipe.replay.model_dump(),
                "precision": recipe.precision,
                "seed": recipe.seed,
            }
            vocabulary = teacher.spec.dim if teacher.spec.discrete else None
            replay = recipe.replay
            found[self._name(branch)] = Replayed(teacher, replay.precision, vocabulary, replay.crops, about)
        return found

    @torch.no_grad()
    def ask(self, batch: Batch) -> dict[str, Target]:
        """What `replayed` teachers say of a batch, rounded: its `targets`. What it brings already is not asked for again."""
        seen: dict[Any, Target] = {}
        asked = [branch for branch in self.terms.values() if branch.term.teacher.cacheable]
        return {self._name(branch): self._target(branch, batch, None, seen) for branch in asked}

    @property
    def needs_fit(self) -> bool:
        return any(part.needs_fit for part in self._learners())

    def on_step_start(self, progress: Progress) -> None:
        self.progress = progress
        for part in self._learners():
            part.on_step_start(progress)

    def on_step_end(self, progress: Progress) -> None:
        for part in self._learners():
            part.on_step_end(progress)

    def on_epoch_end(self, progress: Progress) -> None:
        for teacher in self._teachers():
            teacher.on_epoch_end(progress)

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        """What the logged scalars say has gone wrong."""
        return warnings(self.recipe, values)

    def depth_of(self, parameter: str) -> int:
        """Layers above a parameter, for layer-wise rates: n + 1 for the embeddings of a student of n blocks, 0 for heads."""
        owner, _, name = parameter.partition(".")
        if owner != "student":
            return 0
        return self.recipe.student.num_layers + 1 - self.student.layer_of(name)

    def training_state(self) -> dict[str, Tensor]:
        """The state dict without teachers whose weights are loaded whenever they are built."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(self._reloaded)}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Strict, apart from what `training_state` leaves out. Raises ValueError that names every key at fault."""
        missing, unexpected = self.load_state_dict(dict(state), strict=False)
        missing = [name for name in missing if not name.startswith(self._reloaded)]
        if missing or unexpected:
            raise ValueError(
                f"the state does not fit recipe {self.recipe.name!r}: missing {missing}, unexpected {unexpected}"
            )

    @property
    def _reloaded(self) -> tuple[str, ...]:
        frozen = self.frozen_teachers()
        return tuple(f"{name}." for name, module in self.named_modules() if module in frozen)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of student, heads and momentum copies: the units to compile, recompute and shard."""
        frozen = {part for teacher in self.frozen_teachers() for part in teacher.modules()}
        return [module for module in self.modules() if isinstance(module, Block) and module not in frozen]

    def frozen_teachers(self) -> list[nn.Module]:
        """Teachers whose weights are loaded whenever they are built, and never change."""
        return [module for module in self.modules() if isinstance(module, Teacher) and module.config.reloads]

    def _teachers(self) -> list[Teacher]:
        return list(self.teachers.values())  # type: ignore[arg-type]

    def _learners(self) -> list[Teacher | Head]:
        """What may learn beside the gradient: from data before training, and by hooks."""
        return [*self._teachers(), *(branch.head for branch in self.terms.values())]

    def _target(
        self, branch: Branch, batch: Batch, mask: Mask | None, seen: dict[Any, Target], others: Sequence[Encoded] = ()
    ) -> Target:
        """The teacher's answer, asked once for each view (and fold, if that matters to it) whoever listens; not at all if
        the batch brings it."""
        teacher, view, config = branch.teacher[0], branch.term.view, branch.term.teacher
        if self._name(branch) in batch.targets:
            return batch.targets[self._name(branch)]
        key = (teacher, view, id(mask) if config.needs_mask or config.reads_folds else None)
        if key not in seen:
            with torch.set_grad_enabled(config.differentiable and torch.is_grad_enabled()):
                if config.reads_folds:
                    seen[key] = teacher.from_folds(others)
                else:
                    seen[key] = teacher(batch.views[view], mask if config.needs_mask else None)
            if self.recipe.replay and config.cacheable:
                seen[key] = rounded(seen[key], self.recipe.replay.precision)
        return seen[key]

    def _name(self, branch: Branch) -> str:
        """ "<teacher>/<view>": what the branch's target is called in a batch."""
        teacher = next(name for name, teacher in self.teachers.items() if teacher is branch.teacher[0])
        return f"{teacher}/{branch.term.view}"

    def _draw_masks(self, batch: Batch, seen: dict[Any, Target]) -> Batch:
        """Replace the loader's placeholders by masks that follow the saliency of the first term's teacher."""
        branch = next(iter(self.terms.values()))
        placeholder = next(iter(batch.masks.values()))[0]
        saliency = self._target(branch, batch, placeholder, seen).saliency
        if saliency is None:
            raise ValueError(f"teacher {branch.term.teacher.name!r} gives no saliency for the mask sampler to read")
        noise = uniform(batch.index, saliency.shape[1], self.recipe.seed, self.progress.step)
        drawn = {
            view: mask.build().from_saliency(saliency, noise)
            for view, mask in self.recipe.masks.items()
            if mask.reads_saliency
        }
        return replace(batch, masks={**batch.masks, **drawn})

    def _weight(self, wanted: Query, num_images: int, name: str) -> Tensor | int:
        if self.recipe.reduction == "images" or wanted.index is None or self.recipe.terms[name].loss.joint:
            return num_images
        if wanted.valid is not None:
            return wanted.valid.sum()
        return num_images * (wanted.index.shape[1] + wanted.include_class)

    def _reduce(self, name: str, predictions: list[Prediction]) -> Tensor:
        """Sum of the term over its queries, in the unit that `count` counts."""
        branch = self.terms[name]
        if branch.term.loss.joint:
            preds = torch.cat([pred for p in predictions for pred in p.preds])
            targets = torch.cat([p.target for p in predictions for _ in p.preds])
            return branch.distances(preds, targets, None) * sum(len(p.target) for p in predictions)
        total = torch.zeros((), device=predictions[0].target.device)
        for p in predictions:
            costs = [branch.distances(pred, p.target, p.query.valid, p.dense) for pred in p.preds]
            costs = costs if p.weight is None else [cost * p.weight for cost in costs]
            for cost in costs if p.penalty is None else [*costs, p.penalty.float()]:
                total = total + self._sum(cost, p.query.valid)
        return total

    def _sum(self, distances: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            distances = distances.masked_fill(~valid, 0)
        if self.recipe.reduction == "tokens":
            return distances.sum()
        counts = distances.shape[1] if valid is None else valid.sum(1)
        return (distances.sum(1) / torch.as_tensor(counts).clamp_min(1)).sum()


def _meet(said: Any, target: Target, step: Pass, wanted: Query) -> Prediction:
    """What a head answered on one pass, and the normalized target of it."""
    preds, penalty = (said.preds, said.penalty) if isinstance(said, Penalized) else (said, None)
    preds = preds if isinstance(preds, tuple) else (preds,)
    weight = None if step.mask.weight is None else _weights(step.mask.weight, wanted)
    chosen = _select(target.tokens, target.image, wanted)
    return Prediction(wanted, preds, chosen, target.tokens, penalty, weight)


def _others(step: Pass, passes: Sequence[Pass]) -> list[Encoded]:
    """What the student made of the same view under its other mask folds."""
    return [other.encoded for other in passes if other.view is step.view and other is not step]


def _narrows(recipe: Recipe) -> Where | None:
    """Where alone the student's final tokens are read, if that is so of every term and the student can make use of it."""
    terms, wheres = recipe.terms.values(), {term.where for term in recipe.terms.values()}
    pointwise = all(term.head.reads_asked and not term.teacher.reads_folds for term in terms)
    if not (recipe.student.can_narrow and pointwise and len(wheres) == 1 and wheres < {"hidden", "visible"}):
        return None
    return wheres.pop()


def query(where: Where, mask: Mask, view: View) -> Query:
    """The positions that `where` means under `mask`."""
    batch, num_tokens = mask.hidden.shape
    if where == "image":
        return Query(None, box=view.box, flip=view.flip)
    if where == "hidden":
        return Query(mask.hidden_index, mask.hidden_valid, box=view.box, flip=view.flip)
    if where == "visible":
        return Query(mask.visible_index, mask.visible_valid, box=view.box, flip=view.flip)
    everywhere = torch.arange(num_tokens, device=mask.hidden.device).expand(batch, -1)
    return Query(everywhere, include_class=where == "all+class", box=view.box, flip=view.flip)


def _weights(weight: Tensor, wanted: Query) -> Tensor | None:
    """Factors (B, N) at the queried positions (B, M); 1 for the class token; None for the image."""
    if wanted.index is None:
        return None
    chosen = weight.gather(1, wanted.index)
    return torch.cat([torch.ones_like(chosen[:, :1]), chosen], 1) if wanted.include_class else chosen


def _select(dense: Tensor, image: Tensor | None, wanted: Query) -> Tensor:
    """The target at the queried positions: (B, M, dim), ids (B, M), or (B, 1, dim) for the image."""
    if wanted.index is None:
        return dense.mean(1, keepdim=True) if image is None else image
    target = gather(dense, wanted.index)
    if wanted.include_class:
        if image is None:
            raise ValueError("where: all+class needs a teacher that returns a target for the class token")
        target = torch.cat([image, target], 1)
    return target
