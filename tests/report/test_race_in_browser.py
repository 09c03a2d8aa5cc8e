"""The page of a race as a reader meets it: numbers, both colour schemes, a desk and a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offshelf.report.build import build_report
from tests.report.browsing import Opened
from tests.report.race_results import LIMITS, NAMES, make_race, make_race_run
from tests.report.test_leaderboard_in_browser import CONTRAST


@pytest.fixture
def page(run_folder: Callable[..., Path]) -> Path:
    return build_report(run_folder(make_race(), make_race_run()))


def test_the_page_says_what_the_numbers_say(page: Path) -> None:
    text, results = page.read_text(encoding="utf-8"), make_race()
    assert results["verdict"][0].startswith(f"{NAMES[2]} is first below a training loss of {LIMITS[1]:g}")
    assert f"{NAMES[1]} diverged in 1 of 3 trainings, first at step 120" in results["verdict"][-1]
    assert "3 of 3 never" in text and "at least " in text and "not defined" in text
    assert "<b>network" not in text and "a &lt;b&gt;network" in text
    assert len(text) < 600_000 and build_report(page.parent).read_text(encoding="utf-8") == text


def test_a_network_has_one_colour_in_all_charts(page: Path) -> None:
    from offshelf.report.race import _charts

    charts = _charts(make_race())
    colours = {one["label"]: (one["colour"], one["dashes"]) for one in charts["legend"]}
    assert len(set(colours.values())) == 3
    assert {one["label"]: (one["colour"], one["dashes"]) for one in charts["stream_legend"]} == {
        name: colours[name] for name in NAMES[1:]
    }
    for chart in charts["streams"]:
        assert colours[NAMES[2]][0] in chart["figure"] and colours[NAMES[0]][0] not in chart["figure"]


def test_without_any_curve_there_is_still_a_page(run_folder: Callable[..., Path]) -> None:
    results = make_race()
    for arm in results["arms"]:
        arm["stream"] = None
        arm["curve"] = {"steps": [1], "mean": [None], "low": [None], "high": [None]}
    text = build_report(run_folder(results, make_race_run())).read_text(encoding="utf-8")
    assert "No network made enough steps" in text and 'id="stream"' not in text


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_it_fits_its_window_and_can_be_read(
    page: Path, opened: Callable[..., Opened], width: int, scheme: str, tmp_path: Path
) -> None:
    one: Any = opened(page, width=width, scheme=scheme)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    found = one.page.evaluate(CONTRAST)
    assert found["seen"] > 80 and found["least"] >= 4.5, found["where"]
    wide, narrow = (one.page.locator(f"#curves .{kind}-only").is_visible() for kind in ("wide", "narrow"))
    assert (wide, narrow) == (width > 720, width <= 720)
    one.page.screenshot(path=tmp_path / "race.png", full_page=True)
    assert (tmp_path / "race.png").stat().st_size > 30_000
