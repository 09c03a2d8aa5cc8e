"""CIFAR-10 as the claims of pre-training methods take it, and how they write a number with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from claims.common import data_folder
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset


@dataclass
class Pictures:
    """Decoded pictures ``(n, 3, S, S)`` uint8 with class numbers; train and test are apart."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load_pictures(side: int, unlabelled: int, test: int, seed: int = 0) -> Pictures:
    """So many pictures to train on and to test on, ``side`` pixels wide, drawn evenly over the classes."""
    dataset = open_dataset(data_folder("cifar10"))
    labels, splits = np.array(dataset["label"][:]), np.array(dataset["split"][:])
    train_rows = balanced(labels, np.flatnonzero(splits == "train"), unlabelled, seed)
    test_rows = balanced(labels, np.flatnonzero(splits == "test"), test, seed)
    tables = []
    for rows in (train_rows, test_rows):
        table, errors = load_pixels(as_samples(dataset.select(rows)), side)
        if errors:
            raise next(iter(errors.values()))
        tables.append(table)
    return Pictures(tables[0], labels[train_rows], tables[1], labels[test_rows])


def balanced(labels: np.ndarray, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most ``most`` of ``rows``, as many of every class (fewer where a class has fewer), sorted."""
    random, classes = np.random.default_rng([seed, 5]), np.unique(labels[rows])
    taken = [random.permutation(rows[labels[rows] == k])[: most // len(classes)] for k in classes]
    return np.sort(np.concatenate(taken))


def shown(cell: dict[str, float]) -> str:
    """``0.412 [0.398, 0.425]``, differences with their sign."""
    form, key = ("{:+.3f}", "difference") if "difference" in cell else ("{:.3f}", "value")
    return f"{form.format(cell[key])} [{form.format(cell['low'])}, {form.format(cell['high'])}]"
