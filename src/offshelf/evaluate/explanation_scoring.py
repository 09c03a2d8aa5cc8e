"""What the maps of one network are worth on the pictures at hand: three tests, each a number with its interval.

Intervals draw pictures again, equal ones together. The rules were fixed before anything was measured: a map is said to
point at the right picture, or to find what the answer rests on, when the interval of its share leaves out chance, or
that of its lead over random squares 0; it is said to stay alike when its mean rank correlation after all layers were
shuffled is 0.5 or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from offshelf.errors import BackboneError
from offshelf.evaluate.intervals import metric_cell
from offshelf.evaluate.resampling import resampled_weights
from offshelf.interpret.explainable import Explainable
from offshelf.interpret.explanation_scores import (
    confident_rows,
    deletion_insertion,
    draw_mosaics,
    grid_pointing_game,
    weight_randomisation,
)
from offshelf.interpret.explanations import maps_of
from offshelf.interpret.feature_reader import FeatureReader
from offshelf.interpret.map_pictures import smoothing

GRID, MOSAICS, SURE = 2, 25, 0.5
STEPS, SQUARES, ORDERS = 8, 8, 2
STAGES, ALIKE = 4, 0.5
RESAMPLES = 2000


def scored(
    subject: Explainable,
    x: torch.Tensor,
    maps: dict[str, torch.Tensor],
    classes: torch.Tensor,
    clusters: np.ndarray,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Deletion, insertion and shuffled weights of each method on the same pictures.

    Parameters
    ----------
    x : (n, 3, H, W); maps : (n, H, W) of each method; classes : (n,), the explained ones.
    clusters : (n,) codes from 0 of what an interval draws as one.
    advance : called after each method with 1.

    Returns
    -------
    results : ``n``, ``random`` and ``methods`` with cells.
    rows : of each method ``deletion``, ``insertion``, ``random_deletion`` and ``random_insertion`` of each picture.
    """
    cells: dict[str, Any] = {}
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name, found in maps.items():
        areas = deletion_insertion(
            subject.model,
            x,
            found,
            classes,
            steps=STEPS,
            squares=SQUARES,
            orders=ORDERS,
            probability=subject.probability,
            seed=seed,
        )
        rows[name] = {key: getattr(areas, key) for key in areas.__dataclass_fields__}
        counts, correlations = weight_randomisation(subject.model, partial(maps_of, name), x, classes, STAGES, seed)
        cells[name] = {
            "deletion": cell(areas.deletion, clusters, seed),
            "insertion": cell(areas.insertion, clusters, seed),
            "deletion_gain": cell(areas.random_deletion - areas.deletion, clusters, seed),
            "insertion_gain": cell(areas.insertion - areas.random_insertion, clusters, seed),
            "shuffled": [
                {"layers": count, "of": counts[-1], "correlation": cell(values, clusters, seed)}
                for count, values in zip(counts, correlations)
            ],
            "grid": None,
        }
        advance(1)
    first = rows[next(iter(rows))]
    random = {key: cell(first[f"random_{key}"], clusters, seed) for key in ("deletion", "insertion")}
    return {"n": len(x), "steps": STEPS, "squares": SQUARES, "random": random, "methods": cells}, rows


