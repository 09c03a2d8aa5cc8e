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
    },
    "small": {
        "halo": {
            "layer": {"batch": 16, "channels": 64, "side": 32, "heads": 4, "halo": 3, "steps": 5},
            "blocks": [2, 4, 8, 16],
            "network": {"batch": 4, "side": 256, "steps": 4},
        },
    },
}  # fmt: skip
"""toy: seconds, for tests; small: a few minutes on two cores."""


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


JOBS: dict[str, Part] = {"halo": _halo}
PARTS = tuple(JOBS)
HEADINGS = {"halo": "Attention over blocks with a halo"}


def tables(kept: dict[str, Any]) -> list[Table]:
    """One table a job."""
    return tables_of_parts(kept, HEADINGS)
