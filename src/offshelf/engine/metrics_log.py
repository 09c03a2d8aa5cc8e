"""``metrics.jsonl`` of a training, and TensorBoard's files beside it where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offshelf.engine.files import finite, write_atomic
from offshelf.errors import MissingExtra


class MetricsLog:
    """One JSON object a line: ``step``, ``epoch``, ``loss``, named scalars, ``learning_rate``, ``samples_per_second``.

    Parameters
    ----------
    folder : Path
        Of the run.
    tensorboard : bool
        Write event files into ``tensorboard/`` as well.

    Raises
    ------
    MissingExtra
        When TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.events = Path(folder) / "tensorboard" if tensorboard else None
        self._writer: Any = None
        if tensorboard:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError:
                raise MissingExtra("--tensorboard", "tensorboard") from None

    def restart(self, history: list[dict[str, Any]]) -> None:
        """Hold ``history`` and nothing else: what was told after the checkpoint is told again."""
        write_atomic(self.path, "".join(_line(record) for record in history))
        if self.events is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = int(history[-1]["step"]) + 1 if history else 0
            self._writer = SummaryWriter(str(self.events), purge_step=purge)

    def log(self, record: dict[str, Any]) -> None:
        """Add one record."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(_line(record))
        if self._writer is not None:
            for name, value in record.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, int(record["step"]))
            self._writer.flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(finite(record), allow_nan=False) + "\n"
