"""What a study cost: seconds of its parts, images a second, memory, and on what machine."""

from __future__ import annotations

import resource
from typing import Any

import torch

from offshelf.engine.runs import cpu_name


def cost(
    features_seconds: float, heads_seconds: float, images_per_second: float | None, cached_share: float
) -> dict[str, Any]:
    """The cost table of a report; ``total_seconds`` is filled in by the job that knows when it began."""
    return {
        "decode_and_features_seconds": round(features_seconds, 2),
        "heads_seconds": round(heads_seconds, 2),
        "total_seconds": None,
        "images_per_second": None if images_per_second is None else round(images_per_second, 1),
        "cached_share": round(cached_share, 4),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }
