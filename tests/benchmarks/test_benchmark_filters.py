"""The contestants of the filters benchmark give the same numbers; how fast is not tested."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import filter_contestants as contestants
from benchmarks._process import Watch


def test_comparing_gives_the_same_shift_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "LAYER", 1500)
    told = {}
    for contestant in (contestants.streamed, contestants.in_memory, contestants.plain):
        watch = Watch()
        facts, told[contestant.__name__] = contestant(watch, 5000)
        assert facts["count"] == 5000 and watch.seconds > 0 and watch.laps["written"] > 0
    assert sum(len(block) for block in contestants.layers(5000)) == 5000
    for name in ("streamed", "in_memory"):
        assert told[name]["ratios"] == pytest.approx(told["plain"]["ratios"], rel=1e-4)
        assert told[name]["shift"] == pytest.approx(told["plain"]["shift"], rel=0.02)  # a mirrored axis moves the bins
    assert told["plain"]["shift"][0] > 0.01


def test_grading_gives_the_same_numbers_two_ways() -> None:
    watch = Watch()
    one, other = contestants.graded(watch, 24, 3), contestants.graded_by_hand(watch, 24, 3)
    assert one[0] == other[0] == {"count": 3 * 24**2, "unit": "filter"}
    assert np.allclose(one[1]["quality"], other[1]["quality"], atol=1e-6)
