"""The committed leaderboard: its page asks nothing from elsewhere, and page, table and text name the same leader."""

from __future__ import annotations

import csv
import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / "docs" / "leaderboard"


def rows() -> list[dict[str, str]]:
    with (HERE / "leaderboard.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_page_table_and_text_name_the_same_leader() -> None:
    overall = [row for row in rows() if row["data"] == "all"]
    leader = max(overall, key=lambda row: float(row["value"]))["backbone"]
    text, page = ((HERE / name).read_text(encoding="utf-8") for name in ("index.md", "report.html"))
    assert f"`{leader}` leads" in text
    assert f"{leader} leads with a mean score" in re.sub(r"<wbr>|<[^>]+>", "", page)
    assert {row["backbone"] for row in overall} <= set(re.findall(r"[\w./-]+", text))


def test_it_covers_eight_data_sets_and_the_random_twins_of_all_embedded_networks() -> None:
    from offshelf.backbones.embedded import EMBEDDED

    measured = [row for row in rows() if row["status"] == "done"]
    assert len({row["data"] for row in measured}) >= 8
    names = {row["backbone"] for row in measured}
    assert set(EMBEDDED) | {f"{name.partition('.')[0]}.random" for name in EMBEDDED} <= names


def test_the_page_asks_nothing_from_elsewhere() -> None:
    page = (HERE / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    assert len(page) < 2_000_000
