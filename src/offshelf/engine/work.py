"""A queue of jobs: each calls a function by name with plain arguments, and what it returns is kept by its key.

The same list runs on this machine or on a Ray cluster. A job that kills its worker is tried again a few times, then
named and marked; all others go on. With a store, a job whose result is there is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from offshelf.engine.console import silent
from offshelf.engine.files import finite
from offshelf.engine.job import PRELOAD, Finished, Job, cores, held, keep
from offshelf.engine.store import ResultStore
from offshelf.errors import UsageError

__all__ = ["Finished", "Job", "run_jobs"]


def run_jobs(
    jobs: list[Job],
    *,
    store: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    attempts: int = 3,
    retry_failed: bool = True,
    advance: Callable[[int], None] = silent,
    preload: tuple[str, ...] = PRELOAD,
) -> Iterator[Finished]:
    """Run ``jobs`` side by side and give each back as it ends; first those that ``store`` holds already.

    Closing the iterator, or Ctrl-C, stops all workers at once; what is in the store stays.

    Parameters
    ----------
    jobs : list of Job
        Several with one key run once.
    store : Path
        A `ResultStore`'s file. Jobs that it holds as done or not applicable are not run.
    engine : str
        "local" (processes of this machine) or "ray".
    address : str
        ``host:port`` of a Ray cluster; without it Ray starts on this machine.
    workers : int
        Jobs at once; without it, as many as the cores allow.
    threads : int
        Of each job's computing.
    attempts : int
        How often a job is begun that kills its worker. One that raises an error is not tried again.
    retry_failed : bool
        Whether jobs that the store holds as failed are run again.
    advance : callable
        Told 1 for each job that is given back.
    preload : tuple of str
        Modules that local workers find imported. The first use in a process decides.

    Raises
    ------
    UsageError
        For a job that cannot be asked for as it stands, or a cluster that cannot be reached or is too small.
    RunError
        When the store cannot be written, or no worker can be started.
    """
    for name, number in (("workers", workers), ("threads", threads), ("attempts", attempts)):
        if number is not None and number < 1:
            raise UsageError(f"{name}: {number}; expected 1 or more.")
    if engine not in ("local", "ray"):
        raise UsageError(f"engine {engine!r}: expected 'local' or 'ray'.")
    if address and engine != "ray":
        raise UsageError(f"An address ({address}) is one of a Ray cluster; give engine 'ray' with it.")
    return _run(_distinct(jobs), store, engine, address, workers, threads, attempts, retry_failed, advance, preload)


def _run(
    jobs: list[Job],
    path: Path | None,
    engine: str,
    address: str | None,
    workers: int | None,
    threads: int,
    attempts: int,
    retry_failed: bool,
    advance: Callable[[int], None],
    preload: tuple[str, ...],
) -> Iterator[Finished]:
    store = ResultStore(path) if path else None
    try:
        missing = []
        for job in jobs:
            known = held(store, job, retry_failed)
            if known is None:
                missing.append(job)
            else:
                advance(1)
                yield known
        if not missing:
            return
        if engine == "ray":
            from offshelf.engine.work_ray import run_on_ray

            running = run_on_ray(missing, address=address, workers=workers, threads=threads, attempts=attempts)
        else:
            from offshelf.engine.work_local import run_locally

            workers = workers or max(1, cores() // threads)
            running = run_locally(
                missing, store=store, workers=workers, threads=threads, attempts=attempts, preload=preload
            )
        try:
            for finished in running:
                if store and engine == "ray":  # one writer: the workers' machines may not share a file system
                    keep(store, finished)
                advance(1)
                yield finished
        finally:
            running.close()  # at once, also when whoever asked has stopped listening
    finally:
        if store:
            store.close()


def _distinct(jobs: list[Job]) -> list[Job]:
    """The jobs, each key once; refuses what no worker could run."""
    found: dict[str, Job] = {}
    for job in jobs:
        module, _, function = job.call.partition(":")
        if not module or not function.isidentifier() or module == "__main__":
            raise UsageError(
                f"job {job.name!r}: cannot call {job.call!r}; expected 'module:function' of a module that workers can "
                "import (not the script that is running)."
            )
        try:
            json.dumps(finite(job.spec))
        except (TypeError, ValueError) as error:
            raise UsageError(f"job {job.name!r}: its spec must be plain values ({error}).") from None
        same = found.setdefault(job.key, job)
        if (same.call, same.spec) != (job.call, job.spec):
            raise UsageError(f"jobs {same.name!r} and {job.name!r} differ, but share the key {job.key!r}.")
    return list(found.values())
