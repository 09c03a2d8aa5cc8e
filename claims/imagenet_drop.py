"""Published accuracies of timm's networks on ImageNet and ImageNetV2: how large the drop is, and what ReaL says of it.

There are ReaL labels for ImageNet (V1) and none for V2, and the tables hold accuracies, not predictions. So they show
how large the drop is, how much re-scoring with label sets raises the accuracy on V1, and whether the networks that gain
more from it drop more. They cannot show how large the drop would be with label sets on both sides.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.metrics import divide
from offshelf.evaluate.resampling import resampled_weights

FILES = {
    "v1": "results-imagenet.csv",
    "real": "results-imagenet-real.csv",
    "v2": "results-imagenetv2-matched-frequency.csv",
}
# Marks in front of a name that say where the weights come from, and nothing of the architecture.
PORTED = re.compile(r"^(?:tf|gluon|legacy|ssl|swsl|ig)_")


class Accuracies(NamedTuple):
    """Top-1 in per cent of n networks, each at the smallest input that all three tables have, and their families."""

    models: list[str]
    families: list[str]
    v1: np.ndarray
    real: np.ndarray
    v2: np.ndarray


def read_accuracies(folder: Path) -> Accuracies:
    """The networks that stand in all three tables of a folder.

    Raises
    ------
    DataError
        When there is none.
    """
    tables: dict[str, dict[tuple[str, int], float]] = {}
    for name, file in FILES.items():
        with (folder / file).open(encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle)
            tables[name] = {(row["model"], int(row["img_size"])): float(row["top1"]) for row in rows}
    smallest: dict[str, int] = {}
    for model, size in sorted(set.intersection(*(set(table) for table in tables.values()))):
        smallest.setdefault(model, size)
    if not smallest:
        raise DataError(
            f"{folder}: no network stands in all of {', '.join(FILES.values())}; expected one or more rows."
        )
    keys = list(smallest.items())
    columns = [np.array([table[key] for key in keys]) for table in tables.values()]
    return Accuracies(list(smallest), [family(model) for model in smallest], *columns)


def family(model: str) -> str:
    """The leading letters of an architecture's name: networks of one family are not independent of each other."""
    found = re.match(r"[a-z]+", PORTED.sub("", model.lower()))
    return found[0] if found else model


def published_drop(table: Accuracies, seed: int = 0, n_boot: int = 2000) -> dict[str, Any]:
    """The drop from V1 to V2 and how it goes with the gain from ReaL labels, with intervals over families.

    Parameters
    ----------
    table
        See `read_accuracies`.
    seed, n_boot
        Of the bootstrap; families are drawn whole.

    Returns
    -------
    result
        ``n``, ``families`` and, each ``{"value", "low", "high"}``, in points of accuracy: ``drop`` (V1 less V2),
        ``gain`` (ReaL less V1); ``slope`` (points of drop a point of gain, least squares), ``explained`` (R squared of
        that line), ``slope_at_equal_accuracy`` (the same beside V1 top-1 as a second predictor); ``valid_v1`` (gain
        over the errors on V1), ``valid_needed`` (drop plus gain, over the errors on V2: what that share would have to
        be there for ReaL to see no drop). ``drop`` and ``gain`` have ``least`` and ``most`` too.
    """
    drop, gain = table.v1 - table.v2, table.real - table.v1
    codes = group_codes(table.families, len(drop))
    columns = np.stack([drop, gain, table.v1, 100 - table.v1, 100 - table.v2])
    point = {name: values[0] for name, values in _numbers(columns, np.ones((len(drop), 1))).items()}
    parts = [_numbers(columns, weights) for weights in resampled_weights(codes, n_boot, seed)]
    cells = {}
    for name, value in point.items():
        low, high = np.nanpercentile(np.concatenate([part[name] for part in parts]), [2.5, 97.5])
        cells[name] = {"value": float(value), "low": float(low), "high": float(high)}
    for name, values in (("drop", drop), ("gain", gain)):
        cells[name] |= {"least": float(values.min()), "most": float(values.max())}
    return {"n": len(drop), "families": count_groups(codes)} | cells


def _numbers(columns: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """All numbers under each column of ``weights (n, B)``."""
    drop, gain, top_1, errors_1, errors_2 = columns
    total = weights.sum(axis=0)
    means = {name: values @ weights / total for name, values in (("drop", drop), ("gain", gain), ("top_1", top_1))}

    def covariance(a: np.ndarray, b: np.ndarray, name_a: str, name_b: str) -> np.ndarray:
        return (a * b) @ weights / total - means[name_a] * means[name_b]

    gain_gain, drop_drop = covariance(gain, gain, "gain", "gain"), covariance(drop, drop, "drop", "drop")
    gain_drop, top_top = covariance(gain, drop, "gain", "drop"), covariance(top_1, top_1, "top_1", "top_1")
    gain_top, drop_top = covariance(gain, top_1, "gain", "top_1"), covariance(drop, top_1, "drop", "top_1")
    return {
        "drop": means["drop"],
        "gain": means["gain"],
        "slope": divide(gain_drop, gain_gain),
        "explained": divide(gain_drop**2, gain_gain * drop_drop),
        "slope_at_equal_accuracy": divide(gain_drop * top_top - drop_top * gain_top, gain_gain * top_top - gain_top**2),
        "valid_v1": (gain / errors_1) @ weights / total,
        "valid_needed": ((drop + gain) / errors_2) @ weights / total,
    }
