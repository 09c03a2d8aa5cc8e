"""The work queue on Ray: one plain task a job, on this machine or on a cluster that runs already.

What a task is given and gives back is plain values. Ray is told of no retries: its own would not count against ours,
and have no end for what its memory monitor kills.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from typing import Any

from offshelf.engine.job import Finished, Job, died
from offshelf.engine.ray_cluster import import_ray, node_cpus, room, same_everywhere, session
from offshelf.errors import RunError

LOOK_SECONDS = 30.0  # between two looks at whether any node could still run what waits
IN_FLIGHT = 4  # tasks handed to Ray for each that can run at once


@dataclass(eq=False)
class Task:
    """A job on its way: how its earlier attempts ended, and when this one was handed to Ray."""

    job: Job
    exits: list[str] = field(default_factory=list)
    began: float = 0.0


def run_on_ray(
    jobs: list[Job], *, address: str | None, workers: int | None, threads: int, attempts: int
) -> Generator[Finished, None, None]:
    """Give back what each job came to, as it ends.

    Raises
    ------
    UsageError
        When Ray is not installed, nothing answers at the address, or the cluster is smaller than what is asked for.
    RunError
        When a node's Python, Ray or offshelf is not the driver's, or the cluster fails as a whole.
    """
    ray = import_ray()
    with session(ray, address, workers, threads):
        at_once = room(ray, workers, threads)
        same_everywhere(ray)
        options = {"num_cpus": threads, "max_retries": 0, "retry_exceptions": False}
        remote = ray.remote(_task()).options(**options)
        place = (os.getcwd(), [os.path.abspath(folder) for folder in sys.path], threads)  # noqa: PTH100, PTH109
        waiting = deque(Task(job) for job in jobs)
        flying: dict[Any, Task] = {}
        limit = workers or IN_FLIGHT * at_once
        try:
            while waiting or flying:
                while waiting and len(flying) < limit:
                    task = waiting.popleft()
                    task.began = time.perf_counter()
                    flying[remote.remote(asdict(task.job), len(task.exits) + 1, place)] = task
                for landed in _landed(ray, list(flying), threads):
                    task = flying.pop(landed)
                    finished = _fetch(ray, landed, task)
                    if finished is None and len(task.exits) < attempts:
                        waiting.append(task)
                        continue
                    yield finished or died(task.job, task.exits, time.perf_counter() - task.began)
        finally:
            for reference in flying:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)


def _task() -> Callable[..., Any]:
    """The task's function; an inner one, since Ray sends those as code and others by the name of their module."""

    def run_job(job: dict[str, Any], attempt: int, place: tuple[str, list[str], int]) -> tuple[Any, ...]:
        import os
        import sys

        folder, paths, threads = place
        sys.path.extend(path for path in paths if path not in sys.path)
        if os.path.isdir(folder):  # noqa: PTH112 (relative paths mean what they mean to the driver)
            os.chdir(folder)
        from offshelf.engine.job import Job, limit_threads, perform

        limit_threads(threads)
        done = perform(Job(**job), attempt)
        return done.status, done.value, done.blob, done.reason, done.attempts, done.seconds

    return run_job


def _landed(ray: Any, flying: list[Any], threads: int) -> list[Any]:
    """Wait for tasks to end; now and then look whether any node is left that could run them."""
    while True:
        landed, _ = ray.wait(flying, num_returns=1, timeout=LOOK_SECONDS)
        if landed:
            return landed
        if threads > max(node_cpus(ray), default=0):
            raise RunError(
                f"No node with {threads} CPUs is left in the cluster. What is done is kept: bring nodes back and give "
                "the same command again."
            )


def _fetch(ray: Any, landed: Any, task: Task) -> Finished | None:
    """What a task came to; None when it died, which is then noted with it."""
    errors = ray.exceptions
    try:
        status, value, blob, reason, attempts, seconds = ray.get(landed)
    except errors.OutOfMemoryError:
        task.exits.append("out of memory")
    except errors.WorkerCrashedError:
        task.exits.append("worker crashed")
    except errors.NodeDiedError:
        task.exits.append("node died")
    except errors.ObjectLostError:
        task.exits.append("result lost with its node")
    except errors.RayError as error:
        first = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise RunError(
            f"Ray gave up on job {task.job.name!r}: {first[0]}. What is done is kept: give the same command again."
        ) from error
    else:
        return Finished(task.job, status, value, blob, reason, attempts, seconds)
    return None
