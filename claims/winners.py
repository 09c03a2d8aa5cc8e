"""How often the winner of one draw, declared without an interval, is not the winner of a second draw.

No paper's claim: it says what a comparison of backbones on one seed is worth. Eight embedded backbones, eight data
sets, frozen features of whole pictures at 64 pixels, one-hot ridge regression on standardised features with its penalty
chosen on inner folds of the labelled rows.

A draw is a labelled subset of the training rows (stratified, groups whole, its own seed) and half of the test rows
(stratified, groups whole). Its winner is the backbone with the highest balanced accuracy; of equals the first of the
pool, in every draw. The second draw of a pair has another labelled subset and the other half of the test rows, so no
test row serves both. Beside it: the same half with another subset (labels alone), and the other half with the same
subset (test pictures alone). Points lost: 100 times how far, in the second draw, the first winner lies below the
second one; that one is a winner by luck too, so this is the most that is lost.

What an interval would have said: the house's paired comparison (``compare_arms``, groups drawn again) over the test
rows of the first draw, all backbones. A winner is told apart when it is told apart from the runner-up; the tie group is
the winner and all that cannot be told apart from it. This interval knows of test rows, not of labelled subsets.

Rule, fixed before running (``RULE``). The rule is about 10 % of the labels, 20 pairs a data set; 50 % is measured
beside it, with 10 pairs since each takes far longer. Intervals over data sets draw data sets and pairs within each
again, and are stretched for few data sets as those of a battle are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np

from claims.common import Clock, keep
from claims.eight_sets import load_tasks
from claims.off_the_shelf import Task
from claims.winners_told import Pairs, Sizes, summarise
from offshelf.backbones.embedded import EMBEDDED
from offshelf.evaluate.compare import compare_arms
from offshelf.evaluate.label_subsets import LabelBudget, labelled_rows
from offshelf.evaluate.metrics import class_counts
from offshelf.evaluate.splits import inner_folds, outer_folds
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.pipelines import Arm, fit_pipeline, make_pipeline

SLUG, VERSION = "winners", 1


def measure() -> Path:
    """All pairs of draws on the real data; writes ``claims/results/winners.json``."""
    clock, sizes, tasks = Clock.start(), Sizes(), load_tasks()
    found: dict[str, list[Pairs]] = {budget: [] for budget in sizes.pairs}
    for task in tasks:
        features = {name: DeepFeatures(name, input_size=sizes.side).fit_transform(task.samples) for name in EMBEDDED}
        for budget in sizes.pairs:
            found[budget].append(draw_pairs(features, task, budget, sizes))
    return keep(SLUG, VERSION, summarise(found, tasks, sizes), clock)


def draw_pairs(features: Mapping[str, np.ndarray], task: Task, budget: str, sizes: Sizes) -> Pairs:
    """Every pair of draws on one data set; ``features`` (n, D) of all its rows by backbone."""
    each = [draw_pair(features, task, budget, number, sizes.test_resamples) for number in range(sizes.pairs[budget])]
    return Pairs(*(np.stack([getattr(one, field.name) for one in each]) for field in fields(Pairs)))


def draw_pair(features: Mapping[str, np.ndarray], task: Task, budget: str, number: int, resamples: int) -> Pairs:
    """One pair of draws, by its number; the fields without their first axis."""
    truth, groups = task.labels[task.test], task.groups[task.test]
    here, there = (half.test for half in outer_folds(truth, groups, n_folds=2, seed=number))
    one, other = (answers(features, task, budget, seed) for seed in (2 * number, 2 * number + 1))
    apart, tied = judged(truth[here], one[:, here], groups[here], resamples)
    return Pairs(
        balanced_accuracies(truth[here], one[:, here]),
        balanced_accuracies(truth[there], other[:, there]),
        balanced_accuracies(truth[here], other[:, here]),
        balanced_accuracies(truth[there], one[:, there]),
        apart,
        tied,
    )


def answers(features: Mapping[str, np.ndarray], task: Task, budget: str, seed: int) -> np.ndarray:
    """``(M, tested)`` class numbers that each backbone's head answers, fitted on the labelled subset of this seed."""
    subset = labelled_rows(task.labels[task.train], task.groups[task.train], LabelBudget.parse(budget), seed)
    rows = task.train[subset]
    labels, groups = task.labels[rows], task.groups[rows]
    inner = inner_folds(labels, groups, seed=seed)
    found = []
    for values in features.values():
        pipeline = make_pipeline(Arm("deep", "ridge"), inner=inner, seed=seed)
        found.append(fit_pipeline(pipeline, values[rows], labels, groups).predict(values[task.test]))
    return np.stack(found)


def balanced_accuracies(truth: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """``(M,)`` of answers ``(M, n)``."""
    n_classes = 1 + int(max(truth.max(), answered.max()))
    return np.array([class_counts(truth, row, n_classes).balanced_accuracy.item() for row in answered])


def judged(
    truth: np.ndarray, answered: np.ndarray, groups: np.ndarray, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the best of the answers ``(M, n)`` is told apart from the runner-up, and its tie group ``(M,)``."""
    arms = {str(m): row for m, row in enumerate(answered)}
    comparisons, tie_groups = compare_arms(truth, arms, groups=groups, n_boot=resamples)
    apart = np.array(comparisons[0]["told_apart"])  # pairs come best first: the first is winner and runner-up
    return apart, np.isin(np.arange(len(answered)), [int(name) for name in tie_groups[0]])
