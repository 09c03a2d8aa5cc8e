"""Contests over frozen features with one label a picture: linear probe, neighbours, retrieval, damage, other data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from offshelf.data.corruptions import CORRUPTIONS
from offshelf.errors import NotApplicable
from offshelf.evaluate.battle.decks import Entry, Place, enter, open_deck
from offshelf.evaluate.battle.outcome import Outcome, of_rows
from offshelf.evaluate.label_subsets import LabelBudget
from offshelf.evaluate.retrieval import leave_one_out_retrieval
from offshelf.evaluate.splits import Fold, inner_folds
from offshelf.transfer.heads import chosen
from offshelf.transfer.pipelines import Arm, fit_pipeline, make_pipeline

SEVERITY = 3


def linear(entry: Entry, budget: LabelBudget, seed: int) -> Outcome:
    """Balanced accuracy of multinomial logistic regression on standardised features."""
    return _probed(entry, "logistic", budget, seed)


def knn(entry: Entry, budget: LabelBudget, seed: int) -> Outcome:
    """Balanced accuracy of the vote of the nearest neighbours by cosine."""
    return _probed(entry, "knn", budget, seed)


def _probed(entry: Entry, head: str, budget: LabelBudget, seed: int) -> Outcome:
    rows = entry.rows
    answers, tuned = np.full(len(rows.labels), -1), []
    for fold, pipeline in _fitted(entry, head, budget, seed):
        answers[fold.test] = pipeline.predict(entry.values[fold.test])
        tuned.append(chosen(pipeline[-1]))
    tested = np.flatnonzero(answers >= 0)
    return _balanced(entry, tested, (answers[tested] == rows.labels[tested]).astype(float), about={"chosen": tuned})


def _fitted(entry: Entry, head: str, budget: LabelBudget, seed: int) -> Iterator[tuple[Fold, Pipeline]]:
    """Each fold with a pipeline fitted on its labelled training rows."""
    labels = entry.rows.labels
    for fold in entry.folds(seed):
        train = entry.learning(fold, budget, seed)
        if not np.isin(labels[fold.test], labels[train]).any():
            raise NotApplicable(
                f"{entry.deck.place.name}: no class of the tested pictures has a picture to learn from; ask for "
                "few-shot or retrieval there"
            )
        yield fold, _fit(entry, head, train, seed)


def _fit(entry: Entry, head: str, train: np.ndarray, seed: int) -> Pipeline:
    """A pipeline fitted on the rows ``train``; what it chooses, it chooses by folds inside these."""
    key = (head, train.tobytes(), seed)
    if key not in entry.fitted:
        labels, inside = entry.rows.labels[train], entry.rows.clusters(train)
        pipeline = make_pipeline(Arm("deep", head), inner=inner_folds(labels, inside, seed=seed), seed=seed)
        entry.fitted[key] = fit_pipeline(pipeline, entry.values[train], labels, inside)
    return entry.fitted[key]


def _balanced(entry: Entry, tested: np.ndarray, right: np.ndarray, about: dict[str, Any]) -> Outcome:
    """Balanced accuracy: the mean over classes of the share of right answers."""
    labels = entry.rows.labels[tested]
    return of_rows(
        right,
        entry.units(tested),
        metric="balanced_accuracy",
        chance=1 / len(np.unique(labels)),
        strata=labels,
        about=about,
    )


def robustness(entry: Entry, budget: LabelBudget, seed: int) -> Outcome:
    """Balanced accuracy of the linear probe on damaged copies of the tested pictures, mean over the kinds of damage.

    The probe learns from pictures as they are. ``about`` holds the score of each kind and that on undamaged pictures.
    """
    rows = entry.rows
    kinds = [f"{kind}/{SEVERITY}" for kind in CORRUPTIONS]
    right = np.full((1 + len(kinds), len(rows.labels)), np.nan)
    for fold, pipeline in _fitted(entry, "logistic", budget, seed):
        test = np.asarray(fold.test)
        for row, kind in enumerate([None, *kinds]):
            values = entry.values[test] if kind is None else entry.corrupted(kind, test)
            right[row, test] = pipeline.predict(values) == rows.labels[test]
    tested = np.flatnonzero(~np.isnan(right[0]))
    each = {
        kind: _balanced(entry, tested, right[row, tested], {}).value for row, kind in enumerate(["undamaged", *kinds])
    }
    return _balanced(entry, tested, right[1:, tested].mean(axis=0), about={"balanced_accuracy": each})


def retrieval(entry: Entry, budget: LabelBudget, seed: int) -> Outcome:
    """Mean average precision of the tested pictures as queries against each other; nothing is learnt."""
    tested = entry.tested()
    labels, units = entry.rows.labels[tested], entry.units(tested)
    found = leave_one_out_retrieval(entry.values[tested], labels, units, ks=(1, 5, 10), n_boot=1)
    precision = np.array([np.nan if value is None else value for value in found["average_precision"]])
    asked = np.flatnonzero(np.isfinite(precision))
    if not len(asked):
        raise NotApplicable(f"{entry.deck.place.name}: no tested picture has another one of its class to be found")
    told = {name: found[name]["value"] for name in ("recall_at_1", "recall_at_5", "recall_at_10", "hit_at_1")}
    units = np.unique(units[asked], return_inverse=True)[1]
    return of_rows(precision[asked], units, metric="mean_average_precision", chance=found["chance"], about=told)


def other_data(entry: Entry, budget: LabelBudget, seed: int, *, tested_on: dict[str, Any]) -> Outcome:
    """Balanced accuracy on another data set with classes of the same names, by a probe that never saw it.

    The probe may answer only classes that both have, as is usual where the other data hold fewer classes.
    """
    other = enter(open_deck(Place.from_dict(tested_on)), entry.backbone, entry.input_size)
    names = [name for name in other.rows.classes if name in entry.rows.classes]
    if len(names) < 2:
        raise NotApplicable(
            f"{entry.deck.place.name} and {other.deck.place.name} share {len(names)} classes; 2 are needed"
        )
    here = np.array([entry.rows.classes.index(name) for name in names])
    place = {other.rows.classes.index(name): number for number, name in enumerate(names)}
    folds = entry.folds(seed)
    whole = Fold(np.arange(len(entry.rows.labels)), np.empty(0, dtype=int), "all pictures")
    taken = folds[0] if len(folds) == 1 else whole  # without a given test part every picture may teach
    pipeline = _fit(entry, "logistic", entry.learning(taken, budget, seed), seed)
    known = np.isin(here, pipeline.classes_)
    if known.sum() < 2:
        raise NotApplicable(f"{entry.deck.place.name}: fewer than 2 of the shared classes have training pictures")
    columns = np.searchsorted(pipeline.classes_, here[known])
    tested = np.array([row for row in other.tested() if other.rows.labels[row] in place], dtype=int)
    answers = np.flatnonzero(known)[pipeline.predict_proba(other.values[tested])[:, columns].argmax(axis=1)]
    truth = np.array([place[label] for label in other.rows.labels[tested]])
    return _balanced(
        other, tested, (answers == truth).astype(float), about={"classes": names, "learnt_on": len(taken.train)}
    )
