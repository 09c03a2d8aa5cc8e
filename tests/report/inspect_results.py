"""Results of an inspection as they come out, made from noise; hostile names where users give them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

HOSTILE = '<img src=x onerror=alert(1)> "net" & more'


def make_inspection(networks: int = 4, layers: int = 6, kernel: int = 3, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    labels = [HOSTILE, *(f"design_{number}.offshelf_finetune_cifar10" for number in range(1, networks))]
    rows = []
    for label in labels:
        for place in range(layers):
            relative = None if place == 0 or kernel != 3 else float(random.uniform(0.4, 1.1))
            flags = [] if relative is None else ["random-like"] * (relative >= 1) + ["low diversity"] * (relative < 0.5)
            rows.append(
                {
                    "network": label,
                    "layer": f"layer{place}.0.conv_<b>",
                    "place": place,
                    "depth": place / max(layers - 1, 1),
                    "kind": "dense",
                    "outputs": 16,
                    "inputs": 8,
                    "n": 128,
                    "kernel": [kernel, kernel],
                    "sparsity": float(random.uniform(0, 0.3)),
                    "entropy": 0.8,
                    "clean_entropy": 0.7,
                    "threshold": 0.93 if kernel == 3 else None,
                    "relative_entropy": relative,
                    "orthogonality": None if place == 1 else 0.9,
                    "largest": 1.0,
                    "flags": flags,
                    "drawn": base64.b64encode(
                        random.integers(1, 256, 24 * kernel**2, dtype=np.uint8).tobytes()
                    ).decode(),
                }
            )
    d = kernel**2

    def basis() -> dict[str, Any]:
        components = np.linalg.qr(random.normal(size=(d, d)))[0]
        return {"mean": [0.0] * d, "components": components.tolist(), "ratios": [1 / d] * d}

    def shifts(names: list[str], key: str, title: str) -> dict[str, Any]:
        values = random.uniform(0.001, 2, (len(names), len(names)))
        values = (values + values.T) * (1 - np.eye(len(names)))
        sizes = [int(size) for size in random.integers(5_000, 2_000_000, len(names))]
        small = [name for name, size in zip(names, sizes) if size < 10_000]
        return {
            "key": key, "title": title, "names": names, "values": values.tolist(), "sizes": sizes,
            "floors": [0.01] * len(names), "small": small,
        }  # fmt: skip

    return {
        "title": f"{kernel} × {kernel} filters of {networks} networks",
        "verb": "inspect",
        "kernel": kernel,
        "verdict": ["3 layers look degenerate.", "Median shift 0.2."],
        "filters_a_layer": None,
        "networks": [
            {
                "label": label,
                "facts": {"method": "finetune"} | ({"data": "x"} if number else {}),
                "card": {"weights_hash": "00"},
                "no_filters": None,
                "layers": layers,
                "filters": 128 * layers + number,
                "degenerate": number % 3,
                "flags": {"sparse": 0, "low diversity": 0, "random-like": number % 3},
                "judged": layers - 1,
                "sparsity": 0.01 * (networks - number),
                "relative_entropy": None if number == 1 else 0.5 + 0.01 * number,
                "orthogonality": 0.9,
            }
            for number, label in enumerate(labels)
        ],
        "left_out": [{"label": "vit", "reason": "vit: no convolution of 3 x 3.", "kind": "nothing to look at"}],
        "facts": ["method", "data"],
        "layers": rows,
        "basis": basis(),
        "range": [-2.7, 2.7],
        "distributions": {
            label: {"n": 1000, "counts": random.integers(0, 90, (d, 70)).tolist()} | basis() for label in labels
        },
        "shifts": [shifts(labels, "networks", "Networks"), shifts(["first third", "last third"], "depth", "Thirds")],
        "axes": [
            {
                "axis": "different networks",
                "points": [{"label": f"{a} and b", "value": 0.3, "n": 20_000} for a in labels],
                "median": 0.3,
            },
            {
                "axis": "two halves of a network's filters",
                "points": [{"label": label, "value": 0.0, "n": 900} for label in labels],
                "median": None,
            },
        ],
        "data": {"source": "networks", "fingerprint": "abc"},
        "cost": {"total_seconds": 2.5, "gather_seconds": 1.0, "peak_memory_mb": 300.0, "cpu": "x", "threads": 1},
    }
