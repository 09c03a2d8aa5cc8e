"""What a battle found, as ``results.json`` holds it and the leaderboard shows it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from offshelf.data.columns import class_names
from offshelf.data.summary import summarise
from offshelf.engine.job import cores
from offshelf.evaluate.battle.account import (
    apples_result,
    correlation_result,
    pareto_result,
    scaling_result,
    tiers_result,
)
from offshelf.evaluate.battle.cells import Column
from offshelf.evaluate.battle.decks import Deck
from offshelf.evaluate.battle.gather import cell_rows, make_grid
from offshelf.evaluate.battle.gauntlet import Battle, Gauntlet
from offshelf.evaluate.battle.grid import Setting
from offshelf.evaluate.battle.standing import comparisons, standing
from offshelf.evaluate.battle_of_the_backbones import z_scores

FACTS = (
    "name",
    "label",
    "architecture",
    "tag",
    "family",
    "tier",
    "parameters",
    "pretraining",
    "pretraining_kind",
    "pretraining_images",
    "input_size",
    "weights_hash",
)


def battle_results(gauntlet: Gauntlet, battle: Battle, *, seed: int = 0, allow_missing: bool = False) -> dict[str, Any]:
    """Everything that the leaderboard shows; ``cost.total_seconds`` is filled in by the job."""
    grid = make_grid(battle)
    backbones = [
        {key: fact[key] for key in FACTS}
        | {key: battle.costs.get(fact["name"], {}).get(key) for key in ("images_per_second", "memory_mb")}
        | ({} if gauntlet.input_size is None else {"input_size": gauntlet.input_size})
        for fact in battle.facts
    ]
    cells = cell_rows(battle, grid, z_scores(grid.values))
    told: dict[str, Any] = {"seed": seed, "allow_missing": allow_missing}
    protocols = {column.protocol: column.contest for column in battle.columns}
    measured = {setting.id: setting for setting in grid.settings}
    sets = [_data_set(deck) for deck in battle.decks]
    together = "".join(sorted(deck.fingerprint() for deck in battle.decks))
    results = {
        "verb": "battle",
        "title": f"{_many(len(sets), 'data set')}, {_many(len(backbones), 'backbone')}",
        "data": {
            "fingerprint": hashlib.sha256(together.encode()).hexdigest(),
            "source": ", ".join(one["name"] for one in sets),
            "sets": sets,
        },
        "backbones": backbones,
        "absent": battle.absent,
        "protocols": [contest.protocol.to_dict() | {"task": contest.task} for contest in protocols.values()],
        "settings": [_setting(column, measured.get(column.id)) for column in battle.columns],
        "cells": cells,
        "standing": standing(grid, **told),
        "comparisons": comparisons(grid, **told),
        "correlation": correlation_result(grid, backbones, seed=seed),
        "scaling": scaling_result(grid, backbones, **told),
        "apples": apples_result(grid, backbones, **told),
        "tiers": tiers_result(grid, backbones, **told),
        "pareto": pareto_result(grid, backbones, **told),
        "failures": [
            {key: cell[key] for key in ("backbone", "setting", "reason", "attempts")}
            for cell in cells
            if cell["status"] == "failed"
        ],
        "cost": {
            "total_seconds": None,
            "cells": battle.computed + battle.reused,
            "computed": battle.computed,
            "reused": battle.reused,
            "features_computed": battle.extracted,
            "cell_seconds": round(float(np.sum([cell["seconds"] for cell in cells])), 1),
        },
        "engine": _engine(gauntlet),
    }
    results["verdict"] = verdict(results)
    return results


def verdict(results: dict[str, Any]) -> list[str]:
    """The battle in a few plain sentences."""
    place = results["standing"]
    found = [place["sentence"]]
    ranked = [one for one in place["overall"] if one["rank"] is not None]
    unranked = [one for one in place["overall"] if one["rank"] is None]
    if len(ranked) > 1:
        best = ranked[0]
        widest = max(ranked, key=lambda one: (one["rank_high"] or 0) - (one["rank_low"] or 0))
        told = f"{best['backbone']} leads with a mean score of {best['score']:+.2f} standard deviations of this pool"
        if best["rank_low"] is not None:
            told += f"; on other examples of the same kind its rank would be {_ranks(best)} of {len(ranked)}"
            if best["rank_low_sets"] is not None:
                told += f", on other data sets like these {_ranks(best, '_sets')}"
            if _ranks(widest) != _ranks(best):
                told += f". The least certain rank is that of {widest['backbone']}: {_ranks(widest)}"
        found.append(f"{told}.")
    agreement = results["correlation"]["mean_spearman"]
    if agreement["value"] is not None:
        said = f"The tasks rank the backbones alike to a mean rank correlation of {agreement['value']:.2f}"
        others = (results["correlation"]["without_random"] or {}).get("mean_spearman") or {}
        if others.get("value") is not None:
            said += f", {others['value']:.2f} without the random ones"
        found.append(said + ".")
    if unranked:
        found.append(
            f"{_many(len(unranked), 'backbone')} without a full set of results "
            f"{'has' if len(unranked) == 1 else 'have'} no overall rank."
        )
    if results["failures"]:
        found.append(f"{_many(len(results['failures']), 'cell')} failed; the reasons are listed below.")
    return found


def _ranks(one: dict[str, Any], over: str = "") -> str:
    low, high = one[f"rank_low{over}"], one[f"rank_high{over}"]
    return f"{low}" if low == high else f"{low} to {high}"


def _engine(gauntlet: Gauntlet) -> dict[str, Any]:
    workers = gauntlet.workers or (max(1, cores() // gauntlet.threads) if gauntlet.engine == "local" else None)
    found = {"name": gauntlet.engine, "threads": gauntlet.threads}
    return found if workers is None else found | {"workers": workers}


def _setting(column: Column, measured: Setting | None) -> dict[str, Any]:
    """One setting, also where no backbone could be measured in it."""
    nothing = {
        "id": column.id,
        "data": column.deck.place.name,
        "task": column.contest.task,
        "protocol": column.protocol,
        "metric": column.contest.protocol.primary_metric,
        "labels": column.variant,
        "chance": None,
        "n": 0,
        "units": 0,
    }
    return (nothing if measured is None else asdict(measured)) | {"seeds": list(column.seeds)}


def _data_set(deck: Deck) -> dict[str, Any]:
    told = summarise(deck.dataset, deck.keys).to_dict()
    return {
        "name": deck.place.name,
        "source": deck.place.told or deck.place.source,
        "n": told["n"],
        "classes": class_names(deck.dataset) or None,
        "labelled": told["n"] - told["unlabelled"] if deck.labelled else 0,
        "test": len(deck.tested(range(told["n"]))),
        "groups": told["groups"],
        "fingerprint": deck.fingerprint(),
        "splits": {split: sum(counts.values()) for split, counts in told["splits"].items()},
        "notes": told["notes"],
        "bad_files": sum(key is None for key in deck.keys),
    }


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
