"""Fewer labels: how many are asked for, and which training rows are then taken as labelled.

The subsets of one seed are nested: what is labelled at 5 % is labelled at 10 % as well. They are stratified by class,
take whole groups, and hold at least one picture of every class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offshelf.errors import UsageError
from offshelf.evaluate.groups import group_codes

EXPECTED = "a share of the training pictures such as 10%, or a whole number of them such as 50"


@dataclass(frozen=True)
class LabelBudget:
    """How many training pictures shall be labelled: ``text`` as asked for, and either a ``share`` or a ``count``."""

    text: str
    share: float | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> LabelBudget:
        """``"10%"`` or ``"50"``; anything else is refused with what was expected (UsageError)."""
        word = text.strip()
        if re.fullmatch(r"\d+", word):
            if not int(word):
                raise UsageError(f"--labels {text}: nothing can be learnt from 0 pictures; expected {EXPECTED}.")
            return cls(word, count=int(word))
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", word)
        if found and 0 < float(found[1]) <= 100:
            return cls(f"{float(found[1]):g}%", share=float(found[1]) / 100)
        hint = ""
        if found:
            hint = " A share lies above 0% and is at most 100%."
        elif re.fullmatch(r"0?\.\d+|1\.0*", word):
            hint = f" Did you mean {100 * float(word):g}%?"
        raise UsageError(f"--labels {text}: expected {EXPECTED}.{hint}")

    @property
    def said(self) -> str:
        """``"10% of the labels"`` or ``"50 labels"``."""
        return f"{self.text} of the labels" if self.count is None else f"{self.text} labels"

    def of(self, n: int) -> int:
        """So many of ``n`` training pictures, at least 1; more than there are is refused (UsageError)."""
        if self.count is not None:
            if self.count > n:
                raise UsageError(
                    f"--labels {self.text}: there are {n:,} labelled pictures to train on; expected at most that many. "
                    "100% takes them all."
                )
            return self.count
        assert self.share is not None
        return max(1, round(self.share * n))


def parse_budgets(texts: Sequence[str]) -> list[LabelBudget]:
    """All values of ``--labels``; one that stands twice is refused (UsageError)."""
    found = [LabelBudget.parse(text) for text in texts]
    for place, budget in enumerate(found):
        if budget in found[:place]:
            raise UsageError(f"--labels: {budget.text} stands twice; expected each number once.")
    return found


def in_order(budgets: Sequence[LabelBudget], n: int) -> list[LabelBudget]:
    """The budgets from few to many labels of ``n`` training pictures.

    Raises
    ------
    UsageError
        When two come to the same number of pictures, or one to more than there are.
    """
    ordered = sorted(budgets, key=lambda budget: budget.of(n))
    for one, other in zip(ordered, ordered[1:]):
        if one.of(n) == other.of(n):
            raise UsageError(
                f"--labels {one.text} {other.text}: both are {one.of(n):,} of {n:,} pictures; expected numbers that "
                "differ. Leave one of them out."
            )
    return ordered


def labelled_rows(
    labels: np.ndarray, groups: Sequence[Any] | np.ndarray | None, budget: LabelBudget, seed: int
) -> np.ndarray:
    """Positions, ascending, of the rows that count as labelled.

    Parameters
    ----------
    labels
        Of the training rows: class numbers ``(n,)``, or ``(n, K)`` of 1, 0 and NaN.
    groups
        ``(n,)`` groups of the same rows, or ``None``. With groups the number of rows is as near to what was asked for
        as whole groups allow.
    budget, seed
        How many, and the seed of the drawing.

    Raises
    ------
    UsageError
        When so few rows cannot hold every class, or there are fewer rows than asked for.
    """
    y = np.asarray(labels)
    wanted = budget.of(len(y))
    if wanted == len(y):
        return np.arange(len(y))
    codes = group_codes(groups, len(y))
    order, needed = nested_order(_members(y), codes, seed)
    sizes = np.bincount(codes)[order]
    sums = np.cumsum(sizes)
    if sums[needed - 1] > wanted:
        whole = "" if groups is None else ", groups taken whole"
        raise UsageError(
            f"--labels {budget.text}: {wanted:,} of {len(y):,} training pictures are too few for one picture of every "
            f"class{whole}; expected {int(sums[needed - 1]):,} or more."
        )
    taken = max(needed, int(np.argmin(np.abs(sums - wanted))) + 1)
    return np.flatnonzero(np.isin(codes, order[:taken]))


def nested_order(has: np.ndarray, codes: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """An order of all groups whose every beginning is stratified, and how many it takes to meet every class.

    First come groups that hold a class not yet met, the rarest class first, the smallest groups before larger ones.
    The others follow so that each class advances at the same pace.

    Parameters
    ----------
    has
        ``(n, K)`` bool, which classes a row has.
    codes
        ``(n,)`` group codes 0 to G - 1.
    """
    number, n_classes = int(codes.max()) + 1, has.shape[1]
    counts = np.zeros((number, n_classes))
    np.add.at(counts, codes, has)
    sizes, totals = np.bincount(codes), has.sum(axis=0)
    drawn = np.random.default_rng([seed, 3]).permutation(number)
    first: list[int] = []
    for c in sorted(np.flatnonzero(totals), key=lambda c: totals[c]):
        if not counts[first, c].sum():
            holders = drawn[counts[drawn, c] > 0]
            first.append(int(holders[np.argmin(sizes[holders])]))
    # A group belongs to the rarest class that it has, or to none.
    cost = np.where(counts > 0, totals, np.inf)
    stratum = np.where((counts > 0).any(axis=1), cost.argmin(axis=1), n_classes)
    order = np.concatenate([np.array(first, dtype=int), drawn[~np.isin(drawn, first)]])
    pace = np.empty(number)
    for s in np.unique(stratum):
        own = order[stratum[order] == s]
        done = np.cumsum(sizes[own])
        pace[own] = (done - sizes[own] / 2) / done[-1]
    rest = order[len(first) :]
    return np.concatenate([order[: len(first)], rest[np.argsort(pace[rest], kind="stable")]]), len(first)


def _members(y: np.ndarray) -> np.ndarray:
    """Which classes each row has ``(n, K)``; K at least 1."""
    if y.ndim == 2:
        return np.nan_to_num(y) > 0.5
    return y[:, None] == np.unique(y)[None]
