"""The model card of a student: what it is, what it saw, what was measured, and where every setting comes from."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..provenance import source_of
from ..recipe import Recipe, leaves
from ..report import text
from .base import Trained

AXES = {
    "teacher": ("Teacher", "T"),
    "student": ("Student", "S"),
    "head": ("MIM head", "H"),
    "norm": ("Normalization", "N"),
    "loss": ("Loss", "L"),
}
LOCAL = re.compile(r"(?:^|(?<=[=:,\[\s'\"]))~?/(?!/)[^,\]'\"]*")
"""A path of this machine, alone or as the value of something."""


def card(trained: Trained, difference: float) -> str:
    """README.md of the hub: YAML that its index reads, then the same and more in words.

    From the recipe and, beside the weights, run.json and eval.jsonl. Names that others gave are written as text: nothing
    in them ends the YAML or becomes Markdown. Folders of this machine are cut to their last name. difference: of the
    reloaded model.  ValueError if run.json or eval.jsonl is damaged.
    """
    recipe, home = trained.recipe, _home(trained.source)
    run = _json(home / "run.json") if (home / "run.json").is_file() else {}
    scores = _scores({home, trained.source}, recipe)
    parts = [
        _front(recipe, run, scores),
        f"# {_md(recipe.title or recipe.name)}",
        f"A {_md(recipe.student.label)} encoder, {recipe.student.geometry.dim} wide, for images of "
        f"{'x'.join(map(str, recipe.student.geometry.image))} pixels: features, no classifier. Pre-trained with unimim, "
        f"recipe {_md(recipe.name)} ({recipe.hash}). {_md(recipe.paper)}".rstrip(),
        *_method(recipe),
        *_use(recipe, difference),
        *_data(run),
        *_metrics(scores),
        *_training(recipe, run),
        *_settings(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def _home(source: Path) -> Path:
    """The run folder, where the weights of one were given."""
    inside = source.name == "weights" and (source.parent / "run.json").is_file()
    return source.parent if inside else source


def _json(path: Path, line: str | None = None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8") if line is None else line)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); move it away, and the card goes without it") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not an object; move it away")
    return found


def _scores(folders: Iterable[Path], recipe: Recipe) -> list[dict[str, Any]]:
    """The last score of each protocol on each data set, of this recipe's student and not of its momentum copy."""
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(folder / "eval.jsonl" for folder in folders):
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            score = _json(path, line)
            ours = score.get("hash") == recipe.hash and not score.get("momentum")
            if ours and isinstance(score.get("value"), int | float):
                key = tuple(str(score.get(part)) for part in ("task", "metric", "data", "fingerprint", "protocol"))
                last[key] = score
    return list(last.values())


def _front(recipe: Recipe, run: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> str:
    front: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "image-feature-extraction", "self-supervised-learning", "masked-image-modeling", "unimim"],
    }
    if run:
        front["datasets"] = [_slug(_spec(run.get("data")))]
    results = [_result(score) for score in scores if math.isfinite(score["value"])]
    if results:
        front["model-index"] = [{"name": text.clean_line(recipe.name), "results": results}]
    body = yaml.safe_dump(front, sort_keys=False, width=10_000)
    return f"---\nlicense: unknown  # yours to choose before you publish; the terms of data and teacher count too\n{body}---"


def _result(score: Mapping[str, Any]) -> dict[str, Any]:
    task, metric = _line(score.get("task")), _line(score.get("metric"))
    kind = {"top-1": "accuracy", "mIoU": "mean_iou"}.get(metric, _slug(metric))
    name = f"{metric} [{_line(score.get('unit'))}]" if score.get("unit") else metric
    where = "image-segmentation" if kind == "mean_iou" else "image-classification"
    return {
        "task": {"type": where, "name": task},
        "dataset": {"type": _slug(str(score.get("data"))), "name": _line(score.get("data"))},
        "metrics": [{"type": kind, "name": f"{task} {name}", "value": score["value"]}],
    }


def _method(recipe: Recipe) -> list[str]:
    axes = recipe.axes()
    rows = [[name, symbol, _md(axes[axis])] for axis, (name, symbol) in AXES.items()]
    masks = ", ".join(f"{view}: {mask.name}" for view, mask in recipe.masks.items())
    return [
        "## Method",
        "```\nloss = L( N( T(I_full) ), H( S(I_masked) ) )\n```",
        _table(["axis", "", "here"], [*rows, ["Mask", "", _md(masks)]]),
    ]


