"""A run while a job fills it: failures are noted in it, and the end writes results, page and seal in that order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offshelf.engine.files import write_json
from offshelf.engine.runs import Run, new_run_folder


def as_recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a run's record holds them: paths as text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}


@dataclass
class RunResult:
    """What a verb that fills a run folder returns; each verb adds its ``summary`` and ``show``."""

    folder: Path
    results: dict[str, Any]
    exit_code: int = 0

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"


@contextmanager
def recorded(
    verb: str, source: str, arguments: dict[str, Any], seed: int, out: Path | None, overwrite: bool
) -> Iterator[Run]:
    """Claim a run folder for ``verb`` and note in it why the job stopped, should it stop early."""
    plain = as_recorded(arguments)
    run = Run.create(Path(out) if out else new_run_folder(verb, source), verb, plain, seed, overwrite)
    if overwrite:
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # to start anew is what it means
    try:
        yield run
    except BaseException as error:
        run.fail("stopped with Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        raise


def conclude(run: Run, results: dict[str, Any], started: float, status: str = "complete") -> None:
    """Write the results and the page, and seal the run; ``started`` is the clock's reading when the job began.

    A run with another ``status`` is not sealed: the same command goes on with it.
    """
    from offshelf.report.build import build_report

    results["cost"]["total_seconds"] = round(time.perf_counter() - started, 2)
    write_json(run.folder / "results.json", results)
    run.note(data_fingerprint=results["data"]["fingerprint"], seconds=results["cost"]["total_seconds"])
    build_report(run.folder)
    if status == "complete":
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # only an unfinished run goes on from them
        run.finish()
    else:
        run.pause(status)
