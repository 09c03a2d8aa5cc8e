"""The page of a battle and its CSV, held against the numbers they were made from."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from offshelf.errors import RunError
from offshelf.report.build import build_report
from offshelf.report.leaderboard import NEEDED, apples, correlations, in_order, render, tiers_of
from offshelf.report.leaderboard_csv import COLUMNS, write_csv
from offshelf.report.leaderboard_figures import cost_plot, rank_bar, rank_plot
from offshelf.report.leaderboard_grid import grids, in_words, level, undone
from offshelf.report.plotting import Box, Scale, free_place, spanning, ticks
from tests.report.battle_results import KILLED, NO_PATCHES, make_battle, make_run

HUGE = "huge<b>old</b>.in1k"


class Tables(HTMLParser):
    """Every table's body as rows of texts; what is marked hidden is left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] | None = None
        self.body = self.cell = False
        self.hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        if tag == "table":
            name = own.get("id") or own.get("class") or "other"
            self.rows = self.tables.setdefault(name, [])
        elif tag == "tbody":
            self.body = True
        elif tag == "tr" and self.body and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.body and self.rows:
            self.rows[-1].append("")
            self.cell = True
        if self.hidden or ("hidden" in own and tag == "span"):
            self.hidden += tag in ("span", "bdi", "svg")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self.body = False
        elif tag in ("td", "th"):
            self.cell = False
        if self.hidden:
            self.hidden -= tag in ("span", "bdi", "svg")

    def handle_data(self, data: str) -> None:
        if self.cell and not self.hidden and self.rows:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def battle() -> dict[str, Any]:
    return make_battle()


@pytest.fixture(scope="module")
def text(battle: dict[str, Any]) -> str:
    return render(copy.deepcopy(battle), make_run(), Path("run"))


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00")


def test_the_table_stands_in_the_order_of_the_ranks_with_every_number(battle: dict[str, Any], text: str) -> None:
    rows = Tables(text).tables["standing-table"]
    overall = battle["standing"]["overall"]
    nets = {one["name"]: one for one in battle["backbones"]}
    assert len(rows) == len(overall) == 16
    tasks = list(battle["standing"]["tasks"])
    for row, own in zip(rows, overall):
        net = nets[own["backbone"]]
        assert net["label"] in row[1] and own["backbone"] in row[1]
        assert row[0] == ("–" if own["rank"] is None else str(own["rank"]))
        if own["rank"] is None:
            assert "not defined" in row[3] and own["why"] in row[1]
            continue
        assert row[3].startswith(signed(own["score"]))
        assert f"[{own['low']:.2f}, {own['high']:.2f}]".replace("-", "−") in row[3]
        bounds = {own["rank_low"], own["rank_high"]}
        assert row[2] == (f"{min(bounds)} to {max(bounds)}" if len(bounds) == 2 else str(own["rank"]))
        for place, task in enumerate(tasks):
            found = [one for one in battle["standing"]["tasks"][task] if one["backbone"] == own["backbone"]]
            assert row[4 + place].startswith(signed(found[0]["score"]) if found else "none")
    unranked = rows[-1]
    assert HUGE in unranked[1] and "Measured in 20% of the settings" in unranked[1]
    assert "not measured" in unranked[4 + len(tasks) + 1] and "not measured" in unranked[4 + len(tasks) + 2]


def test_every_cell_of_the_grid_shows_its_value_or_why_there_is_none(battle: dict[str, Any], text: str) -> None:
    rows = Tables(text).tables["grid"]
    order = [row["backbone"] for row in battle["standing"]["overall"]]
    labels = {one["name"]: one["label"] for one in battle["backbones"]}
    assert [row[0] for row in rows] == [labels[name] for name in order]
    by_task = sorted(battle["settings"], key=lambda one: list(battle["standing"]["tasks"]).index(one["task"]))
    cells = {(cell["backbone"], cell["setting"]): cell for cell in battle["cells"]}
    words = {"failed": "failed", "not applicable": "n/a", "missing": "missing"}
    seen = 0
    for row, name in zip(rows, order):
        for shown, place in zip(row[1:], by_task, strict=True):
            cell = cells[name, place["id"]]
            assert shown == (f"{cell['value']:.3f}" if cell["status"] == "done" else words[cell["status"]])
            seen += 1
    assert seen == len(battle["cells"]) == 320
    assert text.count('<td class="none" title=') == 21  # 1 failed, 8 not applicable, 12 missing


