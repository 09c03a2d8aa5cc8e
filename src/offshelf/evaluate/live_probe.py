"""How good a backbone's features are while it is being pre-trained: the same few pictures, again and again.

A probe reads the pooled features of the pictures as they are (no augmentation) and asks two quick heads for the labels
of held-out ones. It leaves the training as if nobody had looked (`offshelf.engine.undisturbed`). The backbone may have
been trained on these very pictures, so a probe compares steps of one run; it does not say how well new pictures fare.

Source of the weighted vote: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
(CVPR 2018), section 3.4, with temperature 0.07.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.backbones.readout import read
from offshelf.data.augment import normalised, resized
from offshelf.engine.collapse import feature_numbers
from offshelf.engine.undisturbed import undisturbed
from offshelf.errors import DataError
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.splits import inner_folds
from offshelf.transfer.ridge_path import RidgePath

TRAINING_ROWS, HELD_OUT_ROWS, ROWS_OF_A_GROUP = 2000, 1000, 100
HELD_OUT_SHARE = 1 / 3
NEIGHBOURS = 20
TEMPERATURE = 0.07
BATCH = 64


class LiveProbe:
    """A fixed choice of pictures and what is measured on them.

    Parameters
    ----------
    table : uint8 (n, 3, S, S)
        All pictures; read at each probe, so it may be memory-mapped.
    labels : (n,) integers or None
        -1 where unknown. Without labels, or where no two classes can be judged, only rank, deviation and drift are
        measured, and ``note`` says why.
    groups : (n,) or None
        Rows of one group (patient, site) are never divided between training and held-out rows; of a larger group
        a hundred rows are drawn.
    mean, std : three floats each
        What the backbone's weights expect of pixels in [0, 1].
    image_size : int
        Side in pixels of what the backbone sees.
    seed : int
        Fixes the choice once.

    Attributes
    ----------
    train, test : int arrays
        Positions in ``table`` of at most 2,000 training and 1,000 held-out pictures; empty without usable labels.
    watched : int array
        The at most 1,000 pictures whose features are measured: the held-out ones first.
    note : str
        Why no labels are asked for; empty where they are.

    Raises
    ------
    DataError
        When there is not one label or group a picture, or fewer than two pictures.
    """

    def __init__(
        self,
        table: np.ndarray,
        labels: Sequence[int] | np.ndarray | None,
        groups: Sequence[Any] | np.ndarray | None,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        seed: int = 0,
    ) -> None:
        n = len(table)
        if n < 2:
            raise DataError(f"{n} pictures: a probe compares pictures and needs at least 2; give more pictures")
        known = np.full(n, -1) if labels is None else np.asarray(labels, dtype=np.int64)
        if known.shape != (n,):
            raise DataError(f"labels have shape {known.shape}, expected ({n},): one for each picture, -1 where unknown")
        self.table, self.labels, self.groups = table, known, group_codes(groups, n)
        self.mean, self.std, self.image_size, self.seed = list(mean), list(std), image_size, seed
        self.train, self.test = divide(known, self.groups, seed)
        self.note = self._why_not()
        if self.note:
            self.train = self.test = np.empty(0, dtype=np.int64)
            self.watched = np.sort(np.random.default_rng([seed, 1]).permutation(n)[:HELD_OUT_ROWS])
        else:
            self.watched = np.concatenate([self.test, self.train])[:HELD_OUT_ROWS]
        self._start: torch.Tensor | None = None

    def remember(self, backbone: nn.Module) -> None:
        """Take the features of ``backbone`` as the start from which ``drift`` is measured."""
        self._start = self.features(backbone, self.watched)

    def __call__(self, backbone: nn.Module) -> dict[str, Any]:
        """Measure the backbone as it is now.

        Returns
        -------
        record
            ``feature_rank`` and ``feature_std`` (see `offshelf.engine.collapse`; None where not finite); after
            `remember`, ``drift``: 1 - mean cosine of the pictures' features now and then; and with labels
            ``knn_accuracy`` and ``linear_accuracy`` (None where features are not finite), ``chance`` (always naming the
            commonest training class), ``n`` held-out pictures in ``n_groups`` groups, ``n_train``, ``k``.
        """
        rows = np.concatenate([self.test, self.train]) if len(self.test) else self.watched
        features = self.features(backbone, rows)
        watched = features[: len(self.watched)]
        found: dict[str, Any] = dict(feature_numbers(watched))
        if self._start is not None:
            cosine = float(torch.nn.functional.cosine_similarity(watched.double(), self._start.double()).mean())
            found["drift"] = 1 - cosine if np.isfinite(cosine) else None
        return self._accuracies(features) | found if len(self.test) else found

    def features(self, backbone: nn.Module, rows: np.ndarray) -> torch.Tensor:
        """Pooled features ``(len(rows), d)`` float32 on the processor; the backbone stays as it was."""
        first = next(backbone.parameters())
        parts = []
        with undisturbed(backbone):
            for start in range(0, len(rows), BATCH):
                pixels = torch.from_numpy(np.ascontiguousarray(self.table[rows[start : start + BATCH]]))
                x = normalised(resized(pixels, self.image_size), self.mean, self.std)
                parts.append(read(backbone, x.to(first.device, first.dtype)).float().cpu())
        return torch.cat(parts)

    def _accuracies(self, features: torch.Tensor) -> dict[str, Any]:
        held_out, training = features[: len(self.test)], features[len(self.test) :]
        answers, truth = self.labels[self.train], self.labels[self.test]
        classes, codes = np.unique(answers, return_inverse=True)
        k = neighbours(len(answers), len(classes))
        found: dict[str, Any] = {
            "knn_accuracy": None,
            "linear_accuracy": None,
            "chance": float((truth == classes[np.bincount(codes).argmax()]).mean()),
            "n": len(truth),
            "n_groups": len(np.unique(self.groups[self.test])),
            "n_train": len(answers),
            "k": k,
        }
        if not bool(torch.isfinite(features).all()):
            return found
        votes = weighted_votes(held_out, training, codes, len(classes), k)
        found["knn_accuracy"] = float((classes[votes.argmax(axis=1)] == truth).mean())
        mean, deviation = training.mean(dim=0), training.std(dim=0, unbiased=False)
        scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # a constant tells nothing
        head = RidgePath(cv=inner_folds(answers, self.groups[self.train], seed=self.seed), random_state=self.seed)
        head.fit(((training - mean) / scale).numpy(), answers)
        found["linear_accuracy"] = float((head.predict(((held_out - mean) / scale).numpy()) == truth).mean())
        return found

    def _why_not(self) -> str:
        if not (self.labels >= 0).any():
            return "No labels: only rank, deviation and drift of the features were measured."
        if not len(self.test) or not len(self.train):
            return "The labelled pictures are of one group: none could be held out, so no accuracy was measured."
        if len(np.unique(self.labels[self.train])) < 2:
            return "Fewer than two classes have labelled pictures to learn from: no accuracy was measured."
        if not np.isin(self.labels[self.test], self.labels[self.train]).any():
            return "Every class lies in one group, so none could be held out: no accuracy was measured."
        return ""


def divide(labels: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose training and held-out rows among the labelled ones, groups whole, every class in proportion.

    Groups are put in a drawn order in which each class (a group's commonest) is spread evenly; about the first third of
    the rows, at most 1,000, is held out, and at most 2,000 of the others train. A class of one group trains.

    Parameters
    ----------
    labels : (n,) int, -1 where unknown.
    groups : (n,) int codes.

    Returns
    -------
    train, test
        Rising positions.
    """
    rng = np.random.default_rng([seed, 0])
    labelled = rng.permutation(np.flatnonzero(labels >= 0))
    if not len(labelled):
        return labelled, labelled
    # groups in drawn order, each with at most ROWS_OF_A_GROUP drawn rows
    _, first, inverse = np.unique(groups[labelled], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[inverse]
    by_group = np.split(labelled[np.argsort(order, kind="stable")], np.cumsum(np.bincount(order))[:-1])
    members = [rows[:ROWS_OF_A_GROUP] for rows in by_group]
    kinds = np.array([np.bincount(labels[rows]).argmax() for rows in members], dtype=np.int64)
    train, test = _walk(members, kinds)
    if not test:  # every class is the commonest of one group only: sites, say, that hold all classes each
        train, test = _walk(members, np.zeros_like(kinds))
    empty = np.empty(0, dtype=np.int64)
    return np.sort(np.concatenate([empty, *train])), np.sort(np.concatenate([empty, *test]))


def _walk(members: list[np.ndarray], kinds: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Give the groups out, training and held out, in an order in which every kind is spread evenly."""
    place = np.zeros(len(members))
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    wanted = min(HELD_OUT_ROWS, HELD_OUT_SHARE * sum(map(len, members)))
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    held, taken = 0, 0
    for index in np.argsort(place, kind="stable"):
        rows = members[index]
        near = held + len(rows) / 2 <= wanted or not test
        if place[index] < 0.5 and near and held + len(rows) <= HELD_OUT_ROWS:
            test.append(rows)
            held += len(rows)
        elif taken + len(rows) <= TRAINING_ROWS:
            train.append(rows)
            taken += len(rows)
    return train, test


def neighbours(n: int, classes: int) -> int:
    """How many neighbours vote: 20, or as many rows as a class has on average where that is fewer."""
    return min(NEIGHBOURS, max(1, n // classes))


def weighted_votes(query: torch.Tensor, rows: torch.Tensor, codes: np.ndarray, classes: int, k: int) -> np.ndarray:
    """Votes ``(q, classes)`` of the k nearest rows, each weighing ``exp(cosine / 0.07)``.

    Parameters
    ----------
    query, rows : (q, d) and (n, d) features of any length.
    codes : (n,) class of each row, 0 to ``classes`` - 1.
    """
    cosine = nn.functional.normalize(query.double(), dim=1) @ nn.functional.normalize(rows.double(), dim=1).T
    near, index = cosine.topk(k, dim=1)
    # relative to the nearest: the same shares of the votes
    weights = torch.exp((near - near[:, :1]) / TEMPERATURE)
    votes = torch.zeros(len(query), classes, dtype=torch.float64)
    return votes.scatter_add_(1, torch.from_numpy(codes)[index], weights).numpy()
