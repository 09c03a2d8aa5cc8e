from __future__ import annotations

import re
from typing import Any

import pytest

from offshelf.report.curves import Curve, line_chart
from offshelf.report.label_curve import figures_of, training_chart


def cell(value: float | None) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 9, "interval": "none"}
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9, "interval": "bootstrap"}


def curve_of(points: list[tuple[int, float | None]]) -> dict[str, Any]:
    return {
        "metric": "macro_auroc",
        "seeds": [0, 1],
        "points": [{"labels": str(n), "n": n, "metrics": {"macro_auroc": cell(value)}} for n, value in points],
    }


def ticks(svg: str) -> list[int]:
    texts = [text.replace(",", "") for text in re.findall(r">([\d,.]+)</text>", svg)]
    return [int(text) for text in texts if text.isdigit()]


def test_the_curve_is_drawn_over_a_logarithmic_axis_and_said_aloud() -> None:
    found = figures_of(curve_of([(10, 0.5), (100, 0.7), (1000, 0.8)]), {"macro_auroc": "Mean AUROC"})
    assert found is not None
    assert found["names"] == {"macro_auroc": "Mean AUROC"}
    for size in ("wide", "narrow"):
        assert ticks(found[size])[:3] == [10, 100, 1000]
        assert "labelled training pictures" in found[size]
        assert "from 0.5 at labelled training picture 10 to 0.8 at labelled training picture 1,000" in found[size]
    marks = re.findall(r'<use [^>]*x="([\d.]+)"', found["wide"])
    places = sorted({float(x) for x in marks if float(x) > 60})
    assert len(places) >= 3


def test_crowded_ticks_give_way_and_the_ends_stay() -> None:
    steps = [100, 101, 102, 400, 990, 1000]
    svg = line_chart([Curve("a", steps, [0.1] * 6)], "A", "p-", size=(340, 200), log=True, over="label")
    assert ticks(svg)[:3] == [100, 400, 1000]
    assert {101, 102, 990}.isdisjoint(ticks(svg))


def test_one_point_and_none_at_all() -> None:
    found = figures_of(curve_of([(10, 0.5), (100, None)]), {})
    assert found is not None and "0.5 at labelled training picture 10" in found["wide"]
    nothing = figures_of(curve_of([(10, None), (100, None)]), {})
    assert nothing is not None and nothing["wide"] is None
    assert figures_of(None, {}) is None


def test_the_training_is_drawn_with_its_validation() -> None:
    history = [{"epoch": e, "loss": 1 / e} for e in (1, 2, 3)]
    found = training_chart(history)
    assert found is not None and found["legend"] == []
    assert "training loss from 1 at epoch 1 to 0.3333 at epoch 3" in found["wide"]
    both = training_chart([record | {"validation_loss": 0.5} for record in history])
    assert both is not None
    assert [one["label"] for one in both["legend"]] == ["training loss", "validation loss"]
    assert training_chart(history[:1]) is None
    assert training_chart([]) is None


@pytest.mark.parametrize("size", [(1012, 320), (340, 250)])
def test_equal_curves_give_equal_bytes(size: tuple[int, int]) -> None:
    one, two = (line_chart([Curve("a", [5, 50], [0.1, 0.2])], "A", "p-", size=size, log=True) for _ in "ab")
    assert one == two
