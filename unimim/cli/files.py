"""Commands that turn files into other files: convert and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..exporters import FORMATS, format_of
from ..registry import plugins
from .console import say
from .errors import Problems
from .inputs import check_out
from .listing import Overrides

Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Required: the folder to write.", show_default=False)
]


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Official checkpoint: .pth, .pt or .safetensors.")],
    changes: Overrides = None,
    kind: Annotated[
        str, typer.Option("--as", metavar="KIND", help="Required: see unimim list importers.", show_default=False)
    ] = "",
    out: Out = None,
    key: Annotated[str | None, typer.Option(metavar="K", help="Part of the file.", show_default="model, ...")] = None,
    allow_missing_head: Annotated[bool, typer.Option("--allow-missing-head", help="Take the encoder alone.")] = False,
) -> None:
    """Turn an official checkpoint into a weights folder."""
    problems = Problems()
    importers = plugins()["importers"]
    if kind not in importers:
        with problems.of("--as"):
            importers[kind]
    if not file.is_file():
        problems.add(f"no file {file}")
    check_out(problems, out)
    problems.refuse()
    assert out is not None
    from ..importers.commands import convert

    say(convert(file, kind, out, changes or [], key, allow_missing_head))


def export(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A weights folder, or the folder of a run.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help=f"{', '.join(FORMATS)}.")] = "timm",
    out: Out = None,
) -> None:
    """Write a trained student for another library, and check it there.

    timm: a folder for timm.create_model. hf: the same with a model card, for the Hugging Face hub. onnx, torch: one file
    of the graph, from RGB in [0, 1] to patch features. Nothing is left at --out unless it computes what the student does.
    """
    problems = Problems()
    if not path.is_dir():
        problems.add(f"no folder {path}")
    with problems.of():
        format_of(to)
    check_out(problems, out)
    problems.refuse()
    assert out is not None
    from ..exporters.command import export

    say(export(path, to, out))