def grid_scored(
    subject: Explainable,
    pixels: np.ndarray,
    probabilities: np.ndarray,
    named: np.ndarray,
    methods: Sequence[str],
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """The grid pointing game on pictures that the network is sure and, where it is known, right about.

    Parameters
    ----------
    named : (n,) the class of each picture as given, or else as answered.

    Returns
    -------
    dict
        ``why_not`` (None where it was played), ``classes``, ``pictures``, ``mosaics``, ``size``, ``chance``, ``shrunk``
        (mosaics were brought to the size of one picture, since the network takes no larger ones) and ``cells`` by
        method.
    """
    sure = confident_rows(probabilities, named, SURE)
    classes, cells = len(np.unique(named[sure])), GRID * GRID
    about: dict[str, Any] = {"classes": classes, "pictures": len(sure), "size": GRID, "chance": 1 / cells}
    about |= {"why_not": None, "mosaics": MOSAICS, "shrunk": False, "smooth": smoothing(subject.size[1]), "cells": {}}
    if subject.multi_label or classes < cells:
        about["why_not"] = (
            "each label is answered by itself, so pictures do not compete"
            if subject.multi_label
            else f"{classes} of the classes have a picture that the network names with a probability above "
            f"{SURE:g}, and {cells} are needed"
        )
        return about
    x = subject.inputs(pixels[sure])
    about["shrunk"] = not _takes_larger(subject)
    drawn = draw_mosaics(named[sure], GRID, MOSAICS, seed)
    codes = np.unique(drawn, return_inverse=True)[1].reshape(-1)
    for name in methods:

        def explain(boards: torch.Tensor, k: torch.Tensor, name: str = name) -> torch.Tensor:
            if about["shrunk"]:
                boards = F.interpolate(boards, subject.size, mode="bilinear", antialias=True)
            return maps_of(name, subject.model, boards, k)

        shares = grid_pointing_game(explain, x, named[sure], GRID, MOSAICS, about["smooth"], seed)
        about["cells"][name] = cell(shares.reshape(-1), codes, seed)
        advance(1)
    return about


def _takes_larger(subject: Explainable) -> bool:
    """Whether a network answers pictures of twice its size as they are, each place by itself."""
    if isinstance(subject.model, FeatureReader):  # frozen backbones under a head bring every picture to their own size
        return False
    try:
        with torch.no_grad():
            subject.model(subject.example().repeat(1, 1, GRID, GRID))
    except (AssertionError, RuntimeError, ValueError, BackboneError):
        return False
    return True


def cell(values: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, Any]:
    """The mean of values ``(n,)`` with an interval that draws clusters again; undefined values are left out."""
    known = np.isfinite(values)
    if not known.any():
        return metric_cell(float("nan"), None, 0)
    values, codes = values[known], np.unique(clusters[known], return_inverse=True)[1]
    if codes.max() == 0:
        return metric_cell(float(values.mean()), None, len(values))
    weights = np.concatenate(list(resampled_weights(codes, RESAMPLES, seed)), axis=1)
    return metric_cell(float(values.mean()), values @ weights / weights.sum(axis=0), len(values))


def sentences(scores: dict[str, Any]) -> list[str]:
    """What the numbers say, a sentence for each method and test, by the rules above."""
    told = []
    for name, found in scores["methods"].items():
        gain, last = found["deletion_gain"], found["shuffled"][-1]["correlation"]["value"]
        grid, chance = found["grid"], scores["grid"]["chance"]
        if grid is not None and grid["low"] is not None:
            share = f"{grid['value']:.3f} [{grid['low']:.3f}, {grid['high']:.3f}], chance {chance:.2f}"
            points = "lies on the right one of four pictures more than by chance"
            if grid["low"] <= chance:
                points = "cannot be told from chance in where it lies among four pictures"
            if grid["high"] < chance:
                points = "lies on the right one of four pictures less than by chance"
            told.append(f"{name}: the map {points} ({share}).")
        if gain["low"] is not None:
            lead = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}], n = {gain['n']}"
            if gain["low"] > 0:
                finds = f"taking away its strongest squares costs the answer more than squares at random do ({lead})"
            elif gain["high"] >= 0:
                finds = f"its strongest squares cannot be told from squares at random ({lead})"
            else:
                finds = f"taking away its strongest squares costs the answer less than squares at random do ({lead})"
            told.append(f"{name}: {finds}.")
        if last is not None and last >= ALIKE:
            told.append(
                f"{name}: the map stays alike when all that the network has learnt is shuffled (rank correlation "
                f"{last:.2f}); it shows the picture more than the network."
            )
    return told
