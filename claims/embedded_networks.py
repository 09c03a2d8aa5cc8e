"""How much better each network that ships with the package is than its twin with random weights, on four data sets.

No paper's claim: it says what the embedded weights are worth. Frozen features of whole pictures at 64 pixels, a
logistic regression whose strength is chosen on inner folds of the training part, balanced accuracy on the given test
part. The twin has the same design and the same geometry; three draws of its weights.

Rule, fixed before running (``RULE``). For each network the difference of balanced accuracy, mean over the four data
sets, with a 95 % interval by drawing test groups and the twin's draws again within each data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from claims.common import Clock, better, data_folder, keep, together
from claims.off_the_shelf import Task, make_task, shots
from offshelf.backbones.embedded import EMBEDDED, embedded_card
from offshelf.data.sources import open_dataset
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.metrics import class_counts
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.splits import inner_folds
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.heads import make_head

SLUG, VERSION = "embedded-networks", 1
RULE = (
    "For each network: balanced accuracy with its weights minus with random weights, mean over four data sets, with a "
    "95 % interval by drawing test groups and the random weights again within each data set. A network's weights help "
    "when the interval lies above 0, and harm when below. Shown when all help, contradicted when any harms."
)


@dataclass(frozen=True)
class Sizes:
    """Side in pixels, draws of the twin's weights, resamples."""

    side: int = 64
    draws: tuple[int, ...] = (0, 1, 2)
    resamples: int = 2000


def load_tasks() -> list[Task]:
    """Chest X-rays (groups: patients), waste (blocks of five shots), flowers and aerial scenes (single pictures)."""
    xray = open_dataset(
        data_folder("chest-xray") / "labels.csv", path_column="file", label_column="label", group_column="patient"
    )
    waste = open_dataset(data_folder("trashnet"))
    tasks = [
        make_task("chest X-rays", xray, xray["group"][:]),
        make_task("waste", waste, [shots(image["path"]) for image in waste["image"][:]]),
    ]
    for name, folder in (("flowers", "flowers5"), ("aerial scenes", "rsscn7")):
        dataset = open_dataset(data_folder(folder))
        tasks.append(make_task(name, dataset, list(range(len(dataset)))))
    return tasks


def measure() -> Path:
    """Run all networks and their twins on the real data and write ``claims/results/embedded-networks.json``."""
    clock, sizes = Clock.start(), Sizes()
    tasks = load_tasks()
    found = {name: [compare(name, task, sizes) for task in tasks] for name in EMBEDDED}
    return keep(SLUG, VERSION, summarise(found, tasks, sizes), clock)


@dataclass(frozen=True)
class Compared:
    """One network on one data set: balanced accuracy with its weights ``(1 + resamples,)``, and with each draw of
    random ones ``(draws, 1 + resamples)``; the first of each is on the test part as it is.
    """

    learnt: np.ndarray
    random: np.ndarray

    def difference(self, seed: int = 0) -> np.ndarray:
        """``(1 + resamples,)``: the mean over draws, then draws drawn again beside the test groups."""
        n = len(self.random)
        drawn = np.random.default_rng([seed, 11]).integers(0, n, (self.random.shape[1] - 1, n))
        twins = self.random[:, 1:][drawn.T, np.arange(len(drawn))].mean(axis=0)
        return np.concatenate([[self.learnt[0] - self.random[:, 0].mean()], self.learnt[1:] - twins])


def compare(name: str, task: Task, sizes: Sizes) -> Compared:
    """Both kinds of weights on one data set."""
    design = name.partition(".")[0]
    learnt = scores(name, task, sizes)
    return Compared(learnt, np.stack([scores(f"{design}.random_{draw}", task, sizes) for draw in sizes.draws]))


def scores(backbone: str, task: Task, sizes: Sizes) -> np.ndarray:
    """Balanced accuracy on the test part and on each resample of its groups: ``(1 + resamples,)``."""
    features = DeepFeatures(backbone, input_size=sizes.side).fit_transform(task.samples)
    head = make_head("logistic", cv=inner_folds(task.labels[task.train], task.groups[task.train], 3, 0))
    head.fit(features[task.train], task.labels[task.train])
    return resampled(task, head.predict(features[task.test]), sizes.resamples)


def resampled(task: Task, predicted: np.ndarray, resamples: int) -> np.ndarray:
    """Balanced accuracy of predictions on the test part, and in every resample of its groups."""
    truth, n_classes = task.labels[task.test], int(task.labels.max()) + 1
    units = group_codes(task.groups[task.test], len(task.test))
    point = class_counts(truth, predicted, n_classes).balanced_accuracy
    parts = [
        class_counts(truth, predicted, n_classes, weights).balanced_accuracy
        for weights in resampled_weights(units, resamples, 0)
    ]
    return np.concatenate([np.atleast_1d(point), *parts])


def summarise(found: Mapping[str, list[Compared]], tasks: list[Task], sizes: Sizes) -> dict[str, Any]:
    """The record: a row a network, a column a data set, the verdicts of the rule."""
    rows, parts, numbers = [], {}, {}
    for name, each in found.items():
        differences = [one.difference() for one in each]
        mean = np.mean(differences, axis=0)
        low, high = np.percentile(mean[1:], [2.5, 97.5])
        parts[name] = better(low, high)
        numbers[name] = {"difference": float(mean[0]), "low": float(low), "high": float(high)}
        rows.append([name, *[_cell(one, d) for one, d in zip(each, differences)], _signed(mean)])
    helping = sum(verdict == "shown" for verdict in parts.values())
    means = [numbers[name]["difference"] for name in found]
    return {
        "verdict": together(list(parts.values())),
        "parts": parts,
        "sentence": f"The weights of {helping} of {len(found)} networks help: balanced accuracy minus that of random "
        f"weights, mean of four data sets, from {min(means):+.3f} to {max(means):+.3f}.",
        "rule": RULE,
        "setting": "; ".join(
            f"{task.name}: {len(np.unique(task.labels))} classes, {len(task.train)} training and {len(task.test)} test "
            f"pictures" for task in tasks
        )
        + f". Frozen features of whole pictures at {sizes.side} px, logistic regression with its strength chosen on "
        f"three inner folds. Random weights: {len(sizes.draws)} draws. {sizes.resamples:,} resamples.",
        "table": {"header": ["Network", *[task.name for task in tasks], "mean difference"], "rows": rows},
        "notes": [
            "A cell holds the balanced accuracy with the network's weights, and the difference to random weights with "
            "its interval.",
            *[f"{name}: {embedded_card(name)['data']}; {embedded_card(name)['accuracy']}." for name in found],
        ],
        "numbers": numbers,
    }  # fmt: skip


def _cell(one: Compared, difference: np.ndarray) -> str:
    return f"{one.learnt[0]:.3f}; {_signed(difference)}"


def _signed(drawn: np.ndarray) -> str:
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    return f"{drawn[0]:+.3f} [{low:+.3f}, {high:+.3f}]"