def _use(recipe: Recipe, difference: float) -> list[str]:
    config = recipe.student
    size = "x".join(map(str, config.geometry.grid))
    shape = f"{config.num_prefix} class and register tokens, then {size} patches in raster order"
    if config.name == "swin":
        shape = f"a map of {size} tokens, channels last"
    return [
        "## Use",
        "```python\nimport timm\n\n"
        'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        'features = model.forward_features(transform(image.convert("RGB")).unsqueeze(0))\n```',
        f"An image's features are {shape}. Loaded again by timm, they differed from the trained student's by at most "
        f"{difference:.2g}.",
    ]


def _data(run: Mapping[str, Any]) -> list[str]:
    data = run.get("data")
    if not isinstance(data, Mapping):
        return ["## Data", "Not recorded: exported from weights without their run."]
    rows = [
        ["name", _code(_spec(data))],
        ["training images", _md(data.get("images"))],
        ["fingerprint", _code(data.get("fingerprint"))],
    ]
    return ["## Data", _table(["", ""], rows)]


def _metrics(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    if not scores:
        return ["## Metrics", "None measured; `unimim eval` does."]
    rows = []
    for score in scores:
        unit, found = _line(score.get("unit")), score.get("interval")
        span = text.interval(float(found[0]), float(found[1]), unit) if found else text.MISSING
        value = text.with_unit(float(score["value"]), unit)
        words = [_public(score.get("data")), score.get("test", text.MISSING), score.get("protocol")]
        rows.append([_md(word) for word in (score.get("task"), score.get("metric"), value, span, *words)])
    return ["## Metrics", _table(["task", "metric", "value", "95 % interval", "data", "test images", "protocol"], rows)]


def _training(recipe: Recipe, run: Mapping[str, Any]) -> list[str]:
    rows = [["seed", str(recipe.seed)], ["images a step", str(recipe.batch)], ["epochs", f"{recipe.epochs:g}"]]
    rows += [[_md(name), _md(value)] for name, value in (run.get("versions") or {}).items()]
    source = run.get("source") or {}
    if source:
        changed = " with changes" if source.get("dirty") else ""
        rows.append(["commit of unimim", _code(source.get("commit")) + changed])
    command = _public_command(str(run["command"])) if run.get("command") else ""
    return ["## Training", *([_fence(command)] if command else []), _table(["", ""], rows)]


def _settings(recipe: Recipe) -> list[str]:
    rows = [
        [_code(path), _code(_public(value)), _md(_public(source_of(path, recipe.provenance)))]
        for path, value in leaves(recipe)
    ]
    checked = "is" if recipe.status == "verified" else "is not"
    return [
        "## Settings",
        f"Each with its source: the paper, the official code, or unimim's own choice. The recipe {checked} verified against "
        "official code.",
        _table(["setting", "value", "source"], rows),
    ]


def _spec(data: Any) -> str:
    return _public(data.get("spec") if isinstance(data, Mapping) else None)


def _public(value: object) -> str:
    """On one line, folders of this machine cut to their last name."""
    return LOCAL.sub(lambda found: Path(found[0]).name, text.clean_line(str(value)))


def _public_command(command: str) -> str:
    try:
        return shlex.join(_public(word) for word in shlex.split(command))
    except ValueError:
        return _public(command)


def _line(value: object) -> str:
    return _public("" if value is None else value)


def _slug(word: str) -> str:
    """What the hub takes as the name of a data set or a metric."""
    return re.sub(r"[^\w./-]+", "-", _public(word).removeprefix("hf:"), flags=re.ASCII).strip("-./") or "unknown"


def _md(value: object) -> str:
    return text.escape_markdown(text.clean_line(str(value)))


def _code(value: object) -> str:
    """A span of code; plain text if it holds what would end a table's cell inside one."""
    line = text.clean_line(str(value))
    if "|" in line or "\\" in line:
        return _md(line)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def _fence(block: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block)), default=0))
    return f"{fence}\n{block}\n{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
