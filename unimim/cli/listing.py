"""Commands that only look: list, show, table1, plugins, schema."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..hooks import KINDS
from ..provenance import source_of, uncite
from ..registry import Entry, ForeignError, Plugins, did_you_mean, foreign_code
from ..registry import plugins as live_plugins
from ..terminal import clean
from .console import emit, remark, say, show_card, show_table, table
from .errors import Problems

if TYPE_CHECKING:
    from ..recipe import Recipe

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, e.g. loss=l1 student.depth=6.", show_default=False),
]
AXES = {
    "teacher": ("Teacher", "T"),
    "student": ("Student", "S"),
    "head": ("MIM Head", "H"),
    "norm": ("Normalization", "N"),
    "loss": ("Loss Function", "L"),
}
"""The five columns of the paper's Table 1, in its words and order."""


def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.", show_default="all")] = "",
    as_json: Json = False,
) -> None:
    """List recipes, and everything a recipe can name."""
    if kind and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}; kinds: {', '.join(KINDS)}")
    registries = live_plugins()
    kinds = [kind] if kind else ["recipes", *(other for other in KINDS if other != "recipes")]
    rows = {each: _rows(each, registries) for each in kinds}
    if as_json:
        emit([row for found in rows.values() for row in found])
        return
    for each, found in rows.items():
        if each != kinds[0]:
            say()
        columns = ["name", "summary", *(["status"] if each == "recipes" else []), "plugin"]
        lines = [[*(row[column] for column in columns[:-1]), f"{row['plugin']} {row['version']}"] for row in found]
        show_table(table(columns, lines, title=each, fold="summary"))
    bad = [plugin.name for plugin in registries.loaded if plugin.problem]
    if bad:
        say(f"problems in {', '.join(bad)}: see unimim plugins", "yellow")


def _rows(kind: str, registries: Plugins) -> list[dict[str, str]]:
    versions = {plugin.name: plugin.version for plugin in registries.loaded}
    entries = [registries[kind].entries[name] for name in registries[kind]]
    return [
        {
            "kind": kind,
            "name": entry.name,
            "summary": entry.summary,
            "plugin": entry.plugin,
            "version": versions[entry.plugin],
            **({"status": _status(entry)} if kind == "recipes" else {}),
        }
        for entry in entries
    ]


def _status(entry: Entry) -> str:
    """What a recipe says of itself, or that it cannot be read; without importing torch."""
    try:
        with foreign_code():  # a plugin's recipe must not hide the others
            data, _ = uncite(entry.load()())
            return str(data.get("status", "unverified"))
    except ForeignError as error:
        return f"broken ({error})"


