"""The command that says what a training step costs: bench. What a training would cost elsewhere is planning's."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import emit, remark, say, show_table, table
from .errors import Failed, Problems
from .inputs import Device, changes_of, read_recipe, refuse_torchrun, run_options, split_changes
from .listing import Json
from .planning import Bandwidth, Fp32Tflops, Gpus, GpuTflops, Images, MemoryBandwidth, Offered, Utilization, show_plans

if TYPE_CHECKING:
    from ..evaluation.cost import Case, Cost
    from ..recipe import Recipe

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|KEY=VALUE",
            help="Recipes; changes for all, or for one as RECIPE:KEY=VALUE, e.g. maskdistill:teacher.pretrained=null.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="SIZE", help="micro, tiny, base, ...: size of the student.", show_default="its own")
    ] = "",
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Images a step, over all processes.", show_default="8; with --plan the recipe's"
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="T", help="fp32 or bf16 (autocast).", show_default="the recipe's")] = "",
    procs: Annotated[int, typer.Option(metavar="P", help="Processes that share the batch.")] = 1,
    steps: Annotated[int, typer.Option(metavar="N", min=2, help="Steps that count, after three that do not.")] = 20,
    device: Device = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help='Let two take turns and print the ratio B / A; each a recipe with its changes: "mae loss=l1".',
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Measure nothing: say what the training would cost on GPUs, by a model.")
    ] = False,
    gpus: Gpus = None,
    gpu_tflops: GpuTflops = None,
    fp32_tflops: Fp32Tflops = None,
    bandwidth: Bandwidth = None,
    utilization: Utilization = None,
    memory_bandwidth: MemoryBandwidth = None,
    images: Images = None,
    as_json: Json = False,
) -> None:
    """Measure a training step: time, memory, FLOPs, and each part's share.

    Random images, a fresh process for each recipe. Weights of a teacher do not change what it costs: leave them out.
    How it is run can be part of it: run.compile=true, run.recompute=true, run.parallel=fsdp.
    Targets that a recipe replays (replay.crops=1) lie in the batch already, as from a full cache; reading it is not measured.
    """
    problems = Problems()
    offered = Offered(gpus, gpu_tflops, fp32_tflops, bandwidth, utilization, memory_bandwidth, images)
    offered.check(problems, plan)
    refuse_torchrun(problems, "bench")
    if dtype and dtype not in PRECISIONS:
        problems.add(f"--dtype: {dtype!r} is neither fp32 nor bf16")
    sides = _given(problems, words or [], compare)
    size = 8 if batch is None and not plan else batch
    common = [] if size is None else [f"batch={size}"]
    common += [f"precision={PRECISIONS[dtype]}"] if dtype in PRECISIONS else []
    if plan:
        if compare or procs != 1 or device or any(split_changes(words)[1] for _, words in sides):
            problems.add("--plan: measures nothing, so --compare, --procs, --device and run.KEY say nothing to it")
        sized = [_sized(problems, name, [*split_changes(words)[0], *common], model) for name, words in sides]
        show_plans(problems, [recipe for recipe in sized if recipe], offered, as_json)
        return
    cases = [case for side in sides for case in _cases(problems, *side, common, model, procs, device)]
    problems.refuse()
    costs = _measure([cases] if compare else [[case] for case in cases], steps)
    if compare:
        _show_ratio(costs, [" ".join([name, *changes]) for name, changes in sides], as_json)
    elif as_json:
        emit(costs[0].data() if len(costs) == 1 else [cost.data() for cost in costs])
    else:
        _show(costs, [cost.recipe for cost in costs])
    replaying = ", ".join(dict.fromkeys(case.recipe.name for case in cases if case.recipe.replay))
    if replaying and not as_json:
        say(
            f"{replaying}: its replayed targets lie in the batch, as from a full cache; reading it is not measured",
            "dim",
        )


def _given(
    problems: Problems, words: Sequence[str], compare: tuple[str, str] | None
) -> list[tuple[str, Sequence[str]]]:
    """(recipe, its changes) of everything that is to be measured."""
    if compare is None:
        own = changes_of(problems, words)
        if not own:
            problems.add("no recipe to measure; unimim list recipes shows their names")
        return [*own.items()]
    sides: list[tuple[str, Sequence[str]]] = []
    shared = [word for word in words if "=" in word]
    for word in words:
        if word not in shared:
            problems.add(f"{word}: --compare names both recipes itself; only KEY=VALUE for both may stand beside it")
    for text in compare:
        with problems.of(f"--compare {text!r}"):
            name, *changes = shlex.split(text) or [""]
            if "=" in name or not name or any("=" not in change for change in changes):
                raise ValueError('give a recipe and its changes, in quotes: "mae loss=l1 head.depth=4"')
            sides.append((name, [*shared, *changes]))
    return sides


def _sized(problems: Problems, name: str, changes: Sequence[str], size: str) -> Recipe | None:
    """The recipe, with the student's fields that `size` names as it says, unless a change says otherwise."""
    if not size:
        return read_recipe(problems, name, changes)
    from pydantic import ValidationError

    which = [change for change in changes if change.partition("=")[0] in ("student", "student.name")]
    recipe = read_recipe(problems, name, which)
    if recipe is None:
        return None
    student = recipe.student
    try:
        made = type(student).model_validate({"name": student.name, "size": size})
    except ValidationError as error:
        why = error.errors()[0]
        told = why["msg"].removeprefix("Value error, ")
        told = f"student {student.name!r} has no sizes by name" if why["type"] == "extra_forbidden" else told
        problems.add(f"--model: {recipe.name}: {told}")
        return None
    chosen = {change.partition("=")[0] for change in changes}
    named = {f"student.{field}": getattr(made, field) for field in sorted(made.model_fields_set - {"name"})}
    sizes = [f"{key}={_yaml(value)}" for key, value in named.items() if key not in chosen]
    return read_recipe(problems, name, [*changes, *sizes])


