"""What a check says: a level, a sentence with its numbers, what to do, and the rows behind it."""

from __future__ import annotations

from typing import Any

LEVELS = ("alarm", "warning", "not judged", "fine")  # from the worst to the best


def finding(key: str, title: str, level: str, sentence: str, todo: str = "", **rows: Any) -> dict[str, Any]:
    """One check's result, ready for JSON.

    Parameters
    ----------
    key, title : short name for programs, and the same for people.
    level : one of `LEVELS`.
    sentence : what was found, with its numbers.
    todo : what the reader should do about it; empty when nothing is to be done.
    rows : the tables and pictures behind the sentence.
    """
    assert level in LEVELS, level
    return {"key": key, "title": title, "level": level, "sentence": sentence, "todo": todo} | rows


def not_judged(key: str, title: str, reason: str, **rows: Any) -> dict[str, Any]:
    """A check that could not be made, and why."""
    return finding(key, title, "not judged", f"Not judged: {reason}", **rows)


def worst(levels: list[str]) -> str:
    """The level that counts when several are given."""
    return min(levels, key=LEVELS.index, default="fine")


def several(n: int, singular: str, plural: str | None = None) -> str:
    """``1 picture``, ``1,200 pictures``."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def bounds(cell: dict[str, Any], digits: int = 2) -> str:
    """``0.71 [0.66, 0.75]`` of a metric cell."""
    if cell["value"] is None:
        return "not defined"
    if cell["low"] is None:
        return f"{cell['value']:.{digits}f} [no interval]"
    return f"{cell['value']:.{digits}f} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def named(names: list[str], most: int = 3) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
