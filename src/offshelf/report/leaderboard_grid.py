"""The leaderboard's grid of all backbones in all settings, and the list of what could not be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = 24  # settings in one grid; more stand below each other
WORDS = {"failed": "failed", "not applicable": "n/a", "missing": "missing"}
UNRECORDED = "No result was recorded."


def grids(
    rows: Sequence[dict[str, Any]], settings: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Tables of at most `COLUMNS` settings, tasks kept together where they fit.

    Returns
    -------
    list of dict
        ``settings``; ``heads``: the task over each stretch of settings and how many they are; ``rows``: a backbone with
        one cell a setting, each with ``word`` (what stands in place of a number, or None) and ``level`` (see `level`).
    """
    found = {(cell["backbone"], cell["setting"]): cell for cell in cells}
    tables = []
    for own in _portions(settings):
        heads: list[list[Any]] = []
        for place in own:
            if heads and heads[-1][0] == place["task"]:
                heads[-1][1] += 1
            else:
                heads.append([place["task"], 1])
        body = [
            {"backbone": row, "cells": [_shown(found.get((row["name"], place["id"]))) for place in own]} for row in rows
        ]
        named = [place | {"asked": _asked(place, settings)} for place in own]
        tables.append({"settings": named, "heads": heads, "rows": body})
    return tables


def _asked(place: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    """What tells a setting from others of its task and data: the protocol where the task has several, and labels."""
    several = len({other["protocol"] for other in settings if other["task"] == place["task"]}) > 1
    words = [place["protocol"].partition("/")[0]] if several else []
    return ", ".join([*words, *([place["labels"]] if place.get("labels") else [])])


def _portions(settings: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    by_task: dict[str, list[dict[str, Any]]] = {}
    for place in settings:
        by_task.setdefault(place["task"], []).append(place)
    portions: list[list[dict[str, Any]]] = [[]]
    for own in by_task.values():
        for start in range(0, len(own), COLUMNS):
            block = own[start : start + COLUMNS]
            if portions[-1] and len(portions[-1]) + len(block) > COLUMNS:
                portions.append([])
            portions[-1] += block
    return portions


def _shown(cell: dict[str, Any] | None) -> dict[str, Any]:
    cell = {"status": "missing", "reason": UNRECORDED} if cell is None else cell
    cell = {"value": None, "low": None, "high": None, "z": None, "n": None, "reason": ""} | cell
    if cell["status"] == "done":
        return cell | {"word": None if cell["value"] is not None else "none", "level": level(cell["z"])}
    return cell | {"word": WORDS.get(cell["status"], cell["status"]), "level": None}


def level(value: float | None, step: float = 0.5) -> int | None:
    """Which of nine shades, from -4 (far below) to 4 (far above); None has none."""
    return None if value is None else max(-4, min(4, round(value / step)))


def undone(
    rows: Sequence[dict[str, Any]],
    settings: Sequence[dict[str, Any]],
    cells: Sequence[dict[str, Any]],
    failures: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Cells without a number, failures first; one entry for all with the same status and reason.

    Where that is all the backbones of a setting, the entry says "all"; otherwise each backbone has its own.
    """
    attempts = {(one["backbone"], one["setting"]): one for one in failures}
    found = {(cell["backbone"], cell["setting"]): cell for cell in cells}
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for status in WORDS:
        for row in rows:
            for place in settings:
                key = (row["name"], place["id"])
                cell = found.get(key, {"status": "missing", "reason": UNRECORDED})
                if cell["status"] != status:
                    continue
                failure = attempts.get(key, {})
                reason = cell.get("reason") or failure.get("reason") or "No reason was recorded."
                tried = failure.get("attempts")
                entry = entries.setdefault(
                    (status, row["name"], reason, tried),
                    {"status": status, "backbone": row["label"], "reason": reason, "attempts": tried, "settings": []},
                )
                entry["settings"].append(place["id"])
    return _together(list(entries.values()), len(rows))


def _together(entries: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Join the entries of all ``n`` backbones that say the same of the same settings."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in entries:
        key = (one["status"], one["reason"], one["attempts"], tuple(one["settings"]))
        found.setdefault(key, []).append(one)
    joined = []
    for own in found.values():
        joined += [own[0] | {"backbone": f"all {n} backbones"}] if len(own) == n > 1 else own
    return joined


def in_words(names: Sequence[str]) -> str:
    """``a``; ``a and b``; ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
