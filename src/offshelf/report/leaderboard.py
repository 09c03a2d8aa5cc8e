"""The page of a ``battle`` run: who leads and how surely, at what cost, in which settings, and what could not be had.

The numbers all come from ``results.json`` (its parts: data, backbones, protocols, settings, cells, standing,
comparisons, correlation, scaling, apples, tiers, pareto, failures, cost, engine, verdict); nothing is estimated here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from offshelf.engine.files import finite
from offshelf.errors import RunError
from offshelf.report import leaderboard_figures as figures
from offshelf.report.content import printable
from offshelf.report.leaderboard_grid import grids, in_words, level, undone
from offshelf.report.templating import environment, own

NEEDED = ("backbones", "settings", "cells", "standing")
COMPARISONS, BEST_OF_A_SIZE = 200, 5  # shown at most
BOUNDS = ("low", "high", "low_sets", "high_sets", "rank_low", "rank_high", "rank_low_sets", "rank_high_sets")
ABSENT: dict[str, Any] = {
    "label": None, "architecture": "", "tag": "", "family": "other", "tier": "size unknown", "parameters": None,
    "pretraining": "unknown", "pretraining_kind": "unknown", "pretraining_images": None, "input_size": None,
    "images_per_second": None, "memory_mb": None, "weights_hash": "",
}  # fmt: skip
SETTING: dict[str, Any] = {
    "task": "", "protocol": "", "labels": None, "metric": "", "chance": None, "n": None, "units": None, "seeds": [],
}  # fmt: skip
WIDE, NARROW, COST = 1296, 328, (380, 330)


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of a ``battle`` run hold.

    Raises
    ------
    RunError
        When a part that every battle has is missing, or a cell or rank names a backbone or setting that is not
        listed; the message names it.
    """
    page = prepare(results, run, folder)
    return (
        environment()
        .get_template("leaderboard.html.j2")
        .render(
            **page,
            **_drawn(page),
            level=level,
            style=own("style.css") + own("leaderboard.css"),
            script=own("script.js") + own("leaderboard.js"),
        )
    )


