"""Commands about teachers: train-clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import remark, say, show_card
from .errors import Problems, run_errors
from .inputs import Data, Device, DryRun, check_out, open_data, run_options

if TYPE_CHECKING:
    from ..engine.data.sources import ImageSource

app = typer.Typer(help="Make a teacher where no released weights can be had.")


@app.callback(invoke_without_command=True)
def teachers(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("train-clip", epilog="Example: unimim teachers train-clip --data shapes --out runs/clip-teacher")
def train_clip(
    data: Data = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Required: the folder to write.", show_default=False)
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of the images.", min=1)] = 64,
    patch_size: Annotated[int, typer.Option(help="Side of the patches.", min=1)] = 8,
    width: Annotated[int, typer.Option(help="Width of the image tower, a multiple of 32.", min=32)] = 128,
    layers: Annotated[int, typer.Option(help="Blocks of the image tower.", min=1)] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 4,
    batch: Annotated[int, typer.Option(help="Images a step.", min=2)] = 256,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights, order and crops.")] = 0,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Train a small CLIP, the teacher of maskdistill-micro.

    It reads captions where the data have them (shapes), and otherwise makes them of the class names.
    """
    problems = Problems()
    source = open_data(problems, data, "train", labelled=True)
    check_out(problems, out)
    run = run_options(problems, out, 1, device=device)
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers}
    settings = sizes | {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    if image_size % patch_size:
        problems.add(f"--patch-size: {image_size} pixels are not whole patches of {patch_size}")
    problems.refuse()
    assert source
    assert run
    if dry_run:
        _show_plan(source, data, run.out, settings)
        return
    from ..teachers.clip_training import Captioned, train_clip

    with run_errors("nothing was written"):
        folder = train_clip(Captioned(source), run.out, device=run.device, log=remark, **settings)
    say(f"CLIP teacher: {folder}", "green")
    say(f"next: unimim train maskdistill-micro teacher.model=local-dir:{folder} --data {data} --out DIR")


def _show_plan(source: ImageSource, data: str, out: Path, settings: dict[str, Any]) -> None:
    from ..teachers.clip_training import Captioned

    steps = len(source) // min(settings["batch"], len(source))
    rows = [("data", f"{data}: {len(source)} images, e.g. {Captioned(source).caption(0)!r}")]
    rows += [(name.replace("_", " "), str(value)) for name, value in settings.items()]
    rows += [("steps", f"{settings['epochs']} epochs x {steps} = {settings['epochs'] * steps}"), ("out", str(out))]
    show_card(rows)
    say("dry run: nothing was started", "green")
