"""The contest in which all weights move: fine-tuning with one short recipe for every backbone."""

from __future__ import annotations

import numpy as np

from offshelf.data.pixels import load_pixels
from offshelf.evaluate.battle.decks import Entry
from offshelf.evaluate.battle.outcome import Outcome, of_rows
from offshelf.evaluate.label_subsets import LabelBudget
from offshelf.transfer.finetune import FineTune

STEPS, BATCH = 400, 32


def finetuned(entry: Entry, budget: LabelBudget, seed: int, *, image_size: int) -> Outcome:
    """Balanced accuracy on the held-out part: the given test rows, else the first of five folds.

    The recipe is `offshelf.transfer.finetune.FineTune`'s own at about 400 steps of 32, the same for every backbone;
    nothing is chosen on the rows that score.
    """
    rows = entry.rows
    fold = entry.folds(seed if rows.splits is not None else 0)[0]
    train, test = entry.learning(fold, budget, seed), np.asarray(fold.test)
    epochs = max(1, round(STEPS * BATCH / len(train)))
    table, errors = load_pixels(rows.samples, image_size)
    if errors:
        raise next(iter(errors.values()))
    network = FineTune(
        backbone=entry.backbone, image_size=image_size, epochs=epochs, batch_size=BATCH, random_state=seed
    )
    network.fit(table[train], rows.labels[train], rows.clusters(train))
    right = network.classes_[network.probabilities_of(table[test]).argmax(axis=1)] == rows.labels[test]
    return of_rows(
        right.astype(float),
        entry.units(test),
        metric="balanced_accuracy",
        chance=1 / len(np.unique(rows.labels[test])),
        strata=rows.labels[test],
        about={"epochs": epochs, "fold": fold.name, "image_size": image_size},
    )
