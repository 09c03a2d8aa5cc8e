"""What a race of three networks might have given, worked out from made losses by the library's own functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from offshelf.evaluate.convergence_race import first_below, over_seeds_cell, smoothed, step_ratio
from offshelf.evaluate.racing import verdict

STEPS, LIMITS = 300, [1.6, 1.2]
NAMES = (
    "inception_mini.random",
    "inception_resnet_mini.random, s = 1",
    "a <b>network</b> with quite a long name.tag, s = 0.1",
)


def cell(value: float, half: float = 0.02, n: int = 1_000) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n, "interval": "bootstrap"}


def make_race() -> dict[str, Any]:
    """Three arms, three seeds; the first never comes below the lower threshold, and one training diverged."""
    random, arms, reached = np.random.default_rng(0), [], []
    for place, name in enumerate(NAMES):
        pace = (0.002, 0.005, 0.008)[place]
        curves = [
            smoothed(0.9 + 1.4 * np.exp(-pace * np.arange(STEPS)) + random.normal(0, 0.05, STEPS) + 0.02 * seed, 20)
            for seed in range(3)
        ]
        table = np.stack(curves)
        found = [[first_below(curve, limit) for curve in curves] for limit in LIMITS]
        reached.append(found)
        numbers = {"mean": table.mean(axis=0), "low": table.min(axis=0), "high": table.max(axis=0)}
        curve = {key: [None if math.isnan(v) else float(v) for v in row] for key, row in numbers.items()}
        scale = (None, 1.0, 0.1)[place]
        stream = None
        if scale is not None:
            rms = [math.sqrt(0.5 + block * scale * scale / 6) for block in range(13)]
            stream = {"blocks": [f"stages.{k}" for k in range(12)], "start": rms, "end": [1.2 * one for one in rms]}
            stream |= {"zero_share_start": 0.3, "zero_share_end": 0.4}
        arms.append(
            {
                "name": name,
                "parameters": 352_000 + place,
                "curve": {"steps": list(range(1, STEPS + 1))} | curve,
                "reached": [
                    {"threshold": limit, "by_seed": steps, "steps": over_seeds_cell(steps)}
                    for limit, steps in zip(LIMITS, found)
                ],
                "accuracy": cell(0.4 + 0.05 * place),
                "accuracy_by_seed": [0.39 + 0.05 * place, 0.4 + 0.05 * place, 0.41 + 0.05 * place],
                "diverged_at": [None, 120 if place == 1 else None, None],
                "largest_gradient": [77.2, None if place == 1 else 60.1, 50.0],
                "stream": stream,
                "seconds": 31.4,
            }
        )
    pairs = [
        {
            "first": NAMES[0],
            "other": NAMES[place],
            "ratios": [
                {"threshold": limit} | step_ratio(a, b, STEPS)
                for limit, a, b in zip(LIMITS, reached[0], reached[place])
            ],
            "accuracy": cell(0.05 * place),
        }
        for place in (1, 2)
    ]
    results: dict[str, Any] = {
        "title": "flowers: 3 networks in a race",
        "verb": "race",
        "classes": [str(k) for k in range(10)],
        "steps": STEPS,
        "smoothing": 20,
        "seeds": [0, 1, 2],
        "thresholds": LIMITS,
        "chance_loss": math.log(10),
        "chance": 0.11,
        "arms": arms,
        "pairs": pairs,
        "notes": [f"{NAMES[0]} has no residual blocks and races as it is."],
        "data": {"source": "flowers", "n": 6_000, "n_used": 5_999, "groups": None, "notes": ["1 file was left out."],
                 "train": 4_999, "test": 1_000, "held_out": "fold 1 of 5", "fingerprint": "ab12"},
        "backbones": [{"name": name, "note": "drawn from seed 0", "weights": "random"} for name in NAMES],
        "protocol": {"name": "race/v1", "optimiser": "sgd", "learning_rate": 0.05, "flip": True},
        "cost": {"total_seconds": 283.0, "images_per_second": 412.0, "peak_memory_mb": 901.0},
    }  # fmt: skip
    results["verdict"] = verdict(results)
    return results


def make_race_run() -> dict[str, Any]:
    """Its record."""
    return {
        "verb": "race",
        "command": "offshelf race flowers --backbones inception_mini.random inception_resnet_mini.random",
        "arguments": {"seeds": 3, "residual_scales": [1.0, 0.1]},
        "versions": {"python": "3.11.7", "timm": "1.0.31"},
        "seed": 0,
        "machine": {"cpu": "a processor with 2 cores", "cores": 2},
    }
