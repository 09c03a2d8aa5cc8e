"""A benchmark of several parts: jobs whose contestants run in turn, judged by the first, and shown as one table a job.

A part is a function ``part(size, threads) -> [(title, job, {name: contestant})]``. A contestant hands back facts:
``step_seconds`` where steps were timed; else ``count`` things of a ``unit`` (``pictures`` of a picture) were done
between start and stop. ``columns`` (name -> text) are shown beside, and an array ``loss`` as the last loss.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks._process import Measured, in_child, in_turn, ratios
from benchmarks.keeping import Quiet, record
from benchmarks.tables import Table, number, spread
from offshelf.errors import UsageError, near

Job = tuple[str, dict[str, Any], dict[str, Callable[[int], Measured]]]
Part = Callable[[dict[str, Any], int], list[Job]]


def child(module: str, function: str, threads: int, job: dict[str, Any]) -> Callable[[int], Measured]:
    """A contestant: a function of a module, in a process of its own."""
    return lambda _: in_child(f"{module}:{function}", job, threads)


def measure_parts(
    benchmark: str,
    jobs: Mapping[str, Part],
    sizes: Mapping[str, Mapping[str, dict[str, Any]]],
    size: str,
    parts: Sequence[str],
    rounds: int,
    threads: int,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every part's contestants in turn; the first of each is the baseline of its ratios.

    Raises
    ------
    UsageError
        For a size or a part that there is not.
    """
    if size not in sizes:
        raise UsageError(f"size={size!r}{near(size, sizes)}; expected one of {', '.join(sizes)}.")
    for part in parts:
        if part not in jobs:
            raise UsageError(f"part {part!r}{near(part, jobs)}; expected one of {', '.join(jobs)}.")
    quiet = Quiet()
    found = []
    for part in parts:
        for title, job, contestants in jobs[part](sizes[size][part], threads):
            say(f"{part}: {title}")
            runs = in_turn(contestants, rounds, say)
            found.append({"part": part, "title": title, "job": job, "contestants": _judged(runs)})
    return record(benchmark, command, {"size": size, "rounds": rounds, "threads": threads}, quiet, parts=found)


def _unit(run: Measured) -> str:
    return "step" if "step_seconds" in run.facts else run.facts.get("unit", "picture")


def _seconds(run: Measured) -> float:
    """Of a step where steps were timed, else of a picture, or of what the contestant counts."""
    if "step_seconds" in run.facts:
        return run.facts["step_seconds"]
    return run.seconds / run.facts["count" if "count" in run.facts else "pictures"]


def _judged(runs: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    reference = next(iter(runs.values()))
    return [
        {
            "name": name,
            "seconds": statistics.median(_seconds(run) for run in mine),
            "unit": _unit(mine[0]),
            "ratio": ratios([_seconds(run) for run in reference], [_seconds(run) for run in mine]),
            "peak_memory_mb": statistics.median(run.peak_memory_mb for run in mine),
            "memory_before_mb": statistics.median(run.memory_before_mb for run in mine),
            "last_loss": float(mine[0].arrays["loss"][0]) if "loss" in mine[0].arrays else None,
            "columns": mine[0].facts.get("columns", {}),
            "rounds": [run.numbers() | {"unit_seconds": _seconds(run)} for run in mine],
        }
        for name, mine in runs.items()
    ]


def tables_of_parts(kept: dict[str, Any], headings: Mapping[str, str]) -> list[Table]:
    """One table a job."""
    found = []
    for each in kept["parts"]:
        contestants = each["contestants"]
        unit, losses = contestants[0]["unit"], contestants[0]["last_loss"] is not None
        columns = list(contestants[0].get("columns", {}))
        header = ["contestant", "ms a step" if unit == "step" else f"{unit}s/s", "times as fast (per round)",
                  "peak MiB", "above its imports", *columns, *(["last loss"] if losses else [])]  # fmt: skip
        rows = [
            [
                one["name"],
                number(1000 * one["seconds"] if unit == "step" else 1 / one["seconds"]),
                spread(one["ratio"]),
                f"{one['peak_memory_mb']:.0f}",
                f"{one['peak_memory_mb'] - one['memory_before_mb']:.0f}",
                *(one["columns"][name] for name in columns),
                *([f"{one['last_loss']:.4f}"] if losses else []),
            ]
            for one in contestants
        ]
        found.append(Table(f"{headings[each['part']]}: {each['title']}", header, rows))
    return found
