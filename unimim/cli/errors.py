"""The one way a command ends badly: every problem in one message on stderr, an exit code, no traceback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from .console import remark

FAILED, REFUSED, INTERRUPTED = 1, 2, 75
"""A run failed; the command was wrong and nothing was started; stopped on request, the same command goes on (EX_TEMPFAIL)."""

# typer 0.29 brings its own copy of click, older ones use click itself; this base is right for both.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Refused(Exception):
    """The command cannot be done as it stands; `problems` says why, all at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Failed(Exception):
    """What was begun could not be finished."""


class Interrupted(Exception):
    """Stopped on request."""


class Problems:
    """Everything that is wrong with a command, gathered before it is refused."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Once, however many parts of a command share it."""
        if problem not in self.found:
            self.found.append(problem)

    @contextmanager
    def of(self, what: str = "") -> Iterator[None]:
        """A ValueError raised inside becomes a problem of `what`; one that lists several (RecipeError) as many."""
        try:
            yield
        except ValueError as error:
            where = getattr(error, "where", what)
            for problem in getattr(error, "problems", [str(error)]):
                self.add(f"{where}: {problem}" if where else problem)

    def refuse(self) -> None:
        """Raise Refused if anything was found."""
        if self.found:
            raise Refused(self.found)


@contextmanager
def run_errors(after: str) -> Iterator[None]:
    """What a run can meet through no fault of the program: one sentence each, and what to do `after`."""
    import torch

    from ..engine.data import BadImage, TooManyBadImages
    from ..engine.guard import NonFinite
    from ..engine.loop import OutOfMemory

    try:
        yield
    except BadImage as error:
        raise Failed(f"{error}\nor use --skip-bad-images; {after}") from error
    except TooManyBadImages as error:
        raise Failed(f"{error}\n{after}") from error
    except NonFinite as error:
        raise Failed(str(error)) from error
    except OutOfMemory as error:
        raise Failed(f"{error}; {after}") from error
    except torch.OutOfMemoryError as error:
        raise Failed(f"out of memory ({str(error).splitlines()[0]}); {after}") from error


def run(command: Callable[..., Any], arguments: Sequence[str] | None) -> int:
    """The exit code of `unimim ARGUMENTS`, after its message. What nobody foresaw keeps its traceback."""
    try:
        code = command(arguments, prog_name="unimim", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        known = _explain(error)
        if known is None or os.environ.get("UNIMIM_TRACEBACK"):
            raise
        return known
    if code == 130:
        remark("interrupted")
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int | None:
    """Say what `error` means to the person who typed the command; its exit code."""
    if isinstance(error, Interrupted):
        remark(error)
        return INTERRUPTED
    if isinstance(error, Failed | OSError):
        _complain([str(error)])
        return FAILED
    if isinstance(error, UsageError):
        _complain([getattr(error, "format_message", error.__str__)()])
        context = getattr(error, "ctx", None)
        remark(f"see {context.command_path if context else 'unimim'} --help", "dim")
        return REFUSED
    if isinstance(error, Refused | ValueError):
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process found the same
            _complain(getattr(error, "problems", [str(error)]))
        return REFUSED
    return None


def _complain(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        remark(f"error: {problems[0]}", "red")
    else:
        lines = [f"  {problem}".replace("\n", "\n    ") for problem in problems]
        remark("\n".join([f"error: {len(problems)} problems", *lines]), "red")
