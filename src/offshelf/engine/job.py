"""One job of a queue: what it is, what it came to, and what a worker does with it.

The door to the queue is `offshelf.engine.work.run_jobs`; this is what the door and both kinds of workers share.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from offshelf.engine.files import finite
from offshelf.engine.store import ResultStore, Status
from offshelf.errors import NotApplicable, OffshelfError

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
