"""Seeded results of a battle, in the form of its results.json: plausible numbers, and every way to lack one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

NETWORKS = [
    ("resnet18", "a1_in1k", "CNN", 11_689_512, "supervised, ImageNet-1k", "supervised", 1_281_167),
    ("resnet50", "a1_in1k", "CNN", 25_557_032, "supervised, ImageNet-1k", "supervised", 1_281_167),
    ("convnext_tiny", "fb_in22k", "CNN", 28_589_128, "supervised, ImageNet-22k", "supervised", 14_197_122),
    ("vit_small_patch16_224", "dino", "ViT", 21_665_664, "self-supervised, DINO", "self-supervised", 1_281_167),
    ("vit_base_patch16_224", "augreg_in21k", "ViT", 86_567_656, "supervised, ImageNet-21k", "supervised", 14_197_122),
    ("vit_base_patch16_clip_224", "openai", "ViT", 86_192_640, "image-text, CLIP", "image-text", 400_000_000),
    ("vit_small_patch14_dinov2", "lvd142m", "ViT", 22_056_576, "self-supervised, DINOv2", "self-supervised",
     142_109_386),
    ("resnet50", "fb_swsl_ig1b", "CNN", 25_557_032, "semi-weakly supervised", "unknown", None),
    ("coatnet_0_rw_224", "sw_in1k", "hybrid", 27_439_072, "supervised, ImageNet-1k", "supervised", 1_281_167),
    ("mobilenetv3_small_050", "lamb_in1k", "CNN", 1_593_072, "supervised, ImageNet-1k", "supervised", 1_281_167),
    ("test_resnet", "offshelf_finetune_cifar10", "CNN", 473_140, "supervised, CIFAR-10", "supervised", 50_000),
    ("test_vit", "offshelf_finetune_cifar10", "ViT", 371_080, "supervised, CIFAR-10", "supervised", 50_000),
    ("resnet18", "random", "CNN", 11_689_512, "random", "random", None),
    ("vit_small_patch16_224", "random", "ViT", 21_665_664, "random", "random", None),
    ("mixer_b16_224", "goog_in21k", "other", 59_880_472, "supervised, ImageNet-21k", "supervised", 14_197_122),
    ("huge<b>old</b>", "in1k", "other", 632_045_800, "supervised, ImageNet-1k", "supervised", 1_281_167),
]  # fmt: skip
SKILL = {"random": -1.9, "supervised": 0.1, "self-supervised": 0.55, "image-text": 0.6, "unknown": 0.3}
TASKS = {
    "classification": ("linear/v1", "balanced_accuracy", "100%"),
    "few labels": ("linear/v1", "balanced_accuracy", "5 a class"),
    "retrieval": ("retrieval/v1", "mean_average_precision", None),
    "clustering": ("clustering/v2", "adjusted_mutual_information", None),
    "segmentation": ("patches/v1", "mean_intersection_over_union", "100%"),
}
SETS = ["flowers5", "skin", "pets", "textures", "signs", "eurosat", "birds", "leaves"]
UNDONE = {"value": None, "low": None, "high": None, "n": 0, "z": None, "by_seed": [], "seconds": 0.0}
NO_PATCHES = "The network has no grid of patches, so there is nothing to segment with."
WIDTH = 0.23  # two overall scores this far apart are told apart
KILLED = "The worker was killed (exit code -9), most likely out of memory: fewer workers or a smaller batch."


def backbones(number: int) -> list[dict[str, Any]]:
    found = []
    for i in range(number):
        architecture, tag, family, parameters, pretraining, kind, seen = NETWORKS[i % len(NETWORKS)]
        tag += f"_{i // len(NETWORKS)}" if i >= len(NETWORKS) else ""
        tier = next(
            name
            for most, name in [(1e6, "tiny (< 1M)"), (3e7, "small (< 30M)"), (1.5e8, "base (30-150M)"), (1e18, "large")]
            if parameters < most
        )
        found.append(
            {
                "name": f"{architecture}.{tag}",
                "label": f"{architecture.replace('_', ' ')} ({tag.replace('_', ' ')})"
                if tag != "in1k"
                else architecture,
                "architecture": architecture,
                "tag": tag,
                "family": family,
                "tier": tier,
                "parameters": parameters + i // len(NETWORKS),
                "pretraining": pretraining,
                "pretraining_kind": kind,
                "pretraining_images": seen,
                "input_size": 224,
                "images_per_second": None if i == 15 else round(4e3 / parameters**0.32 * (1 + 0.3 * math.sin(i)), 3),
                "memory_mb": None if i == 15 else round(90 + parameters / 2e5 * (1 + 0.3 * math.cos(i)), 1),
                "weights_hash": f"{i:02x}" * 32,
            }
        )
    return found


def settings(number: int) -> list[dict[str, Any]]:
    found = []
    for i in range(number):
        data, task = SETS[(i // len(TASKS)) % len(SETS)], list(TASKS)[i % len(TASKS)]
        round_of = i // (len(TASKS) * len(SETS))
        protocol, metric, labels = TASKS[task]
        data += f"_{round_of + 1}" if round_of else ""
        found.append(
            {
                "id": f"{data}/{protocol}@{labels or task}",
                "data": data,
                "task": task,
                "protocol": protocol,
                "labels": labels,
                "metric": metric,
                "chance": [0.2, 0.2, 0.21, 0.0, 0.05][i % len(TASKS)],
                "n": 862 + 37 * i,
                "units": 862 + 37 * i if i % 3 else 120 + i,
                "seeds": [0, 1, 2],
            }
        )
    return found


def make_battle(n_backbones: int = 16, n_settings: int = 20, seed: int = 0) -> dict[str, Any]:
    """Results of ``n_backbones`` in ``n_settings``; with 16 or more of them one is unranked, and cells lack values."""
    rng = np.random.default_rng(seed)
    nets, places = backbones(n_backbones), settings(n_settings)
    general = np.array([SKILL[one["pretraining_kind"]] + 0.25 * math.log10(one["parameters"] / 1e6) for one in nets])
    general = general + rng.normal(0, 0.15, n_backbones)
    cells, z = [], np.full((n_backbones, n_settings), np.nan)
    for s, place in enumerate(places):
        skill = general + rng.normal(0, 0.45, n_backbones)
        values = 1 / (1 + np.exp(-(0.7 * skill + 0.6 - 0.25 * (s % len(TASKS)))))
        status = [_status(one, place, i) for i, one in enumerate(nets)]
        done = np.array([state == "done" for state, _ in status])
        spread = values[done].std() if done.sum() > 1 else 0.0
        z[done, s] = (values[done] - values[done].mean()) / spread if spread else 0.0
        for i, one in enumerate(nets):
            head = {"backbone": one["name"], "setting": place["id"], "status": status[i][0], "reason": status[i][1]}
            if not done[i]:
                cells.append(head | UNDONE)
                continue
            value, half = float(values[i]), 1.2 / math.sqrt(place["units"])
            cells.append(
                head
                | {
                    "value": value,
                    "low": value - half,
                    "high": value + half,
                    "n": place["n"],
                    "z": float(z[i, s]),
                    "by_seed": [value - 0.01, value, value + 0.01],
                    "seconds": 3.5,
                }
            )
    standing = make_standing(nets, places, z)
    order = [row["backbone"] for row in standing["overall"] if row["rank"]]
    score = {row["backbone"]: row["score"] for row in standing["overall"]}
    n_sets = len({place["data"] for place in places})
    return {
        "verb": "battle",
        "title": f"{n_sets} data sets, {n_backbones} backbones",
        "data": {
            "fingerprint": "5e1f" * 16,
            "source": f"{n_sets} data sets",
            "sets": [
                {
                    "name": name,
                    "source": f"../data/{name}",
                    "n": 4_310,
                    "classes": ["a", "b", "c", "d", "<i>e</i>"],
                    "labelled": 4_310,
                    "test": 862,
                    "groups": 120 if name == "skin" else None,
                    "fingerprint": "ab12" * 16,
                    "splits": {},
                    "notes": ["3 pictures are exact duplicates"] if name == "pets" else [],
                    "bad_files": 2 if name == "pets" else 0,
                }
                for name in dict.fromkeys(place["data"] for place in places)
            ],
        },
        "backbones": nets,
        "protocols": [
            {"label": protocol, "task": task, "question": f"how far {task} comes", "metrics": {metric: "as defined"}}
            for task, (protocol, metric, _) in TASKS.items()
            if any(place["task"] == task for place in places)
        ],
        "settings": places,
        "cells": cells,
        "standing": standing,
        "comparisons": _comparisons(order[:10], standing),
        "correlation": _correlation(nets, places, z),
        "scaling": [
            {"against": "parameters", "family": "all", "spearman": 0.61, "low": 0.2, "high": 0.84, "n": n_backbones},
            {"against": "parameters", "family": "ViT", "spearman": None, "low": None, "high": None, "n": 3},
            {"against": "pretraining_images", "family": "all", "spearman": 0.4, "low": -0.1, "high": 0.7, "n": 11},
        ],
        "apples": _apples(nets, standing),
        "tiers": [
            {
                "tier": tier,
                "order": [
                    {"backbone": name, "score": score[name], "rank": order.index(name) + 1}
                    for name in order
                    if next(one for one in nets if one["name"] == name)["tier"] == tier
                ],
            }
            for tier in ("tiny (< 1M)", "small (< 30M)", "base (30-150M)", "large")
        ],
        "pareto": {
            key: _front([(one[key], score[one["name"]], one["name"]) for one in nets], key != "images_per_second")
            for key in ("parameters", "images_per_second", "memory_mb")
        },
        "failures": [
            {"backbone": cell["backbone"], "setting": cell["setting"], "reason": cell["reason"], "attempts": 3}
            for cell in cells
            if cell["status"] == "failed"
        ],
        "cost": {
            "total_seconds": 4_211.5,
            "cells": len(cells),
            "computed": len(cells) - 40,
            "reused": 40,
            "extraction_seconds": 3_105.0,
        },
        "engine": {"name": "local", "workers": 2},
        "verdict": [
            f"{order[0]} leads over {len(places)} settings, but it was not told apart from {order[1]}.",
            "Random weights come last in every task.",
        ],
    }


def make_run() -> dict[str, Any]:
    return {
        "verb": "battle",
        "command": "offshelf battle flowers5 skin --backbones zoo --note '<all>'",
        "arguments": {"sources": ["flowers5", "skin"], "seed": 0},
        "versions": {"python": "3.11.7", "offshelf": "0.2.0", "timm": "1.0.20"},
        "seed": 0,
        "machine": {"cpu": "a processor with 2 cores", "cores": 2},
    }


def _status(one: dict[str, Any], place: dict[str, Any], index: int) -> tuple[str, str]:
    if one["family"] == "other" and place["task"] == "segmentation":
        return "not applicable", NO_PATCHES
    if index == 15 and place["task"] != "classification":
        return "missing", "Not computed yet: the battle was stopped."
    if index == 4 and place["data"] == "pets" and place["task"] == "retrieval":
        return "failed", KILLED
    return "done", ""


def make_standing(nets: list[dict[str, Any]], places: list[dict[str, Any]], z: np.ndarray) -> dict[str, Any]:
    """Means over tasks with made-up half widths; ranks and tie groups follow from the numbers."""
    tasks = list(dict.fromkeys(place["task"] for place in places))
    columns = {task: [s for s, place in enumerate(places) if place["task"] == task] for task in tasks}
    means = {
        task: [float(np.nanmean(row)) if np.isfinite(row).any() else math.nan for row in z[:, own]]
        for task, own in columns.items()
    }
    rows = []
    for i, one in enumerate(nets):
        coverage = float(np.isfinite(z[i]).mean())
        row: dict[str, Any] = {"backbone": one["name"], "coverage": coverage, "why": ""}
        if coverage < 0.5:
            row |= dict.fromkeys(("score", "low", "high", "low_sets", "high_sets"))
            row["why"] = f"Measured in {coverage:.0%} of the settings; at least half are needed."
        else:
            score = float(np.nanmean([means[task][i] for task in tasks]))
            row |= {"score": score, "low": score - 0.11, "high": score + 0.12}
            row |= {"low_sets": score - 0.24, "high_sets": score + 0.26}
        rows.append(row)
    ranked = sorted((row for row in rows if row["score"] is not None), key=lambda row: -row["score"])
    _rank(ranked, "low", "high")
    _rank(ranked, "low_sets", "high_sets")
    nothing = dict.fromkeys(("rank", "rank_low", "rank_high", "rank_low_sets", "rank_high_sets"))
    groups: list[list[str]] = []
    first = None
    for row in ranked:
        if first is None or row["high"] < first["low"]:
            groups.append([])
            first = row
        groups[-1].append(row["backbone"])
    by_task = {}
    for task in tasks:
        own = [
            {"backbone": one["name"], "score": mean, "low": mean - 0.2, "high": mean + 0.2}
            for one, mean in zip(nets, means[task])
            if math.isfinite(mean)
        ]
        own.sort(key=lambda row: -row["score"])
        _rank(own, "low", "high")
        by_task[task] = own
    return {
        "overall": ranked + [row | nothing for row in rows if row["score"] is None],
        "tasks": by_task,
        "tie_groups": groups,
        "sentence": f"{len(groups[0])} backbones share the first place.",
    }


def _rank(rows: list[dict[str, Any]], low: str, high: str) -> None:
    for place, row in enumerate(rows):
        suffix = low.removeprefix("low")
        row["rank"] = place + 1
        row[f"rank_low{suffix}"] = 1 + sum(other[low] > row[high] for other in rows)
        row[f"rank_high{suffix}"] = len(rows) - sum(other[high] < row[low] for other in rows)


def _comparisons(order: list[str], standing: dict[str, Any]) -> list[dict[str, Any]]:
    score = {row["backbone"]: row["score"] for row in standing["overall"]}
    found = []
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            difference = score[a] - score[b]
            told = difference > WIDTH
            found.append(
                {
                    "a": a,
                    "b": b,
                    "difference": difference,
                    "low": difference - WIDTH,
                    "high": difference + WIDTH,
                    "told_apart": told,
                    "effect_size": difference / 0.4,
                    "examples_needed": None if told else int(862 * min(400.0, (WIDTH / max(difference, 1e-3)) ** 2)),
                    "factor": None if told else min(400.0, (WIDTH / max(difference, 1e-3)) ** 2),
                }
            )
    return found


def _correlation(nets: list[dict[str, Any]], places: list[dict[str, Any]], z: np.ndarray) -> dict[str, Any]:
    tasks = list(dict.fromkeys(place["task"] for place in places))
    number = len(tasks)
    table = [[1.0 if i == j else round(0.9 - 0.07 * (i + j), 3) for j in range(number)] for i in range(number)]
    fewer = [[1.0 if i == j else round(0.6 - 0.12 * (i + j), 3) for j in range(number)] for i in range(number)]
    if number > 1:
        fewer[0][-1] = fewer[-1][0] = None  # type: ignore[call-overload]
    mean = {"value": 0.62, "low": 0.41, "high": 0.78, "n": number * (number - 1) // 2}
    return {
        "tasks": tasks,
        "spearman": table,
        "pearson": table,
        "mean_spearman": mean,
        "without_random": {"spearman": fewer, "mean_spearman": mean | {"value": 0.31, "low": -0.02, "high": 0.55}},
        "n": len(nets),
    }


def _apples(nets: list[dict[str, Any]], standing: dict[str, Any]) -> list[dict[str, Any]]:
    rows = {row["backbone"]: row for row in standing["overall"]}
    found = []
    for architecture in dict.fromkeys(one["architecture"] for one in nets):
        own = [one for one in nets if one["architecture"] == architecture]
        if len(own) < 2:
            continue
        members = [
            {"backbone": one["name"], "pretraining": one["pretraining"]}
            | {key: rows[one["name"]][key] for key in ("score", "low", "high")}
            for one in own
        ]
        known = [one for one in members if one["score"] is not None]
        found.append(
            {
                "group": architecture,
                "members": members,
                "differences": [
                    {
                        "a": a["backbone"],
                        "b": b["backbone"],
                        "difference": a["score"] - b["score"],
                        "low": a["score"] - b["score"] - 0.15,
                        "high": a["score"] - b["score"] + 0.15,
                        "told_apart": abs(a["score"] - b["score"]) > 0.15,
                    }
                    for i, a in enumerate(known)
                    for b in known[i + 1 :]
                ],
            }
        )
    return found


def _front(points: list[tuple[float | None, float | None, str]], less: bool) -> list[str]:
    known = [point for point in points if point[0] is not None and point[1] is not None]
    best, front = -math.inf, []
    for _, score, name in sorted(known, key=lambda point: (point[0] if less else -point[0], -point[1])):  # type: ignore[operator]
        if score > best:  # type: ignore[operator]
            best = score  # type: ignore[assignment]
            front.append(name)
    return front
