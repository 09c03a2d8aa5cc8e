"""The figures of a fine-tuning: the score over the number of labels, and the loss over the epochs."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from offshelf.report.curves import Curve, line_chart
from offshelf.report.inline_svg import DASHES, SERIES

WIDE, LOW, NARROW = (1012, 320), (1012, 240), (340, 250)


def figures_of(curve: dict[str, Any] | None, labels: dict[str, str]) -> dict[str, Any] | None:
    """The label-efficiency curve for a screen and for a telephone, and what its columns are called; None without one.

    Parameters
    ----------
    curve : as `offshelf.evaluate.label_efficiency.efficiency_curve` gives it.
    labels : what the metrics are called on the page.
    """
    if not curve:
        return None
    points, metric = curve["points"], curve["metric"]
    cells = [point["metrics"][metric] for point in points]
    names = {name: labels.get(name, name.replace("_", " ")) for name in points[0]["metrics"]}
    bounds = [(cell["low"], cell["high"]) if cell["low"] is not None else None for cell in cells]
    line = Curve(names[metric], [point["n"] for point in points], [cell["value"] for cell in cells], bounds)
    drawable = any(cell["value"] is not None for cell in cells)
    return {
        "names": names,
        "wide": _chart(line, "ew-", WIDE) if drawable else None,
        "narrow": _chart(line, "en-", NARROW) if drawable else None,
    }


def _chart(line: Curve, prefix: str, size: tuple[int, int]) -> Markup:
    return line_chart([line], line.label, prefix, size=size, over="labelled training picture", log=True)


def training_chart(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Loss, and validation loss where there is one, over the epochs; None with fewer than two epochs."""
    records = [record for record in history if record.get("loss") is not None and record.get("epoch") is not None]
    if len(records) < 2:
        return None
    steps = [record["epoch"] for record in records]
    curves = [Curve("training loss", steps, [record["loss"] for record in records])]
    validation = [record.get("validation_loss") for record in records]
    if any(value is not None for value in validation):
        curves.append(Curve("validation loss", steps, validation))
    legend = [
        {"label": curve.label, "colour": SERIES[i], "dashes": " ".join(f"{length:g}" for length in DASHES[i])}
        for i, curve in enumerate(curves)
    ]
    return {
        "wide": line_chart(curves, "Loss", "tw-", size=LOW, over="epoch"),
        "narrow": line_chart(curves, "Loss", "tn-", size=NARROW, over="epoch"),
        "legend": legend if len(curves) > 1 else [],
    }