def test_what_has_no_number_is_listed_once_a_backbone_and_reason_failures_first(battle: dict[str, Any]) -> None:
    found = undone(in_order(*_parts(battle)), battle["settings"], battle["cells"], battle["failures"])
    assert [(one["status"], one["reason"], len(one["settings"]), one["attempts"]) for one in found] == [
        ("failed", KILLED, 1, 3),
        ("not applicable", NO_PATCHES, 4, None),
        ("not applicable", NO_PATCHES, 4, None),
        ("missing", "Not computed yet: the battle was stopped.", 12, None),
    ]
    gone = undone(in_order(*_parts(battle)), battle["settings"], [], [])
    assert [(one["backbone"], one["reason"], len(one["settings"])) for one in gone] == [
        ("all 16 backbones", "No result was recorded.", 20)
    ]


def _parts(battle: dict[str, Any]) -> tuple[Any, Any]:
    return battle["backbones"], battle["standing"]


def test_names_are_escaped_wherever_they_stand(text: str) -> None:
    assert "huge&lt;b&gt;old" in text and "huge<b>" not in text and "<i>e</i>" not in text
    assert not re.search(r'(?:src|href)="https?:', text)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", text)


def test_the_csv_holds_the_numbers_themselves(battle: dict[str, Any], tmp_path: Path) -> None:
    path = write_csv(battle, tmp_path / "leaderboard.csv")
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 16 * 20 + 16
    cells = {(cell["backbone"], cell["setting"]): cell for cell in battle["cells"]}
    places = {(one["data"], one["task"]): one for one in battle["settings"]}
    for row in rows[:320]:
        place = places[row["data"], row["task"]]
        cell = cells[row["backbone"], place["id"]]
        for key in ("value", "low", "high", "z"):
            assert row[key] == "" if cell[key] is None else float(row[key]) == cell[key]
        assert (row["status"], row["reason"], row["n"]) == (cell["status"], cell["reason"], str(cell["n"]))
        assert float(row["chance"]) == place["chance"] and row["seeds"] == "0 1 2"
        assert row["labels"] == (place["labels"] or "")
    overall = {row["backbone"]: row for row in battle["standing"]["overall"]}
    for row in rows[320:]:
        own = overall[row["backbone"]]
        assert row["data"] == row["task"] == "all" and row["reason"] == own["why"]
        assert row["value"] == row["z"] == ("" if own["score"] is None else repr(own["score"]))
        assert row["status"] == ("unranked" if own["rank"] is None else "ranked")
    assert [row["status"] for row in rows].count("failed") == 1
    absent = write_csv(battle | {"cells": battle["cells"][1:]}, tmp_path / "less.csv").read_text("utf-8").splitlines()
    assert absent[1].endswith(",,,,,,0 1 2,missing,No result was recorded.")


def test_equal_results_give_equal_bytes_and_both_files(battle: dict[str, Any], tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(battle), encoding="utf-8")
        (folder / "run.json").write_text(json.dumps(make_run()), encoding="utf-8")
        assert build_report(folder) == folder / "report.html"
        seen.append([(folder / file).read_bytes() for file in ("report.html", "leaderboard.csv")])
        assert sorted(path.name for path in folder.iterdir()) == [
            "leaderboard.csv", "report.html", "results.json", "run.json",
        ]  # fmt: skip
    assert seen[0] == seen[1]


