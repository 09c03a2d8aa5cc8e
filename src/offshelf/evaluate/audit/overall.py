"""The verdict of an audit: how bad it is, what to do first, and what was not looked at."""

from __future__ import annotations

from typing import Any

from offshelf.evaluate.audit.finding import LEVELS, worst

FIRST = 3
# Which of two checks of the same level is told first: what makes every number void before what widens it.
ORDER = (
    "leaks",
    "origins",
    "shortcuts",
    "fingerprints",
    "files",
    "balance",
    "label_errors",
    "near_duplicates",
    "more_labels",
)


def overall(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst level, the verdict's sentences, and the first three things to do.

    A check that was not judged makes nothing fine: the verdict says what is unknown.
    """
    raised = sorted(
        (check for check in checks if check["level"] in ("alarm", "warning")),
        key=lambda check: (LEVELS.index(check["level"]), ORDER.index(check["key"])),
    )
    unknown = [check["title"].lower() for check in checks if check["level"] == "not judged"]
    counts = {level: sum(check["level"] == level for check in checks) for level in LEVELS}
    level = worst([check["level"] for check in raised])
    opening = {
        "alarm": "Do not trust a score on this data yet: {n} {alarms}.",
        "warning": "Nothing here makes a score worthless, but look at {n} {warnings} first.",
        "fine": "Nothing was found that would make a score on this data worthless.",
    }[level]
    names = {
        level: ", ".join(check["title"].lower() for check in raised if check["level"] == level)
        for level in ("alarm", "warning")
    }
    verdict = [
        opening.format(
            n=counts[level],
            alarms="alarm" if counts[level] == 1 else "alarms",
            warnings="warning" if counts[level] == 1 else "warnings",
        )
    ]
    verdict += [f"{word}: {names[word.lower()]}." for word in ("Alarm", "Warning") if names[word.lower()]]
    verdict += [f"{check['title']}: {check['sentence']}" for check in raised[:FIRST]]
    if unknown:
        verdict.append(f"Not judged: {', '.join(unknown)}. What was not judged may be wrong.")
    return {
        "level": level,
        "counts": counts,
        "verdict": verdict,
        "todo": [{"check": check["key"], "text": check["todo"]} for check in raised if check["todo"]][:FIRST],
    }
