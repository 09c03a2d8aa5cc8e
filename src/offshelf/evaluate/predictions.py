"""What arms said of rows they never saw, in memory and as ``predictions.parquet``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offshelf.engine.files import write_through
from offshelf.evaluate.rows import Rows
from offshelf.transfer.pipelines import Arm


@dataclass
class Predictions:
    """Of one arm over n rows: probabilities (n, K) and predicted class (n,), NaN and -1 where a row was not tested.

    With several labels a picture ``predicted`` is (n, K): 1 and 0, -1 where a row was not tested.
    """

    arm: Arm
    probabilities: np.ndarray
    predicted: np.ndarray
    fold: np.ndarray
    chosen: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tested(self) -> np.ndarray:
        """Rows that some fold tested."""
        return np.flatnonzero(self.fold >= 0)


def write_predictions(path: Path, found: dict[str, Predictions], rows: Rows) -> None:
    """One row for each arm and tested picture: id, group, label, predicted, a probability per class.

    With several labels a picture ``label`` and ``predicted`` are lists of names, and ``y_NAME`` holds 1, 0 or null.
    """
    tables = []
    for name, item in found.items():
        tested = item.tested
        columns: dict[str, Any] = {
            "arm": [name] * len(tested),
            "id": [rows.samples.name(int(row)) for row in tested],
            "fold": item.fold[tested],
            "label": _named(rows.labels[tested], rows.classes),
            "predicted": _named(item.predicted[tested], rows.classes),
        }
        if rows.groups is not None:
            columns["group"] = [rows.groups[row] for row in tested]
        if rows.labels.ndim == 2:
            known = {f"y_{name}": rows.labels[tested, k] for k, name in enumerate(rows.classes)}
            columns |= {name: pa.array(values, pa.float64(), mask=np.isnan(values)) for name, values in known.items()}
        columns |= {f"p_{name}": item.probabilities[tested, k] for k, name in enumerate(rows.classes)}
        tables.append(pa.table(columns))
    write_through(path, lambda temporary: pq.write_table(pa.concat_tables(tables), temporary))


def _named(answers: np.ndarray, classes: list[str]) -> Any:
    """Class names of numbers (n,), or lists of names of 1 and 0 (n, K)."""
    if answers.ndim == 1:
        return [classes[k] for k in answers]
    return pa.array([[name for name, yes in zip(classes, row) if yes == 1] for row in answers], pa.list_(pa.string()))