def test_forty_backbones_in_sixty_settings_stay_below_two_megabytes() -> None:
    large = make_battle(40, 60)
    assert len(large["cells"]) == 2400
    page = render(large, make_run(), Path("run"))
    assert 300_000 < len(page.encode()) < 2_000_000
    rows = Tables(page).tables["grid"]
    assert sum(len(row) - 1 for row in rows) == 2400 and len(rows) == 3 * 40  # 12 settings a task, two tasks a table


def test_numbers_that_are_none_are_said_to_be_so(battle: dict[str, Any]) -> None:
    odd = copy.deepcopy(battle)
    first = odd["standing"]["overall"][0]
    first |= {"low": None, "high": None, "rank_low": None, "rank_high": None}
    cell = next(one for one in odd["cells"] if one["backbone"] == first["backbone"])
    cell |= {"value": math.nan, "z": math.nan}
    odd["correlation"]["mean_spearman"]["value"] = math.nan
    row = Tables(render(odd, make_run(), Path("run"))).tables["standing-table"][0]
    assert "[no interval]" in row[3] and row[2] == "no interval"
    page = render(odd, make_run(), Path("run"))
    assert Tables(page).tables["grid"][0][1] == "none" and "Mean of the pairs not defined." in page
    assert not re.search(r"\bnan\b", page.split("<script>")[0], re.IGNORECASE)


def test_the_least_a_battle_can_hold_makes_a_page() -> None:
    least = {
        "verb": "battle",
        "backbones": [{"name": "a"}],
        "settings": [{"id": "s", "data": "d"}],
        "cells": [{"backbone": "a", "setting": "s", "status": "done", "value": 0.5}],
        "standing": {"overall": []},
    }
    page = render(least, {}, Path("run"))
    assert "It is not in the standing." in page and "No backbone has an overall rank." in page
    assert Tables(page).tables["grid"] == [["a", "0.500"]]


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_part_is_named(battle: dict[str, Any], missing: str) -> None:
    with pytest.raises(RunError, match=rf"results\.json: nothing under '{missing}'.*Give the same battle again"):
        render(battle | {missing: None}, make_run(), Path("run"))


def test_a_loose_end_is_named(battle: dict[str, Any]) -> None:
    stray = copy.deepcopy(battle)
    stray["cells"][3]["setting"] = "nowhere"
    with pytest.raises(RunError, match="the setting 'nowhere' has results but is not listed"):
        render(stray, make_run(), Path("run"))
    stray = copy.deepcopy(battle)
    stray["standing"]["tie_groups"][0].append("nobody")
    with pytest.raises(RunError, match="the backbone 'nobody' has results but is not listed"):
        render(stray, make_run(), Path("run"))


def test_backbones_without_a_rank_come_last_and_tiers_go_by_size() -> None:
    standing = {
        "overall": [{"backbone": "b", "rank": 2, "score": 0.1}, {"backbone": "c", "rank": 1, "score": 0.2}],
        "tasks": {"t": [{"backbone": "a", "score": 0.5}]},
        "tie_groups": [["c", "b"]],
    }
    sizes = {"a": ("large", 9), "b": ("tiny", 1), "c": ("base", 5)}
    rows = in_order([{"name": name, "tier": sizes[name][0], "parameters": sizes[name][1]} for name in "abc"], standing)
    assert [row["name"] for row in rows] == ["c", "b", "a"]
    assert [row["group"] for row in rows] == [1, 1, None]
    assert rows[2]["by_task"]["t"]["score"] == 0.5 and rows[0]["by_task"]["t"] is None
    assert tiers_of(rows) == ["tiny", "base", "large"]


def test_settings_of_one_task_stay_together_in_tables_of_at_most_24() -> None:
    sizes = (("a", 10), ("b", 12), ("c", 5), ("d", 30))
    places = [{"id": f"{task}{i}", "task": task, "protocol": "p/v1"} for task, n in sizes for i in range(n)]
    cells = [{"backbone": "x", "setting": place["id"], "status": "done", "value": 0.5} for place in places]
    assert [table["heads"] for table in grids([{"name": "x"}], places, cells)] == [
        [["a", 10], ["b", 12]], [["c", 5]], [["d", 24]], [["d", 6]],
    ]  # fmt: skip


