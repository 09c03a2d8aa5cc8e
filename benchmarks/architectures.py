"""Architectures: what their special layers cost beside the plain way of doing the same.

A part is one entry of ``SIZES`` (for both sizes), of ``JOBS`` and of ``HEADINGS``, and a file of contestants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.parts import Job, Part, child, measure_parts, tables_of_parts
from benchmarks.tables import Table

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "toy": {
        "halo": {
            "layer": {"batch": 1, "channels": 8, "side": 8, "heads": 2, "halo": 1, "steps": 1},
            "blocks": [2, 4],
            "network": {"batch": 1, "side": 256, "steps": 1, "width": 0.25},
        },
        "b-cos": {"backbones": ["test_resnet"], "side": 32, "batch": 2, "repeats": 1},
        "filters": {"streams": [20_000], "both": 300_000, "channels": 8, "count": 3},
    },
    "small": {
        "halo": {
            "layer": {"batch": 16, "channels": 64, "side": 32, "heads": 4, "halo": 3, "steps": 5},
            "blocks": [2, 4, 8, 16],
            "network": {"batch": 4, "side": 256, "steps": 4},
        },
        "b-cos": {
            "backbones": ["resnet18", "convnext_atto", "vit_tiny_patch16_224"],
            "side": 224,
            "batch": 8,
            "repeats": 3,
        },
        "filters": {"streams": [10_000_000, 200_000_000], "both": 5_000_000, "channels": 256, "count": 12},
    },
}  # fmt: skip
"""toy: seconds, for tests; small: about fifteen minutes on two cores."""


def measure(
    size: str,
    parts: Sequence[str],
    rounds: int,
    threads: int,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every part's contestants in turn; the first of each is the baseline of its ratios."""
    return measure_parts("architectures", JOBS, SIZES, size, parts, rounds, threads, command, say)


def _halo(size: dict[str, Any], threads: int) -> list[Job]:
    contestant = partial(child, "benchmarks.halo_contestants")
    layer, network = size["layer"], size["network"]
    window = 2 * layer["halo"] + 1
    runs = {
        f"windows of {window} x {window}, gathered": contestant("layer", threads, layer | {"form": "windows"}),
        f"windows of {window} x {window}, shifted": contestant("layer", threads, layer | {"form": "shifted"}),
        **{
            f"blocks of {block}, halo {layer['halo']}": contestant(
                "layer", threads, layer | {"form": "blocks", "block": block}
            )
            for block in size["blocks"]
        },
        f"blocks of {size['blocks'][-1]}, halo {layer['halo']}, timm's layer": contestant(
            "layer", threads, layer | {"form": "timm", "block": size["blocks"][-1]}
        ),
        "global, sees everything": contestant("layer", threads, layer | {"form": "global"}),
    }
    told = f"{layer['batch']} x {layer['channels']} x {layer['side']} x {layer['side']}, {layer['heads']} heads"
    networks = {
        "timm's halonet_h1": contestant("network", threads, network | {"form": "timm"}),
        "offshelf, the same network": contestant("network", threads, network | {"form": "ours"}),
        "offshelf, padded keys masked": contestant("network", threads, network | {"form": "masked"}),
        "offshelf, convolution in two stages": contestant("network", threads, network | {"form": "hybrid"}),
    }
    return [
        (f"one layer forward and backward, {told}, fp32", layer, runs),
        (f"a training step of H1, {network['side']} px, batch {network['batch']}, fp32", network, networks),
    ]


def _b_cos(size: dict[str, Any], threads: int) -> list[Job]:
    contestant = partial(child, "benchmarks.b_cos_contestants")
    jobs = []
    for backbone in size["backbones"]:
        job = {"backbone": backbone, **{key: size[key] for key in ("side", "batch", "repeats")}}
        told = f"{backbone}, {size['side']} px, batch {size['batch']}, fp32"
        for function, what, names in (
            ("forward", "forward", ("the ordinary network", "its B-cos twin")),
            ("step", "a training step", ("the ordinary network", "its B-cos twin, by its recipe")),
            ("explanation", "explaining", ("input x gradient of the ordinary network", "contributions of its twin")),
        ):
            kinds = zip(names, ("plain", "b-cos"))
            runs = {name: contestant(function, threads, job | {"kind": kind}) for name, kind in kinds}
            jobs.append((f"{what}, {told}", job, runs))
    return jobs


def _filters(size: dict[str, Any], threads: int) -> list[Job]:
    contestant = partial(child, "benchmarks.filter_contestants")
    both, grading = {"n": size["both"]}, {key: size[key] for key in ("channels", "count")}
    compared = {
        "by hand, all in memory": contestant("plain", threads, both),
        "offshelf, in memory": contestant("in_memory", threads, both),
        "offshelf, through a file": contestant("streamed", threads, both),
    }
    large = {f"{n:,} filters": contestant("streamed", threads, {"n": n}) for n in size["streams"]}
    graded = {
        "by hand": contestant("graded_by_hand", threads, grading),
        "offshelf": contestant("graded", threads, grading),
    }
    return [
        (f"basis and shift of two groups, {size['both']:,} of 3 x 3", both, compared),
        ("the same through a file, more and more filters", {"streams": size["streams"]}, large),
        (f"grading {size['count']} layers of {size['channels']} to {size['channels']} channels", grading, graded),
    ]


JOBS: dict[str, Part] = {"halo": _halo, "b-cos": _b_cos, "filters": _filters}
PARTS = tuple(JOBS)
HEADINGS = {
    "halo": "Attention over blocks with a halo",
    "b-cos": "B-cos networks",
    "filters": "Filters of networks",
}


def tables(kept: dict[str, Any]) -> list[Table]:
    """One table a job."""
    return tables_of_parts(kept, HEADINGS)
