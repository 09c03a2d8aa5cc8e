"""Training: what the engine adds to a bare loop, augmentation, precision, and masked autoencoding against its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.parts import Job, Part, child, measure_parts, tables_of_parts
from benchmarks.tables import Table

PARTS = ("engine", "augmentation", "precision", "mask")
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "toy": {
        "engine": {"backbone": "test_resnet", "side": 32, "batch": 8, "steps": 4},
        "augmentation": {"sides": [32], "batch": 4, "batches": 2},
        "precision": {"backbones": ["test_resnet"], "side": 32, "batch": 4, "steps": 2, "compiled": []},
        "mask": {"backbone": "test_vit", "side": 96, "batch": 2, "steps": 1, "ratios": [0.5, 0.75]},
    },
    "small": {
        "engine": {"backbone": "resnet18", "side": 32, "batch": 128, "steps": 60},
        "augmentation": {"sides": [32, 224], "batch": 128, "batches": 8},
        "precision": {
            "backbones": ["resnet18", "vit_tiny_patch16_224"],
            "side": 64,
            "batch": 64,
            "steps": 12,
            "compiled": ["resnet18"],
        },
        "mask": {
            "backbone": "vit_tiny_patch16_224", "side": 224, "batch": 16, "steps": 6,
            "ratios": [0.1, 0.25, 0.5, 0.75, 0.9],
        },
    },
}  # fmt: skip
"""toy: seconds, for tests; small: about ten minutes on two cores."""

_child = partial(child, "benchmarks.training_contestants")


def measure(
    size: str,
    parts: Sequence[str],
    rounds: int,
    threads: int,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every part's contestants in turn; the first of each is the baseline of its ratios."""
    return measure_parts("training", JOBS, SIZES, size, parts, rounds, threads, command, say)


def _engine(size: dict[str, Any], threads: int) -> list[Job]:
    title = f"{size['backbone']}, {size['side']} px, batch {size['batch']}, {size['steps']} steps, fp32"
    runs = {"bare loop": _child("bare_loop", threads, size), "offshelf": _child("engine", threads, size)}
    return [(title, size, runs)]


def _augmentation(size: dict[str, Any], threads: int) -> list[Job]:
    jobs = []
    for side in size["sides"]:
        for recipe in ("shift, flip", "crop, flip, colour, grey"):
            batches = size["batches"] if side < 100 else max(1, size["batches"] // 8)
            job = {"recipe": recipe, "side": side, "batch": size["batch"], "batches": batches}
            names = {
                "torchvision, PIL, per sample": "pil",
                "torchvision v2, per sample": "v2",
                "offshelf, by batch": "offshelf",
            }
            runs = {name: _child("augmentation", 1, job | {"route": route}) for name, route in names.items()}
            jobs.append((f"{recipe}, {side} px, 1 thread", job, runs))
    return jobs


def _precision(size: dict[str, Any], threads: int) -> list[Job]:
    jobs = []
    for backbone in size["backbones"]:
        job = {"backbone": backbone, **{key: size[key] for key in ("side", "batch", "steps")}}
        ways: dict[str, dict[str, Any]] = {
            "fp32": {},
            "fp32, channels last": {"channels_last": True},
            "bf16, channels last": {"channels_last": True, "bf16": True},
        }
        if backbone in size["compiled"]:
            ways["bf16, channels last, compiled"] = {"channels_last": True, "bf16": True, "compiled": True}
        runs = {name: _child("step", threads, job | how) for name, how in ways.items()}
        jobs.append((f"{backbone}, {size['side']} px, batch {size['batch']}", job, runs))
    return jobs


def _mask(size: dict[str, Any], threads: int) -> list[Job]:
    job = {key: size[key] for key in ("backbone", "side", "batch", "steps")}
    runs = {
        f"mask ratio {ratio:g}": _child("masked_step", threads, job | {"mask_ratio": ratio}) for ratio in size["ratios"]
    }
    return [(f"{size['backbone']}, {size['side']} px, batch {size['batch']}, fp32", job, runs)]


JOBS: dict[str, Part] = {"engine": _engine, "augmentation": _augmentation, "precision": _precision, "mask": _mask}
HEADINGS = {
    "engine": "What the engine adds to a step",
    "augmentation": "Augmentation",
    "precision": "A training step",
    "mask": "Masked autoencoding: a step against the share that is hidden",
}


def tables(kept: dict[str, Any]) -> list[Table]:
    """One table a job."""
    return tables_of_parts(kept, HEADINGS)
