"""Features of pictures from several backbones: the loop a user writes with timm against offshelf, in one run."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._process import Measured, in_child, in_turn, ratios
from benchmarks.agreement import agreement
from benchmarks.keeping import Quiet, pictures, record
from benchmarks.tables import Table, number, spread

QUICK = ("resnet50.random", "mobilenetv2_100.random", "densenet121.random")
TINY = tuple(
    f"test_{kind}.random"
    for kind in ("resnet", "byobnet", "mambaout", "convnext", "convnext2", "convnext3", "efficientnet", "vit")
)
PAPER = tuple(
    f"{name}.random"
    for name in (
        "resnet50",
        "resnet101",
        "densenet121",
        "densenet201",
        "vgg16",
        "inception_v3",
        "legacy_xception",
        "mobilenetv2_100",
    )
)
"""Of the founding paper's kind, and of its number (arXiv 2304.10677)."""

GRID = [2, 2]
BASELINE = "timm loop"
SECOND, EXACT = "offshelf, second run", "offshelf, exact"
CALIBRATION_PICTURES = 16


def measure(
    backbones: Sequence[str],
    source: str,
    images: int | None,
    rounds: int,
    threads: int,
    command: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run all contestants in turn over the same pictures and weights; see the README for what is kept."""
    quiet = Quiet()
    paths = pictures(source, images)
    with tempfile.TemporaryDirectory(prefix="offshelf-benchmark-") as scratch:
        folders = [str(Path(scratch) / "backbones" / str(i)) for i in range(len(backbones))]
        shown = paths[:: max(1, len(paths) // CALIBRATION_PICTURES)][:CALIBRATION_PICTURES]
        say(f"writing {len(backbones)} backbones")
        where = {"backbones": list(backbones), "folder": str(Path(scratch) / "backbones"), "paths": shown}
        cards = in_child("benchmarks.feature_contestants:write_backbones", where, threads).facts

        job = {"folders": folders, "paths": paths, "grid": GRID}

        def loop(workers: int) -> Callable[[int], Measured]:
            arguments = {**job, "workers": workers}
            return lambda _: in_child("benchmarks.timm_loop:run", arguments, threads)

        def ours(cache: str, **settings: Any) -> Callable[[int], Measured]:
            def run(number: int) -> Measured:
                arguments = {**job, "cache": str(Path(scratch) / f"{cache}-{number}"), **settings}
                return in_child("benchmarks.feature_contestants:offshelf_features", arguments, threads)

            return run

        found = in_turn(
            {
                BASELINE: loop(0),
                "timm, DataLoader with 2 workers": loop(2),
                "offshelf": ours("cache"),
                SECOND: ours("cache"),  # after the round's first run, whose cache it finds
                EXACT: ours("exact", exact=True),
            },
            rounds,
            say,
        )
    settings = {"source": source, "images": len(paths), "grid": GRID, "rounds": rounds, "threads": threads}
    return record(
        "features",
        command,
        settings,
        quiet,
        contestants=[_contestant(name, runs, found[BASELINE], len(paths)) for name, runs in found.items()],
        backbones=[
            {"name": name, **cards[name], **_backbone(index, found, cards[name]["width"])}
            for index, name in enumerate(backbones)
        ],
    )


def _contestant(name: str, runs: list[Measured], baseline: list[Measured], n: int) -> dict[str, Any]:
    steady, base = [steady_rate(run, n) for run in runs], [steady_rate(run, n) for run in baseline]
    known = all(rate is not None for rate in [*steady, *base])
    return {
        "name": name,
        "images_per_second": statistics.median(n / run.seconds for run in runs),
        "steady_images_per_second": statistics.median(steady) if known else None,  # type: ignore[type-var]
        "ratio": ratios([run.seconds for run in baseline], [run.seconds for run in runs]),
        "ratio_steady": ratios(steady, base) if known else None,  # type: ignore[arg-type]
        "ratio_cpu": ratios([run.cpu_seconds for run in baseline], [run.cpu_seconds for run in runs]),
        "peak_memory_mb": statistics.median(run.peak_memory_mb for run in runs),
        "rounds": [run.numbers() for run in runs],
    }


def steady_rate(run: Measured, n: int) -> float | None:
    """Images a second once the networks are ready: what a long job sees.

    Where the work goes in batches through all backbones (offshelf), the first batch, which loads and prepares them and
    decides the route, is left out; None where there was no second one, or where nothing was computed.
    """
    ticks = run.facts.get("ticks")
    if ticks is None:
        return n / (run.seconds - run.laps["prepared"])
    if not run.facts["computed"] or len(ticks) < 2 or ticks[0][1] >= n:
        return None
    return (n - ticks[0][1]) / (ticks[-1][0] - ticks[0][0])


def _backbone(index: int, found: dict[str, list[Measured]], width: int) -> dict[str, Any]:
    """Route and agreement of one backbone in the first round; every tile of every picture is a row."""
    first = {name: runs[0] for name, runs in found.items()}
    tables = {name: run.arrays[str(index)].reshape(-1, width) for name, run in first.items()}
    return {
        "route": first["offshelf"].facts["routes"][index]["route"],
        "guard": {key: first["offshelf"].facts["routes"][index][key] for key in ("cosine_median", "cosine_min")},
        "offshelf_to_timm": agreement(tables[BASELINE], tables["offshelf"]),
        "exact_to_timm": agreement(tables[BASELINE], tables[EXACT]),
        "offshelf_to_exact": agreement(tables[EXACT], tables["offshelf"]),
        "second_run_is_equal": bool((tables["offshelf"] == tables[SECOND]).all()),
    }


def tables(kept: dict[str, Any]) -> list[Table]:
    """The tables of a result: who was how fast, and whose features agree."""
    settings = kept["settings"]
    what = f"{settings['images']} pictures of {settings['source']}, {len(kept['backbones'])} backbones, "
    what += f"{settings['grid'][0]} x {settings['grid'][1]} tiles, {settings['threads']} threads"
    speed = Table(
        f"Speed: {what}",
        ["contestant", "images/s", "ratio (per round)", "images/s, steady", "ratio, steady", "ratio, CPU", "peak MiB"],
        [
            [
                each["name"],
                number(each["images_per_second"]),
                spread(each["ratio"]),
                number(each["steady_images_per_second"]),
                number((each["ratio_steady"] or {}).get("median")),
                number(each["ratio_cpu"]["median"]),
                f"{each['peak_memory_mb']:.0f}",
            ]
            for each in kept["contestants"]
        ],
    )
    alike = Table(
        "Agreement with the timm loop (cosines of centred features, tile by tile: median / worst)",
        [
            "backbone",
            "route",
            "offshelf",
            "exact",
            "offshelf to exact",
            "plain cosine, worst",
            "largest difference",
            "size",
        ],
        [
            [
                each["name"],
                each["route"],
                _pair(each["offshelf_to_timm"]),
                _pair(each["exact_to_timm"]),
                _pair(each["offshelf_to_exact"]),
                f"{each['offshelf_to_timm']['plain_min']:.4f}",
                f"{each['offshelf_to_timm']['largest_difference']:.2g}",
                f"{each['offshelf_to_timm']['typical_size']:.2g}",
            ]
            for each in kept["backbones"]
        ],
    )
    return [speed, alike]


def _pair(values: dict[str, float]) -> str:
    return f"{values['centred_median']:.4f} / {values['centred_min']:.4f}"
