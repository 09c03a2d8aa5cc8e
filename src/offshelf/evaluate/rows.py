"""The rows a study can use: readable, labelled, and with what must stay together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from offshelf.data.columns import class_names
from offshelf.data.samples import Samples, as_samples
from offshelf.data.summary import check_groups, summarise
from offshelf.errors import DataError
from offshelf.evaluate.groups import equal_pairs, united
from offshelf.evaluate.label_folds import label_folds
from offshelf.evaluate.splits import Fold, outer_folds
from offshelf.transfer.deep_features import DeepFeatures


@dataclass
class Rows:
    """The rows a study can use: readable and labelled, with what must stay together.

    ``labels`` are class numbers (n,); where a picture may have several labels, (n, K) of 1, 0 and NaN (unknown).
    """

    samples: Samples
    labels: np.ndarray
    classes: list[str]
    groups: np.ndarray | None
    splits: np.ndarray | None
    sources: np.ndarray | None
    positions: np.ndarray  # where in the source each row stands
    together: np.ndarray | None  # groups, joined where two rows are the same picture
    data: dict[str, Any] = field(default_factory=dict)

    def clusters(self, chosen: np.ndarray) -> np.ndarray | None:
        """What must stay together among the ``chosen`` rows; None when every row stands alone."""
        return None if self.together is None else self.together[chosen]

    def outer_folds(self, n_folds: int, seed: int) -> list[Fold]:
        """Folds to measure on. Equal pictures stay together, but given splits are kept as given, and reported."""
        whole = self.together if self.splits is None else self.groups
        if self.labels.ndim == 2:
            return label_folds(self.labels, whole, self.splits, n_folds=n_folds, seed=seed)
        return outer_folds(self.labels, whole, self.splits, n_folds=n_folds, seed=seed, classes=self.classes)


def usable_rows(
    dataset: Dataset, source: str, errors: dict[int, Any], keys: list[bytes | None], ignore_splits: bool
) -> Rows:
    """Leave out what cannot be read or has no label, and say how much; see `Rows`.

    Raises
    ------
    DataError
        When nothing is left, there are no labels at all, or a group stands in two given splits.
    """
    require_labels(dataset, source)
    return _rows(dataset, source, errors, keys, ignore_splits, *_one_label(dataset))


def usable_label_rows(
    dataset: Dataset, source: str, errors: dict[int, Any], keys: list[bytes | None], ignore_splits: bool
) -> Rows:
    """`usable_rows` for several labels a picture: rows of which at least one label is known.

    Labels that all readable pictures answer alike cannot be learnt; they are left out, and named in ``data["notes"]``.
    """
    table, classes, remark = _several_labels(dataset, source, errors)
    found = _rows(dataset, source, errors, keys, ignore_splits, table, classes, ~np.isnan(table).all(axis=1))
    found.data["notes"] = found.data["notes"] + remark
    return found


def _one_label(dataset: Dataset) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Class numbers, their names, and which rows have one."""
    column = dataset["label"][:]
    labelled = np.array([label is not None for label in column], dtype=bool)
    return np.array([-1 if label is None else label for label in column]), dataset.features["label"].names, labelled


def _several_labels(dataset: Dataset, source: str, errors: dict[int, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    """The table of answers without labels that never differ, the names left, and a remark on those left out."""
    table = np.array(dataset["labels"][:], dtype=float).reshape(len(dataset), -1)
    names = class_names(dataset) or [str(number) for number in range(table.shape[1])]
    read = np.ones(len(table), dtype=bool)
    read[list(errors)] = False
    differing = np.array([len(np.unique(column[read & ~np.isnan(column)])) > 1 for column in table.T])
    if not differing.any():
        raise DataError(
            f"{source}: none of the labels {', '.join(names[:10])} is 1 for some pictures and 0 for others; there is "
            "nothing to tell apart. Name other columns with --label-columns."
        )
    dropped = [name for name, kept in zip(names, differing) if not kept]
    remark = [f"Left out, since all pictures answer alike: {', '.join(dropped)}."] if dropped else []
    return table[:, differing], [name for name, kept in zip(names, differing) if kept], remark


def _rows(
    dataset: Dataset,
    source: str,
    errors: dict[int, Any],
    keys: list[bytes | None],
    ignore_splits: bool,
    labels: np.ndarray,
    classes: list[str],
    labelled: np.ndarray,
) -> Rows:
    """The readable among the ``labelled`` rows."""
    good = np.array([i for i in np.flatnonzero(labelled) if i not in errors], dtype=int)
    unlabelled = int((~labelled).sum())
    if not len(good):
        first = f"; first unreadable: {next(iter(errors.values()))}" if errors else ""
        raise DataError(f"{source}: none of {len(dataset)} pictures can be used ({unlabelled} without a label{first}).")
    kept = dataset.select(good)
    groups = text_column(kept, "group")
    splits = None if ignore_splits else text_column(kept, "split")
    if splits is not None:
        check_groups(kept)
    found_keys = [keys[i] or b"" for i in good]
    samples = as_samples(kept)
    data = summarise(kept, found_keys).to_dict() | {
        "source": source,
        "n": len(dataset),
        "n_used": len(good),
        "unlabelled": unlabelled,
        "bad_files": [{"path": error.path, "error": error.reason} for error in errors.values()],
    }
    if splits is None:
        data["splits"] = {}
    if groups is None:  # a column without a single name in it
        data["groups"] = None
    return Rows(
        samples,
        labels[good],
        list(classes),
        groups,
        splits,
        text_column(kept, "source"),
        good,
        joined(groups, found_keys),
        data,
    )


def require_labels(dataset: Dataset, source: str) -> None:
    """Refuse a data set without a label column, before any work is done on it."""
    if "labels" in dataset.column_names:
        raise DataError(
            f"{source}: several labels a picture; this verb takes one. Name one column (--label-column NAME), or train "
            "on several with `offshelf finetune`."
        )
    if "label" not in dataset.column_names:
        raise DataError(
            f"{source}: no labels. Class folders are needed, or a manifest with a label column (--label-column NAME)."
        )


def text_column(dataset: Dataset, name: str) -> np.ndarray | None:
    """A column as objects with None where empty; None when there is no such column or it is empty throughout."""
    if name not in dataset.column_names:
        return None
    values = np.array([value if value not in ("", None) else None for value in dataset[name][:]], dtype=object)
    return values if any(value is not None for value in values) else None


def joined(groups: np.ndarray | None, keys: list[bytes]) -> np.ndarray | None:
    """Groups with those joined that share a picture; None when there are neither groups nor equal pictures."""
    if groups is None and len(set(keys)) == len(keys):
        return None
    units = united(len(keys), groups, equal_pairs(keys))
    return np.array([f"g{unit}" for unit in units], dtype=object)


def check_finite(values: np.ndarray, samples: Samples, features: DeepFeatures) -> None:
    """Refuse features that are not numbers, naming the picture and the backbone."""
    for first in range(0, len(values), 256):
        part = values[first : first + 256]
        if np.isfinite(part).all():
            continue
        row, _, column = (int(i[0]) for i in np.nonzero(~np.isfinite(part)))
        name = next(name for name, _, columns in features.blocks() if columns.start <= column < columns.stop)
        raise DataError(
            f"{samples.name(first + row)}: {name} gives features that are not numbers (NaN or infinity). "
            "Leave that backbone out, or try --exact."
        )
