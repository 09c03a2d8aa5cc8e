"""From what every cell came to, to the grid that statistics work on and the tables that people read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offshelf.engine.files import write_through
from offshelf.engine.work import Finished
from offshelf.errors import DataError
from offshelf.evaluate.battle.cells import Column
from offshelf.evaluate.battle.gauntlet import Battle
from offshelf.evaluate.battle.grid import Grid, Setting
from offshelf.evaluate.battle.outcome import replicates_of
from offshelf.evaluate.seeds import over_seeds

TEXT = ("key", "backbone", "setting", "data", "task", "protocol", "labels", "status", "reason", "metric", "chosen")
WHOLE = ("seed", "n", "units", "attempts")
ORDER = (
    *("key", "backbone", "setting", "data", "task", "protocol", "labels", "seed", "status", "reason", "metric"),
    *("value", "low", "high", "n", "units", "chance", "attempts", "seconds", "chosen"),
)
CELLS = pa.schema(
    [(name, pa.string() if name in TEXT else pa.int64() if name in WHOLE else pa.float64()) for name in ORDER]
)


def status_of(outcomes: Sequence[Finished]) -> tuple[str, str]:
    """Status and reason of a cell from its seeds: done when all are, else what the first other one says."""
    for status in ("failed", "not applicable"):
        for one in outcomes:
            if one.status == status:
                return status, one.reason
    return ("done", "") if outcomes else ("missing", "was not asked")


def make_grid(battle: Battle) -> Grid:
    """The cells that are done, in settings where any is; mean over seeds, replicates over units and seeds together.

    Raises
    ------
    DataError
        When no cell at all is done.
    """
    names = [fact["name"] for fact in battle.facts]
    asked = [(column, _done(battle, column)) for column in battle.columns]
    settings, values, drawn = [], [], []
    for column, done in asked:
        if not done:
            continue
        first = next(iter(done.values()))[0]
        settings.append(_setting(column, first.value))
        n_boot = len(replicates_of(first.blob or b""))
        column_values, column_drawn = np.full(len(names), np.nan), np.full((len(names), n_boot), np.nan, np.float32)
        for row, name in enumerate(names):
            if name in done:
                column_values[row], column_drawn[row] = _over_seeds(done[name])
        values.append(column_values)
        drawn.append(column_drawn)
    if not settings:
        reasons = [reason for status, reason in map(status_of, battle.cells.values()) if status != "done"]
        reasons += [column.why_not for column in battle.columns if column.why_not]
        raise DataError(f"no cell of this battle could be measured. First reason: {reasons[0] if reasons else 'none'}")
    return Grid(names, settings, np.stack(values, axis=1), np.stack(drawn, axis=1))


def _done(battle: Battle, column: Column) -> dict[str, list[Finished]]:
    """Backbone -> its outcomes, of the backbones whose seeds are all done."""
    found = {}
    for fact in battle.facts:
        outcomes = battle.cells.get((fact["name"], column.id), [])
        if status_of(outcomes)[0] == "done":
            found[fact["name"]] = outcomes
    return found


def _setting(column: Column, value: dict[str, Any]) -> Setting:
    return Setting(
        id=column.id,
        data=column.deck.place.name,
        task=column.contest.task,
        protocol=column.protocol,
        metric=value["metric"],
        labels=column.variant,
        chance=value["chance"],
        n=value["n"],
        units=value["units"],
    )


def _over_seeds(outcomes: Sequence[Finished]) -> tuple[float, np.ndarray]:
    """Mean over seeds, and its replicates (B,) over units and seeds."""
    values = [np.nan if one.value["value"] is None else one.value["value"] for one in outcomes]
    drawn = np.stack([replicates_of(one.blob or b"") for one in outcomes])
    if len(outcomes) == 1:
        return float(values[0]), drawn[0]
    return float(np.mean(values)), over_seeds(drawn, len(outcomes))


def cell_rows(battle: Battle, grid: Grid, z: np.ndarray) -> list[dict[str, Any]]:
    """One row a backbone and setting, failed and not applicable ones with their reason.

    Parameters
    ----------
    z : (M, S) standardised values of the grid.
    """
    place = {setting.id: number for number, setting in enumerate(grid.settings)}
    found = []
    for column in battle.columns:
        for row, fact in enumerate(battle.facts):
            outcomes = battle.cells.get((fact["name"], column.id), [])
            status, reason = ("not applicable", column.why_not) if column.why_not else status_of(outcomes)
            cell: dict[str, Any] = {
                "backbone": fact["name"],
                "setting": column.id,
                "status": status,
                "reason": reason,
                "attempts": max((one.attempts for one in outcomes), default=0),
                "seconds": round(sum(one.seconds for one in outcomes), 3),
                **dict.fromkeys(("value", "low", "high", "n", "z")),
                "by_seed": [],
                "about": {},
            }
            if status == "done":
                s = place[column.id]
                low, high = np.percentile(grid.drawn[row, s], [2.5, 97.5])
                cell |= {
                    "value": grid.values[row, s],
                    "low": low,
                    "high": high,
                    "n": grid.settings[s].n,
                    "z": z[row, s],
                    "by_seed": [one.value["value"] for one in outcomes],
                    "about": outcomes[0].value["about"],
                }
            found.append(cell)
    for name, reason in battle.absent.items():
        for column in battle.columns:
            found.append(
                {
                    "backbone": name,
                    "setting": column.id,
                    "status": "failed",
                    "reason": reason,
                    "attempts": 0,
                    "seconds": 0.0,
                }
                | dict.fromkeys(("value", "low", "high", "n", "z"))
                | {"by_seed": [], "about": {}}
            )
    return found


def write_cells(path: Path, battle: Battle) -> Path:
    """Every single measurement as Parquet: one row a backbone, setting and seed, with the key of its job.

    Columns: ``key, backbone, setting, data, task, protocol, labels, seed, status, reason, metric, value, low, high, n,
    units, chance, attempts, seconds, chosen`` (what a probe chose inside its training rows, as JSON).
    """
    rows = []
    for column in battle.columns:
        for fact in battle.facts:
            for one in battle.cells.get((fact["name"], column.id), []):
                value = {key: one.value.get(key) for key in ("metric", "value", "low", "high", "n", "units", "chance")}
                rows.append(
                    {
                        "key": one.job.key,
                        "backbone": fact["name"],
                        "setting": column.id,
                        "data": column.deck.place.name,
                        "task": column.contest.task,
                        "protocol": column.protocol,
                        "labels": column.variant,
                        "seed": one.job.spec["seed"],
                        "status": one.status,
                        "reason": one.reason,
                        **value,
                        "attempts": one.attempts,
                        "seconds": one.seconds,
                        "chosen": json.dumps(one.value.get("about", {}).get("chosen")),
                    }
                )
    table = pa.Table.from_pylist(rows, schema=CELLS)
    return write_through(path, lambda temporary: pq.write_table(table, temporary))
