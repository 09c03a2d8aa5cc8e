"""What a pre-training run's numbers say, in plain sentences; the rules are here and nowhere else.

A rate has Wilson's interval, a difference of two rates Newcombe's from the two Wilson intervals (Newcombe 1998, method
10). Both rates of a difference are on the same pictures, which this interval does not use: it is too wide rather than
too narrow, so "more than chance explains" is said too seldom rather than too often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from offshelf.engine.collapse import collapsed
from offshelf.evaluate.intervals import Bounds, wilson_interval

PROBES = {"knn_accuracy": "nearest-neighbour accuracy", "linear_accuracy": "linear accuracy"}
HARDLY_MOVED = 0.01  # of drift: the mean cosine to the start is 0.99 or more


def pretraining_sentences(results: dict[str, Any]) -> list[str]:
    """The verdict at the top of the report of a ``pretrain`` run, most important first.

    Parameters
    ----------
    results
        As documented in `offshelf.report.pretraining`; ``status``, ``training``, ``history`` and ``probes`` are read.
    """
    parts = (_ending, _probes, _loss, _features)
    return [sentence for part in parts for sentence in part(results)]


def difference_interval(first: float, n_first: float, second: float, n_second: float) -> Bounds:
    """Newcombe's interval of ``second - first``, two observed rates.

    56 of 70 less 48 of 80 is 0.2000 [0.0524, 0.3339] (Newcombe 1998, table II).
    """
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, n_first), wilson_interval(second, n_second)
    below = math.hypot(second - low_2, high_1 - first)
    above = math.hypot(high_2 - second, first - low_1)
    return second - first - below, second - first + above


def tenths(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean of the first and of the last tenth of ``values``, and how many each tenth has (at least one)."""
    size = max(1, len(values) // 10)
    return sum(values[:size]) / size, sum(values[-size:]) / size, size


def moved(values: Sequence[float]) -> bool:
    """Whether first and last tenth differ by more than twice the standard error of that difference.

    The scatter of single values is taken from the differences of neighbours (von Neumann 1941), which a trend hardly
    enters; fewer than four values tell nothing.
    """
    if len(values) < 4:
        return False
    first, last, size = tenths(values)
    steps = [b - a for a, b in zip(values, values[1:])]
    variance = sum(step * step for step in steps) / (2 * len(steps))
    return abs(last - first) > 2 * math.sqrt(2 * variance / size)


def _ending(results: dict[str, Any]) -> list[str]:
    status, done = results["status"], results["history"][-1]["step"] if results["history"] else 0
    planned = results["training"].get("of_steps")
    place = f"step {done:,}" + (f" of {planned:,}" if planned else "")
    found = []
    if status == "collapsed":
        found.append(f"Stopped at {place}, because the features collapsed: do not use this backbone.")
    elif status == "diverged":
        found.append(f"Stopped at {place}, because the loss was no longer a number: do not rely on this backbone.")
    elif status == "stopped":
        found.append(f"Stopped at {place}, before the planned end: the numbers are those of an unfinished training.")
    measured = _measured(results)
    reason = collapsed(measured[-1]) if measured else None
    return [*found, reason] if reason else found


def _probes(results: dict[str, Any]) -> list[str]:
    probes = results["probes"]
    if not any(defined(probe.get(key)) for probe in probes for key in PROBES):
        return ["Whether the features became more useful was not measured: there were no labelled pictures to ask."]
    return [sentence for key in PROBES for sentence in _one_probe(probes, key)]


def _one_probe(probes: list[dict[str, Any]], key: str) -> list[str]:
    asked = [probe for probe in probes if defined(probe.get(key))]
    if not asked:
        return []
    start, end = asked[0], asked[-1]
    independent = independent_pictures(end)
    said = f"{end['n']:,} held-out pictures" + (f" of {independent:,} groups" if independent < end["n"] else "")
    line = f"always naming the commonest class reaches {end['chance']:.3f}"
    low, high = wilson_interval(end[key], independent)
    if start is end:
        text = f"{PROBES[key].capitalize()} at step {end['step']:,}: {end[key]:.3f} [{low:.3f}, {high:.3f}] on {said} ("
        return [text + f"{line}); it was measured once, so there is nothing to compare it with."]
    difference = end[key] - start[key]
    below, above = difference_interval(start[key], independent, end[key], independent)
    since = "at the start" if start["step"] == 0 else f"at step {start['step']:,}"
    text = (
        f"{PROBES[key].capitalize()} on {said} went from {start[key]:.3f} {since} to {end[key]:.3f} "
        f"[{low:.3f}, {high:.3f}] at step {end['step']:,} ({line}): "
    )
    change = f"a difference of {difference:+.3f} [{below:+.3f}, {above:+.3f}]".replace("-", "\N{MINUS SIGN}")
    if below > 0:
        text += f"the features became more useful, {change}."
    elif above < 0:
        text += f"the features became less useful, {change}."
    else:
        text += f"{change}, which cannot be told apart from no change."
    if low <= end["chance"]:
        text += " The end cannot be told apart from naming the commonest class."
    return [text]


def _loss(results: dict[str, Any]) -> list[str]:
    values = [record["loss"] for record in results["history"] if defined(record.get("loss"))]
    if not values:
        return ["No loss was recorded."]
    if len(values) == 1:
        return [f"The loss was recorded once: {values[0]:.4g}. Nothing can be said of how it moved."]
    first, last, size = tenths(values)
    means = f"mean of {size} records each" if size > 1 else "one record each"
    shown = f"from {first:.4g} in the first tenth of the records to {last:.4g} in the last ({means})"
    if not moved(values):
        return [f"The loss went {shown}: this cannot be told apart from its scatter."]
    if last < first:
        return [f"The loss fell {shown}."]
    return [f"The loss rose {shown}. With some methods that is how they work; otherwise lower the learning rate."]


def _features(results: dict[str, Any]) -> list[str]:
    measured = _measured(results)
    if not measured:
        return ["The features were not looked at while training, so a collapse would not have been seen."]
    start, end = measured[0], measured[-1]
    if collapsed(end):
        return []  # said at the top
    text = f"No collapse: the effective rank of the features is {end['feature_rank']:.1f}"
    if start is not end and defined(start["feature_rank"]):
        when = "the start" if start["step"] == 0 else f"step {start['step']:,}"
        text += f" ({start['feature_rank']:.1f} at {when})"
    found = [text + "."]
    drift = end.get("drift")
    if defined(drift):
        if drift < HARDLY_MOVED:
            found.append(f"The features hardly moved from where they started (drift {drift:.3f}).")
        else:
            found.append(f"The features moved from where they started: drift {drift:.3f} (0 none, 1 unrelated).")
    return found


def _measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [probe for probe in results["probes"] if "feature_rank" in probe]


def independent_pictures(probe: dict[str, Any]) -> int:
    """How many independent observations the accuracies of a probe rest on: groups where there are fewer of them."""
    return min(probe["n"], probe.get("n_groups") or probe["n"])


def defined(value: Any) -> TypeGuard[float]:
    """Whether a number is there; null and NaN are not."""
    return value is not None and value == value
