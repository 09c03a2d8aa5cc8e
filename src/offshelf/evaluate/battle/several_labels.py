"""The contest for data with several labels a picture: a logistic regression a label, mean area under the ROC curve."""

from __future__ import annotations

import numpy as np

from offshelf.errors import NotApplicable
from offshelf.evaluate.battle.decks import Entry
from offshelf.evaluate.battle.outcome import N_BOOT, Outcome
from offshelf.evaluate.label_subsets import LabelBudget
from offshelf.evaluate.multi_label import LabelScores, measurable
from offshelf.evaluate.splits import inner_folds
from offshelf.transfer.pipelines import Arm, fit_pipeline, make_pipeline


def several_labels(entry: Entry, budget: LabelBudget, seed: int) -> Outcome:
    """Mean AUROC over the labels that can be measured; unknown answers are left aside."""
    rows, folds = entry.rows, entry.folds(seed)
    found = measurable(rows.labels, folds, rows.classes, rows.together)
    if not found.measured.any():
        why = "; ".join(f"{name}: {reason}" for name, reason in list(found.left_out.items())[:3])
        raise NotApplicable(f"{entry.deck.place.name}: no label can be measured ({why})")
    probabilities = np.full(rows.labels.shape, 0.5)
    tested = np.concatenate([fold.test for fold in folds])
    for fold in folds:
        train = entry.learning(fold, budget, seed)
        for k in np.flatnonzero(found.measured):
            known = train[~np.isnan(rows.labels[train, k])]
            answers = rows.labels[known, k].astype(int)
            if len(np.unique(answers)) < 2:
                raise NotApplicable(
                    f"{entry.deck.place.name}: {budget.said} leave one answer only to learn {rows.classes[k]} from"
                )
            inside = rows.clusters(known)
            inner = inner_folds(answers, inside, seed=seed)
            pipeline = make_pipeline(Arm("deep", "logistic"), inner=inner, seed=seed)
            fit_pipeline(pipeline, entry.values[known], answers, inside)
            probabilities[fold.test, k] = pipeline.predict_proba(entry.values[fold.test])[:, 1]
    tested = np.sort(tested)
    scores = LabelScores(rows.labels[tested], probabilities[tested], found.measured)
    units = entry.units(tested)
    return Outcome(
        "macro_auroc",
        float(scores.point().overall["macro_auroc"][0]),
        scores.replicate(units, N_BOOT, 0).overall["macro_auroc"],
        0.5,
        len(tested),
        int(units.max()) + 1,
        {"labels": int(found.measured.sum()), "left_out": found.left_out},
    )
