"""The JSON Schema of a recipe file, with every installed component: for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from .hooks import AXES
from .recipe import Recipe
from .registry import PLACE, plugins

DEFINITIONS = "#/$defs/"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file, in the full and in the flat one-term form.

    It knows fields, types, ranges and names. That the parts fit together is checked when the recipe is loaded.
    """
    parts = Recipe.model_json_schema(mode="validation")
    definitions: dict[str, Any] = parts.pop("$defs")
    term = definitions["Term"]
    for kind in AXES:
        definitions |= _component_definitions(kind)
    if "Schedule" in definitions:
        definitions["Schedule"] = {"anyOf": [{"type": "number"}, definitions["Schedule"]]}
    flat = {**term["properties"], "mask": {PLACE: "masks"}}
    parts["properties"] = {**parts["properties"], **flat}
    parts["required"] = [name for name in parts["required"] if name not in ("terms", "masks")]
    parts["anyOf"] = [{"required": ["terms"]}, {"required": term["required"]}]
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **parts, "$defs": definitions}
    linked: dict[str, Any] = _linked(whole)
    return linked


def _component_definitions(kind: str) -> dict[str, Any]:
    """{kind: any component of it, kind.name: its fields, ...} and what those refer to."""
    definitions: dict[str, Any] = {}
    names = {config.model_fields["name"].default: config for config in plugins()[kind].configs()}
    for name, config in names.items():
        component = config.model_json_schema(mode="validation")
        definitions |= component.pop("$defs", {})
        definitions[f"{kind}.{name}"] = {**component, "required": ["name", *component.get("required", [])]}
    choices: list[dict[str, Any]] = [{"enum": list(names)}]
    choices += [{"$ref": f"{DEFINITIONS}{kind}.{name}"} for name in names]
    if kind == "norms":
        choices.append({"type": "array", "items": {PLACE: kind}})
    return {**definitions, kind: {"anyOf": choices}}


def _linked(node: Any) -> Any:
    """`node` with every place of a component turned into a reference to its kind."""
    if isinstance(node, list):
        return [_linked(item) for item in node]
    if not isinstance(node, dict):
        return node
    reference = {"$ref": DEFINITIONS + node[PLACE]} if PLACE in node else {}
    return reference | {key: _linked(value) for key, value in node.items() if key != PLACE}
