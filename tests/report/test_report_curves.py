"""Curves over steps: what is drawn, what is thinned, how ticks read."""

from __future__ import annotations

import numpy as np
import pytest

from offshelf.report.curves import Curve, line_chart, neighbours, plain, thinned


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1200, "1,200"), (5e-5, "5e−5"), (2.4e-4, "2.4e−4"), (-0.5, "−0.5"), (3e6, "3e6")],
)
def test_ticks(value: float, text: str) -> None:
    assert plain(value) == text


def test_long_curves_are_drawn_as_means_of_neighbours() -> None:
    steps, values = thinned(range(10), [0, 2, None, 4, None, None, 1, 1, 9, 9], most=5)
    assert neighbours(10, 5) == 2
    np.testing.assert_array_equal(steps, [0.5, 2.5, 4.5, 6.5, 8.5])
    np.testing.assert_array_equal(values, [1, 4, np.nan, 1, 9])


def test_the_chart_speaks_and_marks_intervals_and_chance() -> None:
    curve = Curve("Linear", [0, 10], [0.3, 0.5], [(0.2, 0.4), None])
    chart = line_chart([curve], "Accuracy", "x-", line=0.25, line_label="chance 0.250")
    assert "Accuracy over steps: Linear from 0.3 at step 0 to 0.5 at step 10." in chart
    assert 'id="x-' in chart
    bare = line_chart([Curve("Linear", [0, 10], [0.3, 0.5])], "Accuracy", "x-")
    assert chart.count("<path") > bare.count("<path")  # the interval and the line


def test_one_point_is_a_point() -> None:
    assert "Loss over steps: loss 2 at step 5." in line_chart([Curve("loss", [5], [2.0])], "Loss", "y-")