def test_shades_follow_the_score_and_stop_at_four() -> None:
    assert [level(z) for z in (-9.0, -2.0, -0.6, -0.2, 0.2, 0.3, 1.1, 1.9, 7.0)] == [-4, -4, -1, 0, 0, 1, 2, 4, 4]
    assert level(None) is None and level(0.5, 0.25) == 2
    assert [in_words(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_the_front_is_a_stair_through_its_members() -> None:
    rows = [
        {"name": name, "label": name, "family": "CNN", "pretraining": "p", "pretraining_kind": "random",
         "score": score, "parameters": cost, "images_per_second": cost}
        for name, cost, score in (("small", 1e6, 0.0), ("middle", 1e7, 1.0), ("poor", 1e7, 0.5), ("large", 1e8, 2.0),
                                  ("unknown", None, 3.0))
    ]  # fmt: skip
    drawn = str(cost_plot(rows, "parameters", ["small", "middle", "large"], (380, 330)))
    (path,) = re.findall(r'class="front" d="M([^"]+)"', drawn)
    start, *steps = re.split("[HV]", path)
    x, y = map(float, start.split())
    right1, up1, right2, up2 = map(float, steps)
    assert x < right1 < right2 and y > up1 > up2
    assert right1 - x == pytest.approx(right2 - right1, abs=0.2)  # a factor of ten each time
    assert y - up1 == pytest.approx(up1 - up2, abs=0.2)
    assert re.search(rf"M{x:g} {y:g}H{right1:g}V{up1:g}H", drawn)  # to the cost first, then up
    assert drawn.count("<title>") == 4 and "unknown" not in drawn and "of 4 backbones" in drawn
    assert drawn.count('class="behind"') == 1
    turned = str(cost_plot(rows, "images_per_second", ["large"], (380, 330)))
    assert "best for it: large." in turned
    assert cost_plot([row | {"parameters": None} for row in rows], "parameters", [], (380, 330)) is None


def test_rank_bars_lie_where_the_ranks_lie() -> None:
    bar = str(rank_bar(2, 1, 3, 5))  # 1 at 4 pixels, 5 at 80
    assert 'class="thick" d="M4 6L42 6"' in bar and 'cx="23"' in bar
    assert str(rank_bar(None, None, None, 5)) == "" and "thick" not in str(rank_bar(1, None, None, 1))
    rows = [
        {"label": "a<b", "rank": 1, "rank_low": 1, "rank_high": 2, "rank_low_sets": 1, "rank_high_sets": 3, "group": 1},
        {"label": "b", "rank": 2, "rank_low": 1, "rank_high": 2, "rank_low_sets": None, "rank_high_sets": None,
         "group": 1},
        {"label": "c", "rank": 3, "rank_low": None, "rank_high": None, "rank_low_sets": 3, "rank_high_sets": 3,
         "group": 2},
    ]  # fmt: skip
    for width in (1296, 328):
        drawn = str(rank_plot(rows, width))
        assert [drawn.count(f'class="{kind}') for kind in ("thick", "thin", "dot", "bracket", "ground")] == [
            2,
            2,
            3,
            1,
            1,
        ]
        assert "a&lt;b 1, from 1 to 2; b 2, from 1 to 2; c 3." in drawn and "a<b" not in drawn


def test_ticks_are_round_few_and_within() -> None:
    assert ticks(Scale(-2.3, 1.1, 0, 1), 5) == [-2, -1, 0, 1]
    assert ticks(Scale(0.31, 0.39, 0, 1), 4) == pytest.approx([0.32, 0.34, 0.36, 0.38])
    assert ticks(Scale(90, 600, 0, 1, log=True), 5) == [100, 200, 500]
    assert ticks(Scale(3e5, 2e8, 0, 1, log=True), 5) == [1e6, 1e7, 1e8]
    assert Scale(1, 100, 0, 10, log=True).at(10) == 5 and Scale(1, 3, 10, 0).at(2) == 5
    alone = spanning([0.5], 0, 10)
    assert alone.low < 0.5 < alone.high and alone.at(0.5) == pytest.approx(5)


def test_labels_cover_nothing() -> None:
    inside, taken = Box(0, 0, 300, 100), [Box(144, 44, 156, 56)]
    boxes = []
    while found := free_place(150, 50, "resnet", taken, inside):
        boxes.append(found[1])
        taken.append(found[1])
    assert 3 <= len(boxes) < 10
    for i, box in enumerate(taken):
        assert not any(box.meets(other) for other in taken[i + 1 :])
    assert Box(0, 0, 2, 2).meets(Box(1, 1, 3, 3)) and not Box(0, 0, 2, 2).meets(Box(2, 0, 3, 2))


def test_groups_of_one_network_are_told_by_pretraining_and_by_tag_where_it_repeats() -> None:
    members = [
        {"backbone": name, "pretraining": told, "score": score, "low": None, "high": None}
        for name, told, score in (("n.x", "supervised", None), ("n.y", "supervised", 0.1), ("n.z", "random", 0.4))
    ]
    rows = [{"name": name, "tag": name[2:], "label": name} for name in ("n.x", "n.y", "n.z")]
    (group,) = apples([{"group": "n", "members": members}], rows)
    assert [one["title"] for one in group["members"]] == ["random", "supervised (y)", "supervised (x)"]
    assert correlations({"tasks": ["one"]}) is None and correlations(None) is None


def test_the_sentences_and_the_tie_groups_stand_in_words(battle: dict[str, Any], text: str) -> None:
    for sentence in battle["verdict"]:
        assert sentence in text
    assert "2 backbones share the first place." in text
    words = re.sub(r"<[^>]+>", "", text[text.index('<ol class="groups">') : text.index("</ol>")])
    assert "vit base patch16 clip 224 (openai) and vit small patch14 dinov2 (lvd142m) not told apart" in words


def test_what_holds_for_all_backbones_is_said_once() -> None:
    settings = [{"id": name, "task": "t", "protocol": "p/v1", "labels": None} for name in ("a", "b")]
    rows = [{"name": name, "label": name.upper()} for name in ("x", "y")]
    reasons = {("x", "a"): "no labels", ("y", "a"): "no labels", ("x", "b"): "died", ("y", "b"): "no labels"}
    cells = [
        {"backbone": row, "setting": place, "status": "failed" if why == "died" else "not applicable", "reason": why}
        for (row, place), why in reasons.items()
    ]
    found = [(one["backbone"], one["settings"], one["reason"]) for one in undone(rows, settings, cells[:2], [])]
    assert found[0] == ("all 2 backbones", ["a"], "no labels")
    assert [one[0] for one in found[1:]] == ["all 2 backbones"]  # nothing at all was recorded of b
    mixed = [(one["backbone"], one["settings"]) for one in undone(rows, settings, cells, [])]
    assert mixed == [("X", ["b"]), ("X", ["a"]), ("Y", ["a", "b"])]


def test_settings_of_one_task_are_told_apart_by_protocol_and_labels() -> None:
    settings = [
        {"id": "1", "data": "d", "task": "classification", "protocol": "linear/v1", "labels": "10%"},
        {"id": "2", "data": "d", "task": "classification", "protocol": "knn/v1", "labels": "10%"},
        {"id": "3", "data": "d", "task": "retrieval", "protocol": "retrieval/v1", "labels": None},
    ]
    assert [place["asked"] for place in grids([], settings, [])[0]["settings"]] == ["linear, 10%", "knn, 10%", ""]
