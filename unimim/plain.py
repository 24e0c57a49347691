"""YAML as plain data: null, booleans, numbers, text, dates, lists and mappings, and never more than one can afford to read."""

from __future__ import annotations

import math
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode

MAX_CHARACTERS, MAX_DEPTH, MAX_NODES = 2**17, 32, 2**14
"""Of a document; nodes as if every alias were written out. The largest shipped recipe has about 3000, 7 and 240."""


class _Reader(yaml.SafeLoader):
    """Stops at the first node that is too deep, before what is inside it is read."""

    yaml_constructors = {  # noqa: RUF012 (as in its base)
        tag: build
        for tag, build in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] not in ("binary", "set", "omap", "pairs")
    }
    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.depth == MAX_DEPTH:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise ValueError(f"{_place(event)}: more than {MAX_DEPTH} levels deep")
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(text: str) -> Any:
    """The one document in `text`.

    Raises ValueError with line and column if it is no YAML, asks for anything but plain data, gives a key twice, or is
    larger, deeper or (through aliases) longer than MAX_CHARACTERS, MAX_DEPTH, MAX_NODES.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, more than the {MAX_CHARACTERS} that are read")
    try:
        reader = _Reader(text)
        try:
            root = reader.get_single_node()
            if root is None:
                return None
            if _weight(root, {}) > MAX_NODES:
                raise ValueError(f"its aliases unfold to more than {MAX_NODES} values, or without end")
            return reader.construct_document(root)
        finally:
            reader.dispose()
    except yaml.MarkedYAMLError as error:
        where = f"{_place(error)}: " if error.problem_mark or error.context_mark else ""
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{where}{what}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except ValueError:
        raise
    except Exception as error:  # "!!bool x" is a KeyError, "!!int ''" an IndexError
        raise ValueError(f"a value does not fit its tag ({type(error).__name__}: {error})") from None


def _place(marked: Any) -> str:
    mark = getattr(marked, "problem_mark", None) or getattr(marked, "context_mark", None) or marked.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _weight(node: Node, known: dict[Node, float]) -> float:
    """Nodes at and below `node` with its aliases written out; infinite if it contains itself. Refuses a key given twice."""
    if node in known:
        return known[node]
    known[node] = math.inf
    inner: list[Node] = []
    if isinstance(node, MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                if key.value in keys:
                    raise ValueError(f"{_place(key)}: {key.value!r} is given twice")
                keys.add(key.value)
            inner += [key, value]
    elif not isinstance(node, ScalarNode):
        inner = node.value
    known[node] = 1 + sum(_weight(each, known) for each in inner)
    return known[node]
