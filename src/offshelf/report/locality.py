"""How far attention looks, on the page of ``inspect``: figures and rows of every network's locality.

``results["locality"]`` of such a run is ``{network: study}``, as `offshelf.interpret.locality_look.look` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from offshelf.report.filter_figures import picture
from offshelf.report.numbers import number
from offshelf.report.plotting import Scale, figure, line, plain, px, text, ticks

NETWORKS = 20  # on one page; results.json has all
REACH = 4  # patches around the query that are drawn
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 200, 40, 40


def locality_sections(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the template shows of each network, in the order of the run; at most `NETWORKS`.

    Returns
    -------
    list of dict
        ``network``, ``pictures``, ``unreadable``, ``reading``, ``uniform``, ``grid``, ``figures`` (``title``, ``note``,
        ``figure``) and ``rows``, one a layer: ``name``, ``kind``, ``heads`` (how many), ``gate``, ``non_locality`` and
        ``centre_distance`` (``mean``, ``low``, ``high`` over heads, or None) and ``maps``, a data URI or None.
    """
    return [_section(network, study) for network, study in list(found.items())[:NETWORKS]]


def _section(network: str, study: Mapping[str, Any]) -> dict[str, Any]:
    layers, uniform = study["layers"], study["uniform"]
    figures = []
    far = _span([head for layer in layers for head in layer["heads"]], "non_locality")
    if far is not None:
        told = f"Non-locality of {network} by layer"
        note = "patches away from the query, a point a head; dashed: looking everywhere alike"
        chart = head_chart(layers, "non_locality", told, 1.05 * max(uniform, far["high"]), uniform)
        figures.append({"title": "Non-locality", "note": note, "figure": chart})
    if any(layer["gate"] is not None for layer in layers):
        told = f"Gates of {network} by layer"
        note = "share of positions against content, a point a head; 0.731 is where training starts by default"
        figures.append({"title": "Gates", "note": note, "figure": head_chart(layers, "gate", told, 1.0)})
    return {
        "network": network,
        "pictures": study["pictures"],
        "unreadable": study.get("unreadable", 0),
        "reading": study["reading"],
        "uniform": uniform,
        "grid": study["grid"],
        "figures": figures,
        "rows": [_row(layer, study["grid"][0]) for layer in layers],
    }


def _row(layer: Mapping[str, Any], side: int) -> dict[str, Any]:
    vectors = [head["position"] for head in layer["heads"] if head.get("position") is not None]
    return {
        "name": layer["name"],
        "kind": layer["kind"],
        "heads": len(layer["heads"]),
        "maps": picture(query_maps(vectors, side), len(vectors)) if vectors else None,
        **{key: _span(layer["heads"], key) for key in ("gate", "non_locality", "centre_distance")},
    }


def _span(heads: Sequence[Mapping[str, Any]], key: str) -> dict[str, float] | None:
    """Mean and range over the heads that have the number; None where none has."""
    known = [head[key] for head in heads if head.get(key) is not None]
    if not known:
        return None
    return {"mean": math.fsum(known) / len(known), "low": min(known), "high": max(known)}


def query_maps(vectors: Sequence[Sequence[float]], side: int) -> np.ndarray:
    """Positional attention of a patch in the middle of the grid to those around it, (h, k, k); the largest is 1.

    The scores of a head are v . (dx, dy, dx^2 + dy^2) over all patches of a grid of ``side`` x ``side``; what is drawn
    is a window of at most 2 x `REACH` + 1 patches, with the query in its middle.
    """
    middle = side // 2
    reach = min(REACH, middle, side - 1 - middle)
    dy, dx = np.mgrid[:side, :side] - middle
    scores = np.einsum("hr,rij->hij", np.asarray(vectors, float), np.stack([dx, dy, dx**2 + dy**2]).astype(float))
    maps = np.exp(scores - scores.max(axis=(1, 2), keepdims=True))
    around = slice(middle - reach, middle + reach + 1)
    return maps[:, around, around]


def head_chart(
    layers: Sequence[Mapping[str, Any]], key: str, title: str, top: float, reference: float | None = None
) -> Markup:
    """A number of every head over the layers, hollow where a layer is not gated, and the mean of each layer as a line.

    Parameters
    ----------
    layers : of a study.
    key : "non_locality" or "gate".
    title : what a reader who cannot see it should hear first.
    top : where the vertical axis ends.
    reference : height of a dashed line.
    """
    up = Scale(0, top, HEIGHT - BOTTOM, 8)
    across = Scale(-0.5, len(layers) - 0.5, LEFT, WIDTH - 8)
    parts = []
    for value in ticks(up, 5):
        parts += [
            line(LEFT, up.at(value), WIDTH - 8, up.at(value), "grid"),
            text(LEFT - 6, up.at(value) + 4, plain(value), "muted", "end"),
        ]
    if reference is not None:
        parts.append(line(LEFT, up.at(reference), WIDTH - 8, up.at(reference), "limit"))
    means = [(place, layer[key]) for place, layer in enumerate(layers) if layer[key] is not None]
    steps = "L".join(f"{px(across.at(place))} {px(up.at(mean))}" for place, mean in means)
    parts.append(Markup('<path class="mean" d="M{}"/>').format(steps))
    every = math.ceil(len(layers) / 12)
    for place, layer in enumerate(layers):
        x = across.at(place)
        if place % every == 0:
            parts.append(text(x, HEIGHT - BOTTOM + 17, str(place + 1), "muted", "middle"))
        kind = "plain" if layer["kind"] == "gated" else "few"
        for head in layer["heads"] if layer[key] is not None else ():
            told = f"{layer['name']}, head {head['head'] + 1}: {number(head[key])}"
            circle = f'<circle class="{kind}" cx="{px(x)}" cy="{px(up.at(head[key]))}" r="3.5"/>'
            parts.append(Markup(f"<g><title>{escape(told)}</title>{circle}</g>"))  # noqa: S704 (escaped)
    parts.append(text((LEFT + WIDTH - 8) / 2, HEIGHT - 4, "layer", "muted", "middle"))
    spoken = "; ".join(f"{place + 1}: {number(mean)}" for place, mean in means)
    return figure(WIDTH, HEIGHT, f"{title}, mean over heads: {spoken}.", parts)