def _yaml(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _cases(
    problems: Problems,
    name: str,
    words: Sequence[str],
    common: Sequence[str],
    model: str,
    procs: int,
    device: str | None,
) -> list[Case]:
    """The case of one side of a comparison, or none if something about it is wrong."""
    from ..evaluation.cost import OPTIONS, Case

    changes, of_run = split_changes(words)
    run = run_options(problems, None, procs, of_run, device=device)
    recipe = _sized(problems, name, [*changes, *common], model)
    if recipe is None or run is None or procs < 1:
        return []
    with problems.of(f"--batch, --procs: {recipe.name}"):
        options = {field: getattr(run, field) for field in run.model_fields_set - {"out", "device"}}
        for field in options.keys() - OPTIONS:
            problems.add(f"run.{field}: not part of a measured step; bench heeds run.{', run.'.join(OPTIONS)}")
        return [Case(recipe, run.device, procs, model, options)]
    return []


def _measure(together: Sequence[Sequence[Case]], steps: int) -> list[Cost]:
    """The costs of all cases; those in one list take turns."""
    from ..evaluation.turns import Unmeasured, measure

    try:
        return [cost for cases in together for cost in measure(cases, steps, say=lambda text: remark(text, "dim"))]
    except Unmeasured as error:
        raise Failed(f"{error}; a smaller --batch needs less memory") from error


def _show(costs: Sequence[Cost], names: Sequence[str]) -> None:
    columns = ["recipe", "model", "s/step", "images/s", "MB", "GFLOP/step", "T", "S", "H"]
    columns += ["teacher", "student", "head", "optimizer", "data", "of matmul"]
    rows = [_row(name, cost) for name, cost in zip(names, costs, strict=True)]
    show_table(table(columns, rows, fold="recipe"))
    first = costs[0]
    undisturbed = ", ".join(f"{cost.clean_steps} of {cost.steps}" for cost in costs)
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    where = f"{first.procs} x {threads}" if first.procs > 1 else threads
    say(f"batch {first.batch}, {first.dtype}, {first.device}, {where}; undisturbed steps: {undisturbed}", "dim")
    say("data: made by loader processes beside the step; its time in one of them over the step's", "dim")


def _row(name: str, cost: Cost) -> list[str]:
    shares = [f"{100 * share:.0f} %" for share in [*cost.shares.values(), cost.data_share, cost.matmul_share]]
    flops = [f"{count / 1e9:.4g}" for count in [cost.flops_per_step, *cost.flops.values()]]
    time, memory = f"{cost.step_time_median_s:.4g}", f"{cost.memory_mb:.0f}"
    return [name, cost.model, time, f"{cost.images_per_s:.4g}", memory, *flops, *shares]


def _show_ratio(costs: Sequence[Cost], names: Sequence[str], as_json: bool) -> None:
    from ..evaluation.cost import ratios

    ratio = ratios(costs)[1]
    if as_json:
        emit({"a": costs[0].data(), "b": costs[1].data(), "ratio": asdict(ratio)})
        return
    _show(costs, ["A", "B"])
    for letter, name in zip("AB", names, strict=True):
        say(f"{letter}: {name}")
    say(
        f"B / A: step time {ratio.time:.3f} (quartiles {ratio.low:.3f} to {ratio.high:.3f} over {ratio.rounds} rounds), "
        f"CPU time {ratio.cpu:.3f}, memory {ratio.memory:.3f}, FLOPs {ratio.flops:.3f}",
        "green",
    )
