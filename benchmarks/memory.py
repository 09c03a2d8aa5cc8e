"""Peak memory of extraction against the number of pictures: it should stay where it is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._process import Measured, in_child
from benchmarks.keeping import Quiet, pictures, record
from benchmarks.tables import Table

BACKBONES = ("test_byobnet.random", "test_resnet.random")
CONTESTANTS = ("timm loop", "offshelf")
GRID = [2, 2]


def measure(
    backbones: Sequence[str],
    source: str,
    counts: Sequence[int],
    threads: int,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Every contestant on every number of pictures, each in a process of its own, once: memory hardly varies."""
    quiet = Quiet()
    rows = []
    with tempfile.TemporaryDirectory(prefix="offshelf-benchmark-") as scratch:
        written = str(Path(scratch) / "backbones")
        where = {"backbones": list(backbones), "folder": written, "paths": pictures(source, min(16, min(counts)))}
        in_child("benchmarks.feature_contestants:write_backbones", where, threads)
        for count in counts:
            job = {
                "folders": [str(Path(written) / str(i)) for i in range(len(backbones))],
                "paths": pictures(source, count),
                "grid": GRID,
            }
            cache = str(Path(scratch) / f"cache-{count}")
            runs = {
                "timm loop": in_child("benchmarks.timm_loop:run", job, threads),
                "offshelf": in_child(
                    "benchmarks.feature_contestants:offshelf_features", {**job, "cache": cache}, threads
                ),
            }
            say(f"{count:6d} pictures  " + "  ".join(f"{n} {r.peak_memory_mb:.0f} MiB" for n, r in runs.items()))
            rows.append({"images": count, **{name: _memory(run) for name, run in runs.items()}})
    settings = {"source": source, "backbones": list(backbones), "grid": GRID, "threads": threads}
    return record("memory", command, settings, quiet, rows=rows)


def _memory(run: Measured) -> dict[str, float]:
    result = sum(array.nbytes for array in run.arrays.values()) / 2**20
    return {
        "peak_memory_mb": round(run.peak_memory_mb, 1),
        "memory_before_mb": round(run.memory_before_mb, 1),
        "result_mb": round(result, 2),
    }


def tables(kept: dict[str, Any]) -> list[Table]:
    """Peak memory by number of pictures, and what of it was there when the imports were done."""
    settings = kept["settings"]
    header = ["pictures", "the features themselves, MiB"]
    for name in CONTESTANTS:
        header += [f"{name}: peak MiB", "above its imports"]
    rows = []
    for row in kept["rows"]:
        cells = [str(row["images"]), f"{row['offshelf']['result_mb']:.1f}"]
        for name in CONTESTANTS:
            peak, before = row[name]["peak_memory_mb"], row[name]["memory_before_mb"]
            cells += [f"{peak:.0f}", f"{peak - before:.0f}"]
        rows.append(cells)
    title = f"Peak memory: pictures of {settings['source']}, {', '.join(settings['backbones'])}, "
    return [Table(f"{title}{settings['grid'][0]} x {settings['grid'][1]} tiles", header, rows)]