def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name from unimim list recipes, or a YAML file.")],
    changes: Overrides = None,
    provenance: Annotated[bool, typer.Option("--provenance", help="The source of every value.")] = False,
    diff: Annotated[str, typer.Option(metavar="OTHER", help="Only what differs from OTHER.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Show a recipe: its five axes, and every value.

    What it prints is a YAML file that train takes.
    """
    from ..recipe import load

    problems = Problems()
    found, other = None, None
    with problems.of():
        found = load(recipe, changes or [])
    if diff:
        with problems.of():
            other = load(diff)
    problems.refuse()
    assert found is not None
    if other is not None:
        _show_difference(other, found, as_json)
    elif as_json:
        emit({"hash": found.hash, "axes": found.axes(), "recipe": found.data(), "sources": _sources(found)})
    else:
        _show_card(found)
        if provenance:
            rows = [(leaf["setting"], leaf["value"], leaf["source"]) for leaf in _sources(found)]
            show_table(table(["setting", "value", "source"], rows, fold="source"))
        else:
            say(found.yaml())


def _show_card(recipe: Recipe) -> None:
    """The head of a recipe, as comment lines of YAML."""
    axes = recipe.axes()
    checked = "verified" if recipe.status == "verified" else "not verified"
    changed = [path for path, source in recipe.provenance.items() if source == "command line"]
    but = f", but changed: {', '.join(changed)}" if changed else ""
    say(f"# {recipe.title or recipe.name}   {recipe.paper}", "bold")
    say(f"# {checked} against official code{but}; hash {recipe.hash}", "dim")
    for axis, (name, symbol) in AXES.items():
        say(f"#   {symbol}  {name:<14} {axes[axis]}")


def _sources(recipe: Recipe) -> list[dict[str, Any]]:
    from ..recipe import leaves

    return [
        {"setting": path, "value": value, "source": source_of(path, recipe.provenance)}
        for path, value in leaves(recipe)
    ]


def _show_difference(before: Recipe, after: Recipe, as_json: bool) -> None:
    """What differs, by axis and then value by value."""
    from ..recipe import leaves

    axes = [(name, before.axes()[axis], after.axes()[axis]) for axis, (name, _) in AXES.items()]
    old, new = dict(leaves(before)), dict(leaves(after))
    settings = [(path, old.get(path, "-"), new.get(path, "-")) for path in dict.fromkeys([*old, *new])]
    differing = [[row for row in rows if row[1] != row[2]] for rows in (axes, settings)]
    if as_json:
        keys = ("axis", "before", "after"), ("setting", "before", "after")
        listed = [[dict(zip(key, row, strict=True)) for row in rows] for key, rows in zip(keys, differing, strict=True)]
        emit({"before": before.name, "after": after.name, "axes": listed[0], "settings": listed[1]})
    elif not differing[1]:
        say(f"{after.name} computes the same as {before.name} ({after.hash})")
    else:
        for what, rows in zip(("axis", "setting"), differing, strict=True):
            if rows:
                show_table(table([what, before.name, after.name], rows))


def table1(
    markdown: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
    comma: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Print the paper's Table 1, in its order, as far as it is installed."""
    if markdown + comma + as_json > 1:
        raise ValueError("give one of --md, --csv, --json")
    from ..recipe import load
    from ..recipes.paper import TABLE1, place

    recipes = []
    for entry in live_plugins()["recipes"].entries.values():
        try:
            recipe = load(entry.name)
        except ValueError as error:
            remark(f"left out: {error}", "yellow")
            continue
        recipes += [recipe] if recipe.row else []
    recipes.sort(key=lambda recipe: place(recipe.row, recipe.axes()["teacher"]))
    found = {place(recipe.row, recipe.axes()["teacher"]) for recipe in recipes}
    missing = [f"{row.method.partition(' (')[0]} ({row.teacher})" for i, row in enumerate(TABLE1) if i not in found]
    header = ["Methods", *(f"{name} {symbol}" for name, symbol in AXES.values()), "recipe", "status"]
    rows = [[recipe.row, *(recipe.axes()[axis] for axis in AXES), recipe.name, recipe.status] for recipe in recipes]
    if as_json:
        keys = ["method", *AXES, "recipe", "status"]
        emit([dict(zip(keys, row, strict=True)) for row in rows])
    elif markdown:
        escaped = [[clean(cell).replace("|", "\\|").replace("&", "&amp;") for cell in row] for row in rows]
        say("\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *escaped]))
    elif comma:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        say(buffer.getvalue().rstrip("\n"))
    else:
        symbols = [symbol for _, symbol in AXES.values()]
        show_table(table(["Methods", *symbols, "recipe", "status"], rows, fold="Methods"))
        say("; ".join(f"{symbol} {name}" for name, symbol in AXES.values()), "dim")
        if missing:
            say(f"not installed: {', '.join(missing)}", "dim")


plugins_app = typer.Typer(
    help="Show installed plugins, or begin a new one.",
    epilog=(
        "UNIMIM_PLUGINS=none imports no plugin; UNIMIM_PLUGINS=a,b only these, by the name of the distribution or of its "
        "entry point. UNIMIM_PLUGIN_SECONDS (60) is how long each may take to import."
    ),
    invoke_without_command=True,
)


@plugins_app.callback()
def plugins(
    context: typer.Context,
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("-v", help="With the traceback of every problem.")] = False,
) -> None:
    """Show installed plugins and what is wrong with them, or begin a new one."""
    if context.invoked_subcommand is not None:
        return
    loaded = live_plugins().loaded
    if as_json:
        emit([asdict(plugin) for plugin in loaded])
        return
    for plugin in loaded:
        say(f"{plugin.name} {plugin.version}", "bold")
        provided = [(f"  {kind}", ", ".join(names)) for kind, names in plugin.provides.items() if names]
        problem = [("  problem", plugin.problem)] if plugin.problem else []
        show_card([("  file", plugin.file), *(provided or [("  provides", "nothing")]), *problem])
        if verbose and plugin.traceback:
            say(plugin.traceback, "dim")


@plugins_app.command("new", epilog="Example: unimim plugins new unimim-depth --kind teacher")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the distribution, e.g. unimim-depth.")],
    kind: Annotated[str, typer.Option(help="teacher, norm, loss, head or mask.")] = "teacher",
    out: Annotated[Path | None, typer.Option(help="Folder to write, new.", show_default="NAME")] = None,
) -> None:
    """Write a plugin that installs, with one working component and its tests."""
    from ..scaffold import new_plugin

    for path in new_plugin(name, kind, out or Path(name)):
        say(path)


def schema(
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="stdout")] = None,
) -> None:
    """Print the JSON Schema of a recipe, for editors.

    It knows every installed component.
    """
    from ..schema import schema

    if out is None:
        emit(schema())
    else:
        out.write_text(json.dumps(schema(), indent=2), encoding="utf-8")
        say(out)
