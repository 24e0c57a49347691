"""Where scalars go beside metrics.jsonl: trackers, as plugins."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Logger(ABC):
    """Takes the scalars of one run; made without arguments, on rank 0 only.

    Making it checks what it needs and raises ValueError with what to install; it touches nothing before `open`. An exception
    in one of the three methods ends this logger, not the training.
    """

    @abstractmethod
    def open(self, folder: Path, record: Mapping[str, Any], step: int) -> None:
        """The run of `folder` begins, or goes on, at `step`; what was logged beyond it no longer counts.

        record: run.json.
        """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; `values` are those of the line in metrics.jsonl."""

    @abstractmethod
    def close(self) -> None:
        """The run ended, well or not."""


class TensorBoard(Logger):
    """Event files in RUN/tensorboard: tensorboard --logdir RUN."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"logger 'tensorboard' needs the package tensorboard ({error}): pip install 'unimim[tensorboard]'"
            ) from None
        self.make: Any = SummaryWriter
        self.writer: Any = None

    def open(self, folder: Path, record: Mapping[str, Any], step: int) -> None:
        self.writer = self.make(str(folder / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("run", f"```\n{json.dumps(record, indent=1)}\n```", step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
