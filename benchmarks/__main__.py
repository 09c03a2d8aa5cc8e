"""``python -m benchmarks``: features, memory, probes, training, architectures; ``tables`` puts them into the README."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from benchmarks import architectures as architectures_side
from benchmarks import features as features_side
from benchmarks import memory as memory_side
from benchmarks import probes as probes_side
from benchmarks import training as training_side
from benchmarks.tables import refresh, show
from offshelf.engine.files import write_json
from offshelf.errors import OffshelfError

app = App(
    name="python -m benchmarks",
    help="The library side by side with what a user would write otherwise, in one run and as ratios.",
    default_parameter=Parameter(consume_multiple=True, negative=()),
    version_flags=[],
    result_action="return_value",
)
CORES = os.cpu_count() or 1
JsonFile = Annotated[Path | None, Parameter(name="--json")]


@app.command
def features(
    *,
    backbones: list[str] | None = None,
    tiny: bool = False,
    full: bool = False,
    data: str = "chest-xray-full",
    images: int = 20,
    rounds: int = 3,
    threads: int = CORES,
    json: JsonFile = None,
) -> None:
    """Features of pictures: a loop over timm networks, with and without workers, against offshelf.

    Parameters
    ----------
    backbones
        names as load_backbone takes them; three of middling size by default.
    tiny
        timm's eight test networks.
    full
        the eight of the founding paper.
    data
        a folder of pictures, or a data set by name.
    images
        how many of its pictures, evenly spread.
    rounds
        how often all contestants run, in turn.
    threads
        threads a process.
    json
        keep the result in this file.
    """
    chosen = backbones or (features_side.PAPER if full else features_side.TINY if tiny else features_side.QUICK)
    _finish(features_side.measure(chosen, data, images, rounds, threads, _command(), _say), json)


@app.command
def memory(
    *,
    backbones: list[str] | None = None,
    data: str = "chest-xray",
    counts: list[int] | None = None,
    threads: int = CORES,
    json: JsonFile = None,
) -> None:
    """Peak memory of extraction against the number of pictures.

    Parameters
    ----------
    backbones
        names as load_backbone takes them; two small ones by default.
    data
        a folder of pictures, or a data set by name.
    counts
        numbers of pictures; 100, 200, 400 and 800 by default.
    threads
        threads a process.
    json
        keep the result in this file.
    """
    chosen = backbones or memory_side.BACKBONES
    _finish(memory_side.measure(chosen, data, counts or [100, 200, 400, 800], threads, _command(), _say), json)


@app.command
def probes(*, size: str = "small", heads: list[str] | None = None, rounds: int = 3, json: JsonFile = None) -> None:
    """Heads on features: offshelf's against scikit-learn's grid search.

    Parameters
    ----------
    size
        toy, small or paper.
    heads
        some of logistic, svm, knn, knn_choice; all by default.
    rounds
        how often all contestants run, in turn.
    json
        keep the result in this file.
    """
    _finish(probes_side.measure(size, heads or probes_side.HEADS, rounds, _command(), _say), json)


@app.command
def training(
    *,
    size: str = "small",
    parts: list[str] | None = None,
    rounds: int = 3,
    threads: int = CORES,
    json: JsonFile = None,
) -> None:
    """Training: the engine against a bare loop, augmentation, precision, masked autoencoding against its mask.

    Parameters
    ----------
    size
        toy or small.
    parts
        some of engine, augmentation, precision, mask; all by default.
    rounds
        how often all contestants run, in turn.
    threads
        threads a process; augmentation has one.
    json
        keep the result in this file.
    """
    chosen = parts or training_side.PARTS
    _finish(training_side.measure(size, chosen, rounds, threads, _command(), _say), json)


@app.command
def architectures(
    *,
    size: str = "small",
    parts: list[str] | None = None,
    rounds: int = 3,
    threads: int = CORES,
    json: JsonFile = None,
) -> None:
    """Architectures: haloed attention against windows, B-cos networks against ordinary ones, filters against a loop.

    Parameters
    ----------
    size
        toy or small.
    parts
        some of halo, b-cos, filters; all by default.
    rounds
        how often all contestants run, in turn.
    threads
        threads a process.
    json
        keep the result in this file.
    """
    chosen = parts or architectures_side.PARTS
    _finish(architectures_side.measure(size, chosen, rounds, threads, _command(), _say), json)


@app.command
def tables() -> None:
    """Write the kept results into benchmarks/README.md."""
    print("README changed" if refresh() else "README is as the results are")


def _finish(kept: dict[str, Any], path: Path | None) -> None:
    show(kept)
    if path is not None:
        print(f"kept: {write_json(path, kept)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what a user can mend is one sentence."""
    try:
        app(arguments)
    except OffshelfError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
