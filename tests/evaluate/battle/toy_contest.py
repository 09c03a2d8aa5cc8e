"""A contest as somebody else would write it."""

from __future__ import annotations

import numpy as np

from offshelf.evaluate.battle.decks import Entry
from offshelf.evaluate.battle.outcome import Outcome, of_rows
from offshelf.evaluate.label_subsets import LabelBudget


def spread(entry: Entry, budget: LabelBudget, seed: int) -> Outcome:
    """Mean distance of a picture from the middle of all."""
    distance = np.linalg.norm(entry.values - entry.values.mean(axis=0), axis=1)
    return of_rows(distance, entry.units(np.arange(len(distance))), metric="spread", chance=0.0)
