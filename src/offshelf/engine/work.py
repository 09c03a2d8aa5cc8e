"""A queue of jobs: each calls a function by name with plain arguments, and what it returns is kept by its key.

The same list runs on this machine or on a Ray cluster. A job that kills its worker is tried again a few times, then
named and marked; all others go on. With a store, a job whose result is there is not run again.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import silent
from offshelf.engine.files import finite
from offshelf.engine.store import ResultStore, Status
from offshelf.errors import NotApplicable, OffshelfError, UsageError

PRELOAD = ("torch", "timm", "sklearn")


@dataclass(frozen=True)
class Job:
    """One call to make.

    key : names the result; jobs with one key are one job, so it must hold all that the result hangs on.
    name : for people.
    call : "module:function"; it returns a dict that JSON can hold, or such a dict and bytes. It may raise
        `NotApplicable` when the job does not fit its input.
    spec : the function's keyword arguments; plain values that JSON can hold.
    kind : a word to sort results by, such as a protocol's name.
    """

    key: str
    name: str
    call: str
    spec: dict[str, Any]
    kind: str = ""


@dataclass(frozen=True)
class Finished:
    """What a job came to. ``value`` and ``blob`` are what its function returned, ``reason`` why there is none.

    ``attempts`` counts how often it was begun, ``seconds`` is how long the last attempt took (of one that died, with
    the time that it waited in Ray's queue).
    """

    job: Job
    status: Status
    value: dict[str, Any]
    blob: bytes | None
    reason: str
    attempts: int
    seconds: float


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


def held(store: ResultStore | None, job: Job, retry_failed: bool) -> Finished | None:
    """What the store says of a job that need not run."""
    row = store.get(job.key) if store else None
    if row is None or (row.status == "failed" and retry_failed):
        return None
    return Finished(job, row.status, row.value, row.blob, row.reason, row.attempts, row.seconds)


def keep(store: ResultStore, finished: Finished) -> None:
    """Put what a job came to into the store."""
    job = finished.job
    store.put(
        job.key,
        name=job.name,
        kind=job.kind,
        spec=job.spec,
        status=finished.status,
        value=finished.value,
        blob=finished.blob,
        reason=finished.reason,
        attempts=finished.attempts,
        seconds=finished.seconds,
    )


def perform(job: Job, attempt: int) -> Finished:
    """Make the call of a job, in the worker. Whatever it raises becomes a status and a sentence."""
    clock = time.perf_counter()
    status: Status = "done"
    value: dict[str, Any] = {}
    blob: bytes | None = None
    reason = ""
    try:
        module, _, function = job.call.partition(":")
        returned = getattr(importlib.import_module(module), function)(**job.spec)
        value, blob = _plain(job.call, returned)
    except NotApplicable as error:
        status, reason = "not applicable", str(error)
    except OffshelfError as error:
        status, reason = "failed", str(error)
    except BaseException as error:  # also SystemExit: a worker belongs to the queue, not to a job
        status, reason = "failed", f"{type(error).__name__}: {error}"
    return Finished(job, status, value, blob, reason, attempt, time.perf_counter() - clock)


def _plain(call: str, returned: Any) -> tuple[dict[str, Any], bytes | None]:
    """Value and bytes as the store would give them back, so that a fresh result equals a stored one."""
    value, blob = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(value, dict) or not isinstance(blob, (bytes, type(None))):
        raise TypeError(f"{call} returned {type(returned).__name__}; expected a dict, or a dict and bytes")
    return json.loads(json.dumps(finite(value), allow_nan=False)), blob


def died(job: Job, exits: list[str], seconds: float) -> Finished:
    """A job whose every attempt ended its worker; ``exits`` are words such as "signal 9"."""
    times = f"each of {len(exits)} times " if len(exits) > 1 else ""
    words = ", ".join(dict.fromkeys(exits))
    if "signal 9" in exits or "out of memory" in exits:
        reason = f"killed {times}({words}), most likely out of memory: fewer workers or a smaller batch"
    elif "worker crashed" in exits:  # all that Ray knows
        reason = (
            f"ended its worker {times}({words}), most likely out of memory or a fault in native code: fewer workers, "
            "a smaller batch, or this job alone to see why"
        )
    else:
        reason = f"ended its worker {times}({words}): run this job alone to see why"
    return Finished(job, "failed", {}, None, reason, len(exits), seconds)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Limit the threads of what this process has imported, and of what it will."""
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    threadpool_limits(threads)
