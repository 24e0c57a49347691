"""What a run tells: metrics.jsonl for programs, a live panel or plain lines for people."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..loggers import Logger
from ..terminal import clean
from ..world import rank
from .checkpoint import write_text

PACE = ("images_per_s", "data_wait", "memory_mb", "seconds")
"""Columns that tell how fast it went; the others are the same in every repetition."""


class Log:
    """Scalars of one run: appended to metrics.jsonl, given to `loggers`, shown on rank 0.

    record: what loggers are told of the run, run.json.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        images_per_step: int,
        quiet: bool = False,
        loggers: Sequence[Logger] = (),
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.loggers, self.record = folder, [*loggers], record or {}
        self.path, self.title, self.total_steps, self.images = (
            folder / "metrics.jsonl",
            title,
            total_steps,
            images_per_step,
        )
        self.quiet = quiet or rank() != 0
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True) if self._panel else None
        self.mark, self.waited, self.last_step = time.perf_counter(), 0.0, 0
        self.started = self.mark

    @property
    def _panel(self) -> bool:
        return not self.quiet and self.console.is_terminal

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
        self._tell(lambda logger: logger.close())

    def restart(self, step: int) -> None:
        """Begin (or go on) at `step`: forget lines a stopped run wrote beyond it, and start the clock."""
        if rank() == 0 and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self.path, "".join(kept))
        self._tell(lambda logger: logger.open(self.folder, self.record, step))
        self.last_step, self.waited = step, 0.0
        self.mark = self.started = time.perf_counter()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line: `step` steps are done; values since the last line."""
        now = time.perf_counter()
        seconds, steps = now - self.mark, max(step - self.last_step, 1)
        row = {
            "step": step,
            **values,
            "images_per_s": round(steps * self.images / seconds, 2),
            "data_wait": round(self.waited / seconds, 4),
            "memory_mb": round(peak_memory_mb(), 1),
            "seconds": round(seconds, 3),
        }
        self.mark, self.waited, self.last_step = now, 0.0, step
        if rank() == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        scalars = {name: float(value) for name, value in row.items() if name != "step"}
        self._tell(lambda logger: logger.scalars(step, scalars))
        if self.live is not None:
            self.live.update(self._render(row))
        elif not self.quiet:
            self.say(self._line(row))

    def say(self, message: str) -> None:
        """One line for a person, control characters and markup shown as text."""
        if not self.quiet:
            self.console.print(Text(clean(message)), highlight=False, soft_wrap=True)

    def warn(self, step: int, message: str) -> None:
        """Say what has gone wrong, once a run, and keep it in warnings.txt."""
        path = self.folder / "warnings.txt"
        kind = message.partition("(")[0]
        if rank() == 0 and not (path.exists() and kind in path.read_text(encoding="utf-8")):
            with path.open("a", encoding="utf-8") as file:
                file.write(f"step {step}: {message}\n")
            self.say(f"warning, step {step}: {message}")

    def _tell(self, what: Callable[[Logger], None]) -> None:
        """`what` with every logger; one that raises is dropped, which is said once, and training goes on."""
        for logger in [*self.loggers]:
            try:
                what(logger)
            except Exception as error:
                self.loggers.remove(logger)
                self.say(f"logger {type(logger).__name__} is dropped: {type(error).__name__}: {error}")

    def _eta(self, row: Mapping[str, Any]) -> str:
        left = (self.total_steps - row["step"]) * self.images / max(row["images_per_s"], 1e-9)
        return time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left / 86400:.1f} days"

    def _line(self, row: Mapping[str, Any]) -> str:
        losses = " ".join(f"{name} {value:.4f}" for name, value in row.items() if name.startswith("loss"))
        return (
            f"{self.title} step {row['step']}/{self.total_steps} {losses} grad {row['grad_norm']:.3f} lr {row['lr']:.2e} "
            f"{row['images_per_s']:.0f} images/s wait {row['data_wait']:.0%} {row['memory_mb']:.0f} MB eta {self._eta(row)}"
        )

    def _render(self, row: Mapping[str, Any]) -> Group:
        grid = Table.grid(padding=(0, 2))
        shown = {name: f"{value:.4f}" for name, value in row.items() if name.startswith("loss")}
        shown |= {
            "grad norm": f"{row['grad_norm']:.3f}",
            "learning rate": f"{row['lr']:.2e}",
            "images/s": f"{row['images_per_s']:.0f}",
            "waiting for data": f"{row['data_wait']:.0%}",
            "peak memory": f"{row['memory_mb']:.0f} MB",
            "ETA": self._eta(row),
        }
        for name, value in shown.items():
            grid.add_row(Text(clean(name), style="dim"), Text(value, style="bold" if name == "loss" else ""))
        head = Text(f"{clean(self.title)}  step {row['step']} of {self.total_steps}", style="bold")
        return Group(head, ProgressBar(self.total_steps, row["step"], width=60), grid)


def peak_memory_mb() -> float:
    """CUDA: most memory allocated so far. CPU: most resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    scale = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20
