"""The report as a reader meets it: in a browser, offline, by mouse and keyboard, on a desk and on a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offshelf.report.build import build_report
from tests.report.browsing import Opened


@pytest.fixture
def report(results: dict[str, Any], run_folder: Callable[..., Path]) -> Path:
    results["arms"][1]["metrics"]["macro_auroc"] = {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "interval": "none",
    }
    return build_report(run_folder(results))


def test_a_click_sorts_and_a_second_one_turns_the_order_round(report: Path, opened: Callable[..., Opened]) -> None:
    one = opened(report)
    balanced = [float(text) for text in one.column("Balanced accuracy")]
    assert balanced == sorted(balanced, reverse=True) and one.sorted_by("Balanced accuracy") == "descending"

    one.button("Log loss").click()
    up = [float(text) for text in one.column("Log loss")]
    assert up == sorted(up) and len(set(up)) == 3
    assert one.sorted_by("Log loss") == "ascending" and one.sorted_by("Balanced accuracy") is None
    before = one.column("Arm")
    one.button("Log loss").click()
    assert one.column("Arm") == before[::-1] and one.sorted_by("Log loss") == "descending"


def test_undefined_sorts_last_in_both_directions(report: Path, opened: Callable[..., Opened]) -> None:
    one = opened(report)
    for direction in ("descending", "ascending"):
        one.button("Macro AUROC").click()
        assert one.sorted_by("Macro AUROC") == direction
        *numbers, last = one.column("Macro AUROC")
        assert last == "not defined"
        assert numbers == sorted(numbers, reverse=direction == "descending")


def test_the_keyboard_sorts_names_too(report: Path, opened: Callable[..., Opened]) -> None:
    one = opened(report)
    one.button("Arm").focus()
    one.page.keyboard.press("Enter")
    assert one.column("Arm") == ["deep + logistic", "deep + svm-rbf", "reproductive + svm-linear"]
    assert one.sorted_by("Arm") == "ascending"
    one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.textContent") == "n"


def test_the_filter_hides_rows_and_counts_what_is_left(report: Path, opened: Callable[..., Opened]) -> None:
    one = opened(report)
    status = one.page.locator("[data-counts=arms-table]")
    assert status.get_attribute("role") == "status" and status.text_content() == "3 of 3 arms"
    box = one.page.get_by_label("Filter arms")
    box.fill("SVM deep")
    assert one.column("Arm") == ["deep + svm-rbf"] and status.text_content() == "1 of 3 arms"
    box.fill("nothing like it")
    assert one.column("Arm") == [] and status.text_content() == "0 of 3 arms"
    box.fill("")
    assert len(one.column("Arm")) == 3


def test_the_command_can_be_copied(report: Path, opened: Callable[..., Opened]) -> None:
    one = opened(report)
    one.page.get_by_role("button", name="Copy").click()
    status = one.page.locator("[data-copied]")
    status.filter(has_text="Copied").wait_for(timeout=5000)
    assert one.page.evaluate("getSelection().toString().trim()").startswith("offshelf fit films/train.csv")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_it_fits_its_window(
    report: Path, opened: Callable[..., Opened], tmp_path: Path, width: int, scheme: str
) -> None:
    one = opened(report, width=width, scheme=scheme)
    picture = tmp_path / f"report-{scheme}-{width}.png"
    one.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    assert one.page.evaluate("innerWidth") == width
    assert one.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_figures_follow_the_colours_of_the_page(report: Path, opened: Callable[..., Opened]) -> None:
    seen = []
    for scheme in ("light", "dark"):
        one = opened(report, scheme=scheme)
        ask = "([query, key]) => getComputedStyle(document.querySelector(query))[key]"
        ink = one.page.evaluate(ask, ["body", "color"])
        assert one.page.evaluate(ask, [".wide-only svg text[style*='700']", "fill"]) == ink
        seen.append((ink, one.page.evaluate(ask, ["body", "backgroundColor"])))
    assert seen[0] != seen[1] and seen[0][1] == "rgb(253, 253, 252)" and seen[1][1] == "rgb(19, 22, 25)"


def test_paper_shows_what_was_folded(report: Path, opened: Callable[..., Opened], tmp_path: Path) -> None:
    one = opened(report)
    folded = one.page.locator("details:not([open])").count()
    assert folded > 3
    one.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert one.page.locator("details:not([open])").count() == 0
    one.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert one.page.locator("details:not([open])").count() == folded
    one.page.emulate_media(media="print")
    one.page.set_viewport_size({"width": 690, "height": 980})  # A4 within its margins
    assert not one.page.get_by_label("Filter arms").is_visible()
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 690
    paper = tmp_path / "report.pdf"
    one.page.pdf(path=paper, format="A4")
    assert paper.read_bytes().startswith(b"%PDF-")
