"""A dozen held-out pictures beside a map of what spoke for the answer, for the reports of verbs that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from offshelf.evaluate.explanation_rows import spread
from offshelf.evaluate.rows import Rows
from offshelf.interpret.explainable import Explainable
from offshelf.interpret.explanations import EXPLANATIONS, serving
from offshelf.interpret.map_pictures import drawn, mapped
from offshelf.interpret.saliency import data_uri

EXPLAINED, EXPLAINED_A_CLASS = 12, 2  # pictures in all and of one class


def chosen_rows(rows: Rows, test: np.ndarray) -> np.ndarray:
    """The first test rows of each class; where a picture has several labels, rows spread over all."""
    test = np.asarray(test)
    if rows.labels.ndim == 2:
        return test[spread(len(test), EXPLAINED)]
    first = [row for k in range(len(rows.classes)) for row in test[rows.labels[test] == k][:EXPLAINED_A_CLASS]]
    return np.array(first[:EXPLAINED], dtype=int)


def where_it_looked(subject: Explainable, pixels: np.ndarray, rows: Rows, chosen: np.ndarray) -> dict[str, Any]:
    """Maps of the answers for pictures that the network was not fitted on, by the first method that serves it.

    Parameters
    ----------
    pixels : uint8 (m, 3, h, w), of the ``chosen`` rows, as ``subject`` reads them.

    Returns
    -------
    dict
        ``saliency``: a list of ``path``, ``truth``, ``predicted``, ``confidence``, and ``images``, the picture and its
        map as data URIs; ``looked``: see `told`.
    """
    method = serving(subject.model, subject.example())[0][0]
    probabilities = subject.probability(subject.logits(pixels)).numpy()
    answers = probabilities.argmax(axis=1)
    found = mapped(method, subject.model, subject.inputs(pixels), torch.from_numpy(answers))
    pictures = [
        {
            "path": rows.samples.name(int(row)),
            "truth": _truth(rows, int(row)),
            "predicted": subject.classes[answers[place]],
            "confidence": float(probabilities[place, answers[place]]),
            "images": [data_uri(pixels[place]), data_uri(drawn(method, pixels[place], found, place)[method])],
        }
        for place, row in enumerate(chosen)
    ]
    return {"saliency": pictures, "looked": told(method)}


def told(method: str | None, reason: str | None = None) -> dict[str, Any]:
    """``method``, what its maps ``shows`` and whether they are ``signed``; or the ``reason`` why there are none."""
    if method is None:
        return {"method": None, "reason": reason}
    return {key: getattr(EXPLANATIONS[method], key) for key in ("shows", "caution", "signed")} | {
        "method": method,
        "reason": None,
    }


def _truth(rows: Rows, row: int) -> str:
    if rows.labels.ndim == 2:
        return ", ".join(name for name, yes in zip(rows.classes, rows.labels[row]) if yes == 1) or "none of them"
    return rows.classes[rows.labels[row]]
