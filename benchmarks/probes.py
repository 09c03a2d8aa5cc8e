"""Heads on features: offshelf's against scikit-learn's own grid search, for speed and for the same answers."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks._process import Measured, in_child, in_turn, ratios
from benchmarks.keeping import Quiet, record
from benchmarks.tables import Table, number, spread
from offshelf.errors import UsageError, near

HEADS = ("logistic", "svm", "knn", "knn_choice")
PENALTIES = [float(f"{value:.6g}") for value in np.logspace(-4, 2, 10)]
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "toy": {
        "logistic": {"n": 150, "n_test": 60, "d": 24, "classes": 3, "penalties": [0.01, 0.1, 1.0], "folds": 3},
        "svm": {"n": 120, "n_test": 60, "d": 24, "classes": 3, "penalties": [0.1, 1.0, 10.0], "folds": 3},
        "knn": {"n": 200, "n_test": 60, "d": 24, "classes": 4, "k": 5},
        "knn_choice": {"n": 240, "n_test": 60, "d": 24, "classes": 3, "folds": 3},
    },
    "small": {
        "logistic": {"n": 2000, "n_test": 1000, "d": 512, "classes": 10, "penalties": PENALTIES, "folds": 5},
        "svm": {"n": 600, "n_test": 600, "d": 1024, "classes": 3, "penalties": [0.1, 1.0, 10.0], "folds": 5},
        "knn": {"n": 10_000, "n_test": 1000, "d": 256, "classes": 10, "k": 20},
        "knn_choice": {"n": 2000, "n_test": 500, "d": 512, "classes": 10, "folds": 3},
    },
    "paper": {
        "logistic": {"n": 10_000, "n_test": 2000, "d": 2048, "classes": 10, "penalties": PENALTIES, "folds": 5},
        "svm": {"n": 1125, "n_test": 1125, "d": 2048, "classes": 3, "penalties": [0.1, 1.0, 10.0], "folds": 5},
        "knn": {"n": 50_000, "n_test": 2000, "d": 512, "classes": 10, "k": 20},
        "knn_choice": {"n": 10_000, "n_test": 2000, "d": 512, "classes": 10, "folds": 3},
    },
}
"""toy: a second, for tests; paper: the X-ray study's rows for the SVM, a usual probe's for the others."""

SEARCHED = {"logistic", "svm", "knn_choice"}  # scikit-learn's grid search can spread these over processes
THREADED = {"logistic", "knn", "knn_choice"}  # ours use several threads; the SVM keeps to one


def measure(
    size: str,
    heads: Sequence[str],
    rounds: int,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every head's contestants in turn; the first of each is scikit-learn on one thread."""
    if size not in SIZES:
        raise UsageError(f"size={size!r}{near(size, SIZES)}; expected one of {', '.join(SIZES)}.")
    for head in heads:
        if head not in HEADS:
            raise UsageError(f"head {head!r}{near(head, HEADS)}; expected one of {', '.join(HEADS)}.")
    quiet = Quiet()
    found = []
    for head in heads:
        say(f"{head}: {SIZES[size][head]}")
        runs = in_turn(_contestants(head, SIZES[size][head]), rounds, say)
        found.append({"head": head, **SIZES[size][head], "contestants": _judged(head, runs)})
    return record("probes", command, {"size": size, "rounds": rounds}, quiet, heads=found)


def _contestants(head: str, job: dict[str, Any]) -> dict[str, Callable[[int], Measured]]:
    cores = os.cpu_count() or 1

    def one(whose: str, threads: int, **settings: Any) -> Callable[[int], Measured]:
        target = f"benchmarks.probe_contestants:{whose}_{head}"
        return lambda _: in_child(target, {**job, **settings}, threads)

    found = {"scikit-learn, 1 thread": one("sklearn", 1)}
    if cores > 1:
        if head in SEARCHED:
            found[f"scikit-learn, {cores} processes"] = one("sklearn", 1, jobs=cores)
        else:
            found[f"scikit-learn, {cores} threads"] = one("sklearn", cores)
    found["offshelf, 1 thread"] = one("offshelf", 1)
    if cores > 1 and head in THREADED:
        found[f"offshelf, {cores} threads"] = one("offshelf", cores)
    return found


def _judged(head: str, runs: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    reference = next(iter(runs.values()))
    return [
        {
            "name": name,
            "seconds": statistics.median(run.seconds for run in mine),
            "ratio": ratios([run.seconds for run in reference], [run.seconds for run in mine]),
            # of a process that leaves the work to others it says nothing
            "peak_memory_mb": None if "processes" in name else statistics.median(run.peak_memory_mb for run in mine),
            **same_answers(reference[0], mine[0]),
            "rounds": [run.numbers() for run in mine],
        }
        for name, mine in runs.items()
    ]


def same_answers(reference: Measured, other: Measured) -> dict[str, Any]:
    """Whether two contestants found the same.

    Returns
    -------
    dict
        ``equal_predictions``: share of further rows with the same class (neighbours: with the same votes);
        ``path_difference``: the largest difference of the inner-fold score at any value tried; ``chosen``: the value;
        ``objective`` and ``objective_difference`` (other minus reference; null where another value was chosen).
    """
    if "votes" in reference.arrays:
        equal = (reference.arrays["votes"] == other.arrays["votes"]).all(axis=1)
        return {"equal_predictions": float(equal.mean()), "path_difference": None, "chosen": None, "objective": None}
    same = {
        "equal_predictions": float((reference.arrays["predicted"] == other.arrays["predicted"]).mean()),
        "path_difference": float(np.abs(reference.arrays["path"] - other.arrays["path"]).max()),
        "chosen": other.facts["C"],
        "objective": other.facts.get("objective"),
    }
    comparable = same["objective"] is not None and reference.facts["C"] == other.facts["C"]
    return {**same, "objective_difference": same["objective"] - reference.facts["objective"] if comparable else None}


def tables(kept: dict[str, Any]) -> list[Table]:
    """One table a head."""
    return [
        Table(
            f"{each['head']}: {_size(each)}",
            [
                "contestant",
                "seconds",
                "ratio",
                "peak MiB",
                "same predictions",
                "score differs by",
                "chosen",
                "objective",
            ],
            [
                [
                    one["name"],
                    number(one["seconds"]),
                    spread(one["ratio"]),
                    "-" if one["peak_memory_mb"] is None else f"{one['peak_memory_mb']:.0f}",
                    f"{100 * one['equal_predictions']:.2f} %",
                    "-" if one["path_difference"] is None else f"{one['path_difference']:.1e}",
                    "-" if one["chosen"] is None else f"{one['chosen']:g}",
                    "-" if one["objective"] is None else f"{one['objective']:.6f}",
                ]
                for one in each["contestants"]
            ],
        )
        for each in kept["heads"]
    ]


def _size(each: dict[str, Any]) -> str:
    parts = [f"{each['n']:,} x {each['d']:,}, {each['classes']} classes"]
    if "penalties" in each:
        parts.append(f"{len(each['penalties'])} penalties")
    if "folds" in each:
        parts.append(f"{each['folds']} folds")
    if "k" in each:
        parts.append(f"{each['n_test']:,} queries, k = {each['k']}")
    return ", ".join(parts)
