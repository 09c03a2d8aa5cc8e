"""Which network learns sooner? Several are trained side by side on the same batches, over several seeds.

The comparison of Szegedy et al. (2016, arXiv 1602.07261, figures 20 to 26): loss curves of networks that differ in one
thing. Of each network and seed the loss of every step is kept, smoothed by the mean of the last steps; the first step
at which it lies below a threshold says how soon the network got there.

An interval over seeds is Student's, of the logarithm, since steps and their ratios are positive and skewed; with two
or three seeds it is wide, and that is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe
from offshelf.errors import UsageError
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import metric_cell, wilson_interval
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.seeds import over_seeds
from offshelf.interpret.residual_scaling import residual_growth
from offshelf.transfer.classification import ClassificationViews, LabelledPictures
from offshelf.transfer.watched_training import Course, predicted_classes, watched_training

SHARES_OF_CHANCE = (0.6, 0.5)
"""Thresholds where none are asked for: these shares of ln K, the loss of who knows nothing of K classes."""


@dataclass
class Racer:
    """One network in a race: its name, how it is made from a seed (with its classifier), and how it sees a picture.

    has_stream : whether it has residual blocks, so that the RMS after each of them is taken at the start and the end.
    """

    name: str
    make: Callable[[int], nn.Module]
    views: ClassificationViews
    has_stream: bool = False


def convergence_race(
    racers: Sequence[Racer],
    pixels: np.ndarray,
    labels: np.ndarray,
    test_pixels: np.ndarray,
    test_labels: np.ndarray,
    recipe: Recipe,
    *,
    steps: int,
    thresholds: Sequence[float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    smoothing: int = 20,
    test_groups: Sequence[Any] | np.ndarray | None = None,
    launch: Launch | None = None,
    n_boot: int = 2000,
    advance: Callable[[int], None] = lambda n: None,
    told: Callable[[str, int, Course], None] = lambda name, seed, course: None,
) -> dict[str, Any]:
    """Train every network with every seed on the same batches, and say which learns sooner and which ends better.

    Parameters
    ----------
    racers : two or more. The others are compared with the first.
    pixels, labels : uint8 (n, 3, S, S) and class numbers (n,) from 0, to learn from.
    test_pixels, test_labels : never learnt from.
    recipe, steps : how, and how long.
    thresholds : losses to come below; `SHARES_OF_CHANCE` of ln K by default.
    smoothing : steps whose mean is the smoothed loss.
    test_groups : (m,) which test pictures belong together; the bootstrap draws them whole.
    told : called with name, seed and course as each training ends.

    Returns
    -------
    dict
        ``thresholds``, ``seeds``, ``steps``, ``smoothing``; ``arms``: ``name``, ``parameters``, ``curve`` (``steps``
        and the smoothed loss's ``mean``, ``low`` and ``high``, the lowest and the highest seed), ``reached``,
        ``accuracy`` (cell over test pictures and seeds), ``accuracy_by_seed``, ``diverged_at``, ``largest_gradient``,
        ``stream`` (or None) and ``seconds``; ``pairs`` of the first with every other: ``ratios`` of the steps that the
        first took to those of the other, and the difference of ``accuracy`` (other less first).

    Raises
    ------
    UsageError
        For fewer than two networks, names given twice, or settings out of range.
    """
    classes = int(max(labels.max(), test_labels.max())) + 1
    limits = list(thresholds or [round(share * math.log(classes), 2) for share in SHARES_OF_CHANCE])
    _check(racers, limits, steps, smoothing, seeds)
    courses: dict[str, list[Course]] = {racer.name: [] for racer in racers}
    answers: dict[str, list[np.ndarray]] = {racer.name: [] for racer in racers}
    sizes: dict[str, int] = {}
    for seed in seeds:
        for racer in racers:
            model = racer.make(seed)
            sizes[racer.name] = sum(parameter.numel() for parameter in model.parameters())
            data = LabelledPictures(pixels, labels, racer.views, classes, seed=seed)
            course = watched_training(
                model, data, recipe, steps, seed=seed, launch=launch, advance=advance,
                probe=_looking_at(racer, pixels[: recipe.batch_size]) if racer.has_stream else None,
            )  # fmt: skip
            courses[racer.name].append(course)
            answers[racer.name].append(predicted_classes(model, test_pixels, racer.views))
            told(racer.name, seed, course)
    codes = group_codes(test_groups, len(test_labels))
    right = {name: np.stack(rows) == test_labels for name, rows in answers.items()}
    drawn = {name: _resampled(rows, codes, n_boot) for name, rows in right.items()}
    reached = {
        name: [[first_below(smoothed(one.losses, smoothing), limit) for one in found] for limit in limits]
        for name, found in courses.items()
    }
    first = racers[0].name
    return {
        "steps": steps,
        "smoothing": smoothing,
        "seeds": list(seeds),
        "thresholds": limits,
        "chance_loss": math.log(classes),
        "arms": [
            {
                "name": racer.name,
                "parameters": sizes[racer.name],
                "curve": _band([smoothed(one.losses, smoothing) for one in courses[racer.name]], steps),
                "reached": [
                    {"threshold": limit, "by_seed": found, "steps": over_seeds_cell(found)}
                    for limit, found in zip(limits, reached[racer.name])
                ],
                "accuracy": _accuracy_cell(right[racer.name], drawn[racer.name], codes),
                "accuracy_by_seed": right[racer.name].mean(axis=1).tolist(),
                "diverged_at": [one.diverged_at for one in courses[racer.name]],
                "largest_gradient": [_finite(max(one.gradient_norms, default=math.nan)) for one in courses[racer.name]],
                "stream": _stream(courses[racer.name]),
                "seconds": float(np.mean([one.seconds for one in courses[racer.name]])),
            }
            for racer in racers
        ],
        "pairs": [
            {
                "first": first,
                "other": racer.name,
                "ratios": [
                    {"threshold": limit} | step_ratio(a, b, steps)
                    for limit, a, b in zip(limits, reached[first], reached[racer.name])
                ],
                "accuracy": metric_cell(
                    float(right[racer.name].mean() - right[first].mean()),
                    over_seeds(drawn[racer.name] - drawn[first], len(seeds)),
                    len(test_labels),
                ),
            }
            for racer in racers[1:]
        ],
    }


def smoothed(losses: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last ``window`` losses at every step; NaN while there are fewer."""
    values = np.asarray(losses, dtype=float)
    found = np.full(len(values), np.nan)
    if len(values) >= window:
        sums = np.cumsum(np.concatenate([[0.0], values]))
        found[window - 1 :] = (sums[window:] - sums[:-window]) / window
    return found


def first_below(curve: np.ndarray, threshold: float) -> int | None:
    """The first step (from 1) at which the curve lies below the threshold; None where it never does."""
    below = np.flatnonzero(curve < threshold)  # NaN is not below anything
    return int(below[0]) + 1 if len(below) else None


def over_seeds_cell(values: Sequence[float | None]) -> dict[str, Any]:
    """Geometric mean of positive numbers, one a seed, with Student's interval of the logarithm.

    No value where a seed has none; no interval with one seed, or where all seeds give the same.
    """
    empty = {"value": None, "low": None, "high": None, "n": len(values), "interval": "none"}
    if not values or any(value is None for value in values):
        return empty
    logs = np.log(np.asarray(values, dtype=float))
    centre = float(logs.mean())
    spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    if spread < 1e-12:
        return empty | {"value": math.exp(centre)}
    from scipy.stats import t

    half = float(t.ppf(0.975, len(logs) - 1)) * spread / math.sqrt(len(logs))
    return empty | {
        "value": math.exp(centre),
        "low": math.exp(centre - half),
        "high": math.exp(centre + half),
        "interval": "student",
    }


def step_ratio(first: Sequence[int | None], other: Sequence[int | None], steps: int) -> dict[str, Any]:
    """How many times as long the first took as the other, seed by seed.

    One that did not get there in ``steps`` counts as if it had at the last, so that the ratio is a bound: ``bound`` is
    "at least" where the first did not, "at most" where the other did not. There is no ratio where neither did, or where
    bounds of both kinds meet.
    """
    bounds = {
        *["at least" for a, b in zip(first, other) if a is None and b is not None],
        *["at most" for a, b in zip(first, other) if b is None and a is not None],
    }
    neither = any(a is None and b is None for a, b in zip(first, other))
    if neither or len(bounds) == 2:
        return {"by_seed": [None] * len(first), "ratio": over_seeds_cell([None] * len(first)), "bound": None}
    ratios = [(steps if a is None else a) / (steps if b is None else b) for a, b in zip(first, other)]
    return {"by_seed": ratios, "ratio": over_seeds_cell(ratios), "bound": next(iter(bounds), None)}


def _looking_at(racer: Racer, pixels: np.ndarray) -> Callable[[nn.Module], dict[str, Any]]:
    pictures = racer.views.plain(pixels)
    return lambda network: residual_growth(network, pictures.to(next(network.parameters()).device))


def _resampled(right: np.ndarray, codes: np.ndarray, n_boot: int) -> np.ndarray:
    """Accuracies of each seed ``(S, B)`` in the same resamples of the test pictures, groups drawn whole."""
    parts = [right @ weights / weights.sum(axis=0) for weights in resampled_weights(codes, n_boot, 0)]
    return np.concatenate(parts, axis=1)


def _accuracy_cell(right: np.ndarray, drawn: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    value = float(right.mean())
    return metric_cell(
        value, over_seeds(drawn, len(right)), right.shape[1],
        fallback=lambda: wilson_interval(value, count_groups(codes)),
    )  # fmt: skip


def _band(curves: Sequence[np.ndarray], steps: int) -> dict[str, Any]:
    """Mean, lowest and highest over the seeds at every step; None where a seed has nothing (any more)."""
    table = np.full((len(curves), steps), np.nan)
    for row, curve in zip(table, curves):
        row[: len(curve)] = curve
    known = np.isfinite(table).all(axis=0)
    numbers = {"mean": table.mean(axis=0), "low": table.min(axis=0), "high": table.max(axis=0)}
    listed = {name: [float(v) if ok else None for v, ok in zip(row, known)] for name, row in numbers.items()}
    return {"steps": list(range(1, steps + 1))} | listed


def _stream(courses: Sequence[Course]) -> dict[str, Any] | None:
    """The residual stream at the start and at the end, mean over the seeds; None without one."""
    if not all(course.probes for course in courses):
        return None
    ends = {"start": [course.probes[0] for course in courses], "end": [course.probes[-1] for course in courses]}
    found: dict[str, Any] = {"blocks": courses[0].probes[0]["blocks"]}
    for when, probes in ends.items():
        found[when] = [_finite(value) for value in np.mean([[one["entry"], *one["rms"]] for one in probes], axis=0)]
        found[f"zero_share_{when}"] = float(np.mean([one["zero_share"] for one in probes]))
    return found


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _check(
    racers: Sequence[Racer], thresholds: Sequence[float], steps: int, smoothing: int, seeds: Sequence[int]
) -> None:
    names = [racer.name for racer in racers]
    if len(names) < 2:
        raise UsageError(f"{len(names)} network in a race: expected at least two to compare.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{twice[0]} is in the race twice; expected every network once.")
    if not seeds:
        raise UsageError("no seeds: expected at least one, and three for an interval worth its name.")
    if not 1 <= smoothing <= steps:
        raise UsageError(f"smoothing over {smoothing} of {steps} steps: expected from 1 to {steps}. Take more steps.")
    for limit in thresholds:
        if not 0 < limit < float("inf"):
            raise UsageError(f"threshold {limit}: expected a loss above 0, such as 1.2.")
