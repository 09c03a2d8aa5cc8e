"""The leaderboard as a table for other programs: one row a backbone and setting, and one a backbone overall."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from offshelf.engine.files import finite, write_atomic
from offshelf.report.leaderboard_grid import UNRECORDED

COLUMNS = (
    "backbone", "architecture", "tag", "family", "tier", "parameters", "data", "task", "protocol", "labels", "metric",
    "chance", "value", "low", "high", "z", "n", "seeds", "status", "reason",
)  # fmt: skip
OVERALL = {"data": "all", "task": "all", "metric": "score"}


def write_csv(results: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the numbers of a battle as CSV, whole or not at all.

    Parameters
    ----------
    results
        As results.json of a battle holds them.
    path
        Of the file. UTF-8 with commas; numbers in full precision; an empty field where there is no number. Rows with
        data and task ``all`` hold the overall score: value and z are the score, low and high its interval over
        examples, status ``ranked`` or ``unranked``.

    Returns
    -------
    Path
        The file.
    """
    results = finite(results)
    cells = {(cell["backbone"], cell["setting"]): cell for cell in results["cells"]}
    overall = {row["backbone"]: row for row in results["standing"].get("overall") or []}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for backbone in results["backbones"]:
        head = backbone | {"backbone": backbone["name"]}
        for setting in results["settings"]:
            cell = cells.get((backbone["name"], setting["id"]), {"status": "missing", "reason": UNRECORDED})
            seeds = " ".join(map(str, setting.get("seeds") or []))
            writer.writerow({key: (head | setting | {"n": None} | cell | {"seeds": seeds}).get(key) for key in COLUMNS})
    for backbone in results["backbones"]:
        row = {"score": None, "rank": None, "why": "", "low": None, "high": None} | overall.get(backbone["name"], {})
        status = "unranked" if row["rank"] is None else "ranked"
        score = {"value": row["score"], "z": row["score"], "low": row["low"], "high": row["high"]}
        head = {key: backbone.get(key) for key in COLUMNS[1:6]} | {"backbone": backbone["name"]}
        writer.writerow(head | OVERALL | score | {"status": status, "reason": row["why"]})
    return write_atomic(path, buffer.getvalue())
