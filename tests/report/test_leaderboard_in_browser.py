"""The leaderboard as a reader meets it: sorting, choosing, both colour schemes, a desk, a telephone and paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offshelf.report.build import build_report
from tests.report.battle_results import make_battle, make_run
from tests.report.browsing import Opened

BATTLE = make_battle()
# Least contrast of text on what lies behind it, over all elements with text of their own; colour-mix gives color(srgb).
CONTRAST = """() => {
  const numbers = text => {
    const found = (text.match(/[\\d.]+(e-?\\d+)?/g) ?? []).map(Number);
    const scaled = text.startsWith("color(") ? found.slice(0, 3).map(one => one * 255) : found.slice(0, 3);
    return [...scaled, found.length > 3 ? found[3] : 1];
  };
  const light = rgb => rgb.slice(0, 3).map(one => one / 255)
    .map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor);
      if (colour[3] === 1) return colour;
    }
  };
  let least = [99, ""], seen = 0, shaded = 0;
  for (const element of document.querySelectorAll("main *")) {
    const own = [...element.childNodes].some(one => one.nodeType === 3 && one.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("select")) continue;
    const style = getComputedStyle(element);
    const ink = light(numbers(element.closest("svg") ? style.fill : style.color)), page = light(behind(element));
    const contrast = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    seen += 1;
    shaded += /^z-?[1-4]$/.test(element.className);
    if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 90)];
  }
  return {least: least[0], where: least[1], seen, shaded};
}"""


@pytest.fixture
def board(run_folder: Callable[..., Path]) -> Path:
    return build_report(run_folder(BATTLE, make_run()))


@pytest.fixture
def opened_board(board: Path, opened: Callable[..., Opened]) -> Callable[..., Opened]:
    return lambda **how: opened(board, table="standing-table", **how)


def labels(names: list[str]) -> list[str]:
    return [one["label"] for name in names for one in BATTLE["backbones"] if one["name"] == name]


def test_a_click_sorts_and_what_has_no_number_stays_last(opened_board: Callable[..., Opened]) -> None:
    one = opened_board()
    overall = [row["backbone"] for row in BATTLE["standing"]["overall"]]
    assert one.column("Backbone") == labels(overall) and one.sorted_by("Rank") == "ascending"
    sizes = {net["name"]: net["parameters"] for net in BATTLE["backbones"]}
    one.button("Parameters").click()
    assert one.column("Backbone") == labels(sorted(overall, key=lambda name: sizes[name]))
    assert one.sorted_by("Parameters") == "ascending" and one.sorted_by("Rank") is None
    for direction in ("descending", "ascending"):
        one.button("Overall").click()
        assert one.sorted_by("Overall") == direction
        assert one.column("Overall")[-1] == "not defined"
    assert one.column("Backbone") == labels(overall[-2::-1] + overall[-1:])


def test_a_task_brings_its_own_ranks_and_order(opened_board: Callable[..., Opened]) -> None:
    one = opened_board()
    task = BATTLE["standing"]["tasks"]["retrieval"]
    names = [row["backbone"] for row in task]
    one.page.get_by_label("Task", exact=True).select_option("retrieval")
    absent = [row["backbone"] for row in BATTLE["standing"]["overall"] if row["backbone"] not in names]
    assert one.column("Backbone") == labels(names + absent) and len(absent) == 1
    assert one.sorted_by("Retrieval") == "descending"
    shown = "[...document.querySelectorAll('.rank span:not([hidden])')].map(one => one.textContent)"
    assert one.page.evaluate(shown) == [*map(str, range(1, 16)), "–"]
    assert not one.button("Clustering").is_visible() and one.button("Retrieval").is_visible()
    one.button("Rank").click()
    one.button("Rank").click()
    assert one.column("Backbone") == labels(names[::-1] + absent)
    one.page.get_by_label("Task", exact=True).select_option("all, overall")
    assert one.column("Backbone") == labels([row["backbone"] for row in BATTLE["standing"]["overall"]])
    assert one.sorted_by("Rank") == "ascending" and one.button("Clustering").is_visible()


def test_size_family_and_name_hide_rows_together_and_the_counter_counts(opened_board: Callable[..., Opened]) -> None:
    one = opened_board()
    status = one.page.locator("[data-narrows] [role=status]")
    assert status.text_content() == "16 of 16 backbones"
    one.page.get_by_label("Size", exact=True).select_option("small (< 30M)")
    small = {net["label"]: net for net in BATTLE["backbones"] if net["tier"] == "small (< 30M)"}
    assert set(one.column("Backbone")) == set(small) and status.text_content() == f"{len(small)} of 16 backbones"
    one.page.get_by_label("Family", exact=True).select_option("ViT")
    vit = {label for label, net in small.items() if net["family"] == "ViT"}
    assert set(one.column("Backbone")) == vit and len(vit) == 3 and status.text_content() == "3 of 16 backbones"
    one.page.get_by_label("Name", exact=True).fill("PATCH16 dino")
    assert one.column("Backbone") == ["vit small patch16 224 (dino)"]
    one.button("Overall").click()  # sorting keeps what is hidden hidden
    assert one.column("Backbone") == ["vit small patch16 224 (dino)"]
    one.page.get_by_label("Name", exact=True).fill("nothing like it")
    assert one.column("Backbone") == [] and status.text_content() == "0 of 16 backbones"


def test_intervals_of_tasks_are_shown_on_demand_and_on_paper(opened_board: Callable[..., Opened]) -> None:
    one = opened_board()
    interval = one.page.locator("#standing-table tbody tr").first.locator("[data-task='1'] .interval")
    assert not interval.is_visible()
    one.page.get_by_label("Intervals of all tasks", exact=True).check()
    assert interval.is_visible()
    one.page.get_by_label("Intervals of all tasks", exact=True).uncheck()
    one.page.get_by_label("Task", exact=True).select_option("classification")
    assert interval.is_visible()
    one.page.get_by_label("Task", exact=True).select_option("all, overall")
    one.page.emulate_media(media="print")
    assert interval.is_visible() and not one.page.get_by_label("Task", exact=True).is_visible()
    one.page.set_viewport_size({"width": 1032, "height": 700})  # A4 lying, within its margins
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 1032


def test_the_keyboard_reaches_the_choices_and_sorts(opened_board: Callable[..., Opened]) -> None:
    one = opened_board()
    one.page.get_by_label("Task", exact=True).focus()
    for _ in range(4):
        one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.dataset.by") == "intervals"
    one.button("Backbone").focus()
    one.page.keyboard.press("Enter")
    assert one.sorted_by("Backbone") == "ascending" and one.column("Backbone")[0] == "coatnet 0 rw 224 (sw in1k)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_ground(opened_board: Callable[..., Opened], scheme: str) -> None:
    one = opened_board(scheme=scheme)
    found = one.page.evaluate(CONTRAST)
    assert found["seen"] > 1000 and found["shaded"] > 150
    assert found["least"] >= 4.5, found["where"]


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1200, "dark"), (360, "light")])
def test_it_fits_its_window(opened_board: Callable[..., Opened], tmp_path: Path, width: int, scheme: str) -> None:
    one = opened_board(width=width, scheme=scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    assert one.page.evaluate("innerWidth") == width
    picture = tmp_path / "board.png"
    one.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000
    wide, narrow = (one.page.locator(f"#ranks .{kind}-only").is_visible() for kind in ("wide", "narrow"))
    assert (wide, narrow) == (width > 720, width <= 720)


def test_without_a_script_everything_is_there(board: Path, browser: Any) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(board.as_uri())
    first = page.locator("#standing-table tbody tr").first
    assert first.locator("[data-task='1'] .interval").is_visible() and not page.locator("[data-narrows]").is_visible()
    assert first.locator(".rank span").nth(0).is_visible() and not first.locator(".rank span").nth(1).is_visible()
    context.close()
