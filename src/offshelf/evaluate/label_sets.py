"""Pictures with sets of valid labels, and what each answer of a one-label classifier is worth against them.

With S_i the set, k_i its size, y_i the one label and p_i(1), p_i(2), ... the classes by falling score
(arXiv 2412.18409):

    top-1 = 1[p_i(1) = y_i]     ReaL = 1[p_i(1) in S_i]     variable top-k = |{p_i(1..k_i)} and S_i| / k_i
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from scipy import sparse

from offshelf.errors import DataError
from offshelf.evaluate.metrics import divide

PICTURE_METRICS = (
    ("top_1", "share of pictures whose first answer is the one label"),
    ("real", "share of pictures whose first answer is a valid label (ReaL accuracy)"),
    ("variable_top_k", "of a picture's first k answers, k being how many labels are valid, the share that is valid"),
    ("strict", "share of pictures whose first k answers are exactly the valid labels"),
)
NAMES = tuple(name for name, _ in PICTURE_METRICS)
ROWS_AT_ONCE = 4096  # sorting all rows of a large test set at once would take gigabytes
REAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})(?:\.\w+)?")


def label_matrix(label_sets: Any, n_classes: int) -> np.ndarray:
    """Sets of valid classes as a table of yes and no.

    Parameters
    ----------
    label_sets
        ``(n, K)`` of booleans or of 0 and 1, dense or sparse; or n collections of class numbers, empty ones allowed.
    n_classes
        K.

    Returns
    -------
    table
        ``(n, K)`` bool.

    Raises
    ------
    DataError
        Another shape, a value other than 0 and 1, or a class number outside 0 to K - 1, naming the row.
    """
    if sparse.issparse(label_sets):
        label_sets = label_sets.toarray()
    if isinstance(label_sets, np.ndarray) and label_sets.ndim == 2:
        if label_sets.shape[1] != n_classes:
            raise DataError(f"label sets of shape {label_sets.shape}: expected (n, {n_classes}), a column a class")
        odd = np.argwhere((label_sets != 0) & (label_sets != 1))
        if len(odd):
            row, k = odd[0]
            raise DataError(f"label sets, row {row}, class {k}: {label_sets[row, k]}; expected 0 or 1")
        return label_sets.astype(bool)
    sets: list[Collection[int]] = list(label_sets)
    sizes = np.array([len(one) for one in sets], dtype=np.int64)
    rows = np.repeat(np.arange(len(sets)), sizes)
    classes = np.array([k for one in sets for k in one], dtype=np.int64)
    bad = np.flatnonzero((classes < 0) | (classes >= n_classes))
    if len(bad):
        raise DataError(
            f"label sets, row {rows[bad[0]]}: class {classes[bad[0]]}; expected 0 to {n_classes - 1}, the columns of "
            "the scores"
        )
    table = np.zeros((len(sets), n_classes), dtype=bool)
    table[rows, classes] = True
    return table


def first_classes(scores: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` classes of the highest scores ``(n, k)`` of ``scores (n, K)``; of equal ones the lower class first."""
    found = np.empty((len(scores), k), dtype=np.int64)
    for start in range(0, len(scores), ROWS_AT_ONCE):
        part = scores[start : start + ROWS_AT_ONCE]
        found[start : start + len(part)] = np.argsort(-part, axis=1, kind="stable")[:, :k]
    return found


@dataclass(frozen=True, eq=False)
class PictureScores:
    """Of n pictures: how many labels are valid ``count (n,)``, and ``values`` name -> (n,), NaN where undefined."""

    count: np.ndarray
    values: dict[str, np.ndarray]


def score_pictures(
    logits: np.ndarray, label_sets: Any, labels: Sequence[int] | np.ndarray | None = None
) -> PictureScores:
    """Score every picture by `PICTURE_METRICS`; arguments and errors as of `MultiLabelReport`."""
    scores = np.asarray(logits)
    if scores.ndim != 2 or not scores.size:
        raise DataError(f"logits of shape {scores.shape}: expected (n, K), n and K at least 1")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    undefined = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(undefined):
        raise DataError(f"logits, row {undefined[0]}: not a number; leave out pictures that have no scores")
    n, n_classes = scores.shape
    table = label_matrix(label_sets, n_classes)
    if len(table) != n:
        raise DataError(f"{len(table)} label sets for {n} rows of logits; expected one a row")
    count = table.sum(axis=1)
    first = first_classes(scores, max(1, int(count.max())))
    valid = np.take_along_axis(table, first, axis=1)
    hits = (valid & (np.arange(first.shape[1]) < count[:, None])).sum(axis=1)
    scored = count > 0
    values = {
        "top_1": np.where(scored, _top_1(first[:, 0], labels, n_classes), np.nan),
        "real": np.where(scored, valid[:, 0], np.nan),
        "variable_top_k": divide(hits.astype(float), count.astype(float)),
        "strict": np.where(scored, hits == count, np.nan),
    }
    return PictureScores(count, values)


def _top_1(answers: np.ndarray, labels: Sequence[int] | np.ndarray | None, n_classes: int) -> np.ndarray:
    if labels is None:
        return np.full(len(answers), np.nan)
    y = np.asarray(labels)
    if y.shape != answers.shape or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"labels of shape {y.shape} and type {y.dtype}: expected {len(answers)} class numbers")
    bad = np.flatnonzero((y < -1) | (y >= n_classes))
    if len(bad):
        raise DataError(f"labels, row {bad[0]}: {y[bad[0]]}; expected 0 to {n_classes - 1}, or -1 for none")
    return np.where(y >= 0, answers == y, np.nan)


def real_labels(names: Sequence[str] | None = None) -> list[list[int]]:
    """ReaL label sets of ImageNet's validation pictures (Beyer et al. 2020), from the file that timm carries.

    Parameters
    ----------
    names
        File names or paths such as ``ILSVRC2012_val_00000001.JPEG``; without them all 50,000, in order.

    Returns
    -------
    label_sets
        Class numbers in the order of sorted wordnet ids. The first set is that of file number 1, not 0. Some are empty.

    Raises
    ------
    DataError
        A name that is not one of a validation picture.
    """
    text = files("timm.data").joinpath("_info", "imagenet_real_labels.json").read_text(encoding="utf-8")
    sets: list[list[int]] = json.loads(text)
    if names is None:
        return sets
    found = []
    for name in names:
        match = REAL_FILE.fullmatch(str(name).replace("\\", "/").rsplit("/", 1)[-1])
        if match is None or not 1 <= int(match[1]) <= len(sets):
            raise DataError(f"{name}: expected a name like ILSVRC2012_val_00000001.JPEG, numbers 1 to {len(sets)}")
        found.append(sets[int(match[1]) - 1])
    return found