def prepare(results: Any, run: Any, folder: Path) -> dict[str, Any]:
    """Everything the page shows but the figures: completed, in the order of the ranks, checked for loose ends."""
    results, run = printable(finite(results)), printable(finite(run))
    check(results, folder / "results.json")
    standing = {"overall": [], "tasks": {}, "tie_groups": [], "sentence": ""} | results["standing"]
    settings = [SETTING | place for place in results["settings"]]
    rows = in_order(results["backbones"], standing)
    labels = {row["name"]: row["label"] for row in rows}
    comparisons = results.get("comparisons") or []
    verdict = list(results.get("verdict") or [])
    if standing["sentence"] and standing["sentence"] not in verdict:
        verdict.append(standing["sentence"])
    data = {"fingerprint": None, "source": "not recorded"} | (results.get("data") or {})
    return {
        "title": results.get("title") or "offshelf battle",
        "verdict": verdict,
        "rows": rows,
        "ranked": [row for row in rows if row["rank"] is not None],
        "unranked": [row for row in rows if row["rank"] is None],
        "labels": labels,
        "tasks": list(standing["tasks"]),
        "groups": [[labels[name] for name in group] for group in standing["tie_groups"]],
        "sizes": tiers_of(rows),
        "families": sorted({row["family"] for row in rows}),
        "settings": settings,
        "grids": grids(rows, settings, results["cells"]),
        "undone": undone(rows, settings, results["cells"], results.get("failures") or []),
        "counted": {
            state: sum(cell["status"] == state for cell in results["cells"])
            for state in ("done", "failed", "not applicable", "missing")
        },
        "comparisons": comparisons[:COMPARISONS],
        "comparisons_in_all": len(comparisons),
        "correlation": correlations(results.get("correlation")),
        "scaling": results.get("scaling") or [],
        "apples": apples(results.get("apples") or [], rows),
        "tiers": results.get("tiers") or [],
        "best_shown": BEST_OF_A_SIZE,
        "pareto": results.get("pareto") or {},
        "sets": [one | {"classes": one.get("classes") or []} for one in data.get("sets") or []],
        "protocols": results.get("protocols") or [],
        "data": data,
        "cost": results.get("cost") or {},
        "engine": results.get("engine") or {},
        "run": {"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
    }


def check(results: Any, source: Path) -> None:
    """Refuse results without the parts every battle has, or whose parts do not belong together."""
    for key in NEEDED:
        if not isinstance(results, dict) or not results.get(key):
            raise RunError(
                f"{source}: nothing under {key!r}; expected the results of a battle. Give the same battle again: "
                "what was computed is reused."
            )
    names = {one["name"] for one in results["backbones"]}
    places = {one["id"] for one in results["settings"]}
    standing = results["standing"]
    ranks = [row["backbone"] for row in standing.get("overall") or []]
    ranks += [row["backbone"] for task in (standing.get("tasks") or {}).values() for row in task]
    ranks += [name for group in standing.get("tie_groups") or [] for name in group]
    named = [("backbone", name, names) for name in [*ranks, *(cell["backbone"] for cell in results["cells"])]]
    named += [("setting", cell["setting"], places) for cell in results["cells"]]
    for what, name, known in named:
        if name not in known:
            raise RunError(
                f"{source}: the {what} {name!r} has results but is not listed. "
                "The file is damaged; give the same battle again."
            )


def in_order(backbones: list[dict[str, Any]], standing: dict[str, Any]) -> list[dict[str, Any]]:
    """The backbones as the standing ranks them, those without a rank last, each with its scores of all tasks."""
    overall = {row["backbone"]: row for row in standing["overall"]}
    by_task = {task: {row["backbone"]: row for row in rows} for task, rows in standing["tasks"].items()}
    group = {name: place + 1 for place, names in enumerate(standing["tie_groups"]) for name in names}
    rows = []
    for one in backbones:
        own = overall.get(one["name"], {"why": "It is not in the standing."})
        absent = dict.fromkeys(("score", "rank", "coverage", *BOUNDS)) | {"why": ""}
        row = ABSENT | one | absent | own
        row["label"] = row["label"] or row["name"]
        row["group"] = group.get(one["name"])
        row["by_task"] = {task: rows_of.get(one["name"]) for task, rows_of in by_task.items()}
        row["views"] = [row, *row["by_task"].values()]
        rows.append(row)
    return sorted(rows, key=lambda row: (row["rank"] is None, row["rank"] or 0))


def tiers_of(rows: list[dict[str, Any]]) -> list[str]:
    """The size tiers at hand, from small to large."""
    least: dict[str, float] = {}
    for row in rows:
        size = float("inf") if row["parameters"] is None else row["parameters"]
        least[row["tier"]] = min(size, least.get(row["tier"], size))
    return sorted(least, key=lambda tier: (least[tier], tier))


def correlations(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Correlation between tasks as named tables; None with fewer than two tasks."""
    if not found or len(found.get("tasks") or []) < 2:
        return None
    without = found.get("without_random") or None
    tables = [{"title": "All backbones", "rows": found["spearman"], "mean": found.get("mean_spearman")}]
    if without:
        tables.append(
            {"title": "Without random weights", "rows": without["spearman"], "mean": without.get("mean_spearman")}
        )
    return {"tasks": found["tasks"], "n": found.get("n"), "spearman": tables, "pearson": found.get("pearson")}


def apples(groups: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of one network with different pre-training, which names the members; with the tag where it repeats."""
    tags = {row["name"]: row["tag"] or row["label"] for row in rows}
    shown = []
    for group in groups:
        told = [one["pretraining"] for one in group["members"]]
        titles = {
            one["backbone"]: f"{one['pretraining']} ({tags.get(one['backbone'], one['backbone'])})"
            if told.count(one["pretraining"]) > 1
            else one["pretraining"]
            for one in group["members"]
        }
        members = [one | {"title": titles[one["backbone"]]} for one in group["members"]]
        members.sort(key=lambda one: (one["score"] is None, -(one["score"] or 0)))
        differences = group.get("differences") or []
        shown.append({"group": group["group"], "members": members, "differences": differences, "titles": titles})
    return shown


def _drawn(page: dict[str, Any]) -> dict[str, Any]:
    """All figures of the page."""
    ranked, number = page["ranked"], len(page["rows"])
    bounds = [
        one[key] for group in page["apples"] for one in group["members"] for key in ("low", "score", "high")
        if one[key] is not None
    ]  # fmt: skip
    plots: dict[str, Markup | None] = {
        key: figures.cost_plot(page["rows"], key, page["pareto"].get(key) or [], COST) for key in figures.COSTS
    }
    return {
        "rank_wide": figures.rank_plot(ranked, WIDE) if ranked else None,
        "rank_narrow": figures.rank_plot(ranked, NARROW) if ranked else None,
        "rank_bar": lambda view: figures.rank_bar(view["rank"], view["rank_low"], view["rank_high"], number),
        "costs": [
            {
                "key": key,
                "title": title,
                "plot": plots[key],
                "front": in_words([page["labels"].get(name, name) for name in page["pareto"].get(key) or []]),
                "unknown": sum(row[key] is None for row in page["rows"]),
            }
            for key, (title, _, _) in figures.COSTS.items()
        ],
        "legend": figures.legend(page["rows"]),
        "group_plots": [
            figures.group_plot(group["members"], (min(bounds), max(bounds))) if bounds else None
            for group in page["apples"]
        ],
    }
