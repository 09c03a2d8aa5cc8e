"""One data set as every contest sees it, and one backbone in front of it.

A worker keeps the data sets and the features it used last, since neighbouring jobs of a battle ask for the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from datasets import Dataset

from offshelf.data.columns import label_array
from offshelf.data.sources import open_dataset
from offshelf.data.summary import content_keys, label_texts
from offshelf.errors import DataError, NotApplicable, UsageError
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.label_subsets import LabelBudget, labelled_rows
from offshelf.evaluate.rows import Rows, check_finite, text_column, usable_label_rows, usable_rows
from offshelf.evaluate.splits import Fold
from offshelf.transfer.deep_features import DeepFeatures


@dataclass(frozen=True)
class Place:
    """Where a data set is, and how it is read; all of it goes into a job.

    ``name`` is what people call it; ``told`` is the source as they gave it, where ``source`` had to be made absolute.
    """

    source: str
    name: str
    path_column: str | None = None
    label_column: tuple[str, ...] = ()
    group_column: str | None = None
    label_separator: str | None = None
    allow_outside: bool = False
    told: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Place:
        """The place again."""
        return cls(**{**values, "label_column": tuple(values["label_column"])})

    def open(self) -> Dataset:
        """The data set, pictures not decoded."""
        columns = list(self.label_column)
        return open_dataset(
            self.source,
            path_column=self.path_column,
            label_column=columns[0] if len(columns) == 1 else columns or None,
            group_column=self.group_column,
            label_separator=self.label_separator,
            allow_outside=self.allow_outside,
        )


@dataclass(frozen=True, eq=False)
class Deck:
    """One data set, opened. ``keys`` are the hashes of the pictures' bytes, None where a file cannot be read."""

    place: Place
    dataset: Dataset
    keys: list[bytes | None]

    @property
    def several_labels(self) -> bool:
        """Whether a picture may have several labels."""
        return "labels" in self.dataset.column_names

    @property
    def labelled(self) -> bool:
        """Whether any picture has a label."""
        if self.several_labels:
            return True
        return "label" in self.dataset.column_names and bool((label_array(self.dataset) >= 0).any())

    @property
    def given_split(self) -> bool:
        """Whether the data say themselves what is tested."""
        splits = text_column(self.dataset, "split")
        return splits is not None and bool(np.isin(splits, ["validation", "test"]).any())

    def tested(self, rows: Sequence[int]) -> list[int]:
        """Those of the ``rows`` that a contest may test: the given test part, else all."""
        splits = text_column(self.dataset, "split")
        there = [] if splits is None else [name for name in ("test", "validation") if (splits == name).any()]
        return [row for row in rows if not there or splits[row] == there[0]]  # type: ignore[index]

    @cached_property
    def _fingerprint(self) -> str:
        labels = label_texts(self.dataset) if "label" in self.dataset.column_names or self.several_labels else []
        groups, splits = text_column(self.dataset, "group"), text_column(self.dataset, "split")
        told = [
            [key.hex() if key else "" for key in self.keys],
            labels,
            [] if groups is None else groups.tolist(),
            [] if splits is None else splits.tolist(),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 over pictures, labels, groups and splits, in the order of the rows."""
        return self._fingerprint


def open_deck(place: Place) -> Deck:
    """Open a data set and hash its pictures."""
    return _deck(json.dumps(place.to_dict()))


def forget() -> None:
    """Drop the data sets and features kept in this process; files may have changed since."""
    _deck.cache_clear()
    _entry.cache_clear()


@lru_cache(maxsize=32)
def _deck(place: str) -> Deck:
    where = Place.from_dict(json.loads(place))
    dataset = where.open()
    return Deck(where, dataset, content_keys(dataset)[0])


@dataclass(frozen=True, eq=False)
class Entry:
    """One backbone in front of one data set: the usable rows, their features (n, D), and what may be asked of them."""

    deck: Deck
    backbone: str
    input_size: int | None
    rows: Rows
    values: np.ndarray
    fitted: dict[Any, Any] = field(default_factory=dict)  # pipelines by what they were fitted on; contests share them

    def folds(self, seed: int) -> list[Fold]:
        """The given test part, or five folds drawn by ``seed``."""
        try:
            return self.rows.outer_folds(5, seed)
        except DataError as error:  # a class too small to divide, say: this data set is not for this contest
            raise NotApplicable(f"{self.deck.place.name}: {error}") from error

    def tested(self) -> np.ndarray:
        """Rows that the data set gives to be tested; all of them where it says nothing."""
        if self.rows.splits is None:
            return np.arange(len(self.rows.labels))
        for split in ("test", "validation"):
            if (chosen := np.flatnonzero(self.rows.splits == split)).size:
                return chosen
        return np.arange(len(self.rows.labels))

    def units(self, chosen: np.ndarray) -> np.ndarray:
        """Codes (n,) of what is drawn whole among the ``chosen`` rows."""
        return group_codes(self.rows.clusters(chosen), len(chosen))

    def learning(self, fold: Fold, budget: LabelBudget, seed: int) -> np.ndarray:
        """Rows of the fold's training part that count as labelled."""
        train, name = np.asarray(fold.train), self.deck.place.name
        if budget.count is not None and budget.count > len(train):
            raise NotApplicable(
                f"{name}: {budget.said} were asked for, and {fold.name} leaves {len(train):,} pictures to train on"
            )
        try:
            return train[labelled_rows(self.rows.labels[train], self.rows.clusters(train), budget, seed)]
        except UsageError as error:  # too few for one picture of every class
            raise NotApplicable(f"{name}: {error}") from error

    def corrupted(self, corruption: str, chosen: np.ndarray) -> np.ndarray:
        """Features (n, D) of damaged copies of the ``chosen`` rows."""
        features = DeepFeatures([self.backbone], input_size=self.input_size, corruption=corruption)
        found = features.extract(self.rows.samples.take(chosen))
        if found.errors:
            raise next(iter(found.errors.values()))
        return features.pool(found.features)


def enter(deck: Deck, backbone: str, input_size: int | None = None, *, one_label: bool = True) -> Entry:
    """The backbone's features of the data set, out of the cache where it has them.

    Raises
    ------
    NotApplicable
        When the data have no labels, or several a picture while one is needed, or the other way about.
    """
    name = deck.place.name
    if not deck.labelled:
        raise NotApplicable(f"{name}: no labels, and this contest needs them")
    if one_label and deck.several_labels:
        raise NotApplicable(f"{name}: several labels a picture, and this contest takes one")
    if not one_label and not deck.several_labels:
        raise NotApplicable(f"{name}: one label a picture, and this contest asks for several")
    return _entry(json.dumps(deck.place.to_dict()), deck.fingerprint(), backbone, input_size)


@lru_cache(maxsize=2)
def _entry(place: str, fingerprint: str, backbone: str, input_size: int | None) -> Entry:
    deck = _deck(place)
    features = DeepFeatures([backbone], input_size=input_size)
    found = features.extract(deck.dataset)
    usable = usable_label_rows if deck.several_labels else usable_rows
    rows = usable(deck.dataset, deck.place.name, found.errors, found.keys, False)
    values = found.features[rows.positions]
    check_finite(values, rows.samples, features)
    return Entry(deck, backbone, input_size, rows, features.pool(values))


def shared_classes(decks: Sequence[Deck]) -> dict[str, list[str]]:
    """For each data set by name the names of the others that have at least two of its classes."""
    names = {
        deck.place.name: set(deck.dataset.features["label"].names)
        for deck in decks
        if deck.labelled and not deck.several_labels
    }
    return {
        name: [other for other, theirs in names.items() if other != name and len(own & theirs) >= 2]
        for name, own in names.items()
    }
