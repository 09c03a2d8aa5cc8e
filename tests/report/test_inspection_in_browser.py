"""The page of an inspection as a reader meets it: both colour schemes, a desk, a telephone, without a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offshelf.report.build import build_report
from tests.report.browsing import Opened
from tests.report.inspect_results import HOSTILE, make_inspection
from tests.report.test_leaderboard_in_browser import CONTRAST


@pytest.fixture
def page(run_folder: Callable[..., Path]) -> Path:
    return build_report(run_folder(make_inspection()))


@pytest.fixture
def opened_page(page: Path, opened: Callable[..., Opened]) -> Callable[..., Opened]:
    return lambda **how: opened(page, table="networks-table", **how)


def test_networks_sort_and_what_has_no_number_stays_last(opened_page: Callable[..., Opened]) -> None:
    one = opened_page()
    labels = [HOSTILE, *(f"design_{number}.offshelf_finetune_cifar10" for number in (1, 2, 3))]
    assert one.column("Network") == labels
    one.button("Sparsity").click()
    assert one.column("Network") == labels[::-1] and one.sorted_by("Sparsity") == "ascending"
    for direction in ("ascending", "descending"):
        one.button("Entropy").click()
        assert one.sorted_by("Entropy") == direction and one.column("Network")[-1] == labels[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_ground(opened_page: Callable[..., Opened], scheme: str) -> None:
    one = opened_page(scheme=scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = one.page.evaluate(CONTRAST)
    assert found["seen"] > 250 and found["shaded"] >= 14
    assert found["least"] >= 4.5, found["where"]


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_it_fits_its_window(opened_page: Callable[..., Opened], tmp_path: Path, width: int, scheme: str) -> None:
    one = opened_page(width=width, scheme=scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    wide, narrow = (one.page.locator(f"#shifts .{kind}-only").is_visible() for kind in ("wide", "narrow"))
    assert (wide, narrow) == (width > 720, width <= 720)
    # Filters are drawn in whole pixels, all of the same size.
    drawn = one.page.locator("img.filters").first.bounding_box()
    assert drawn is not None and drawn["width"] % 47 == 0
    picture = tmp_path / "page.png"
    one.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000


def test_without_a_script_everything_is_there(page: Path, browser: Any) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    one = context.new_page()
    one.goto(page.as_uri())
    assert one.locator("#networks-table tbody tr").count() == 4
    assert one.locator("details.network").first.locator("summary").is_visible()
    context.close()
