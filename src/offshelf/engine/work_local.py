"""The work queue on this machine: worker processes that live on, one pipe each, one job at a time.

So it is known which job a dead worker held, and what a job's module keeps in memory serves the next job. Workers are
forked off a server process that has the heavy imports behind it and has never computed: a fork after torch has
computed hangs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from offshelf.engine.job import PRELOAD, Finished, Job, died, held, keep, limit_threads, perform
from offshelf.engine.store import ResultStore
from offshelf.errors import RunError

READY = "ready"
STILLBORN = 3  # workers that may die before they are ready, one after the other
PATIENCE = 5.0  # seconds that an idle worker has to leave by itself


@dataclass(eq=False)
class Task:
    """A job on its way: how its earlier attempts ended, and when this one began."""

    job: Job
    exits: list[str] = field(default_factory=list)
    began: float = 0.0


@dataclass(eq=False)
class Worker:
    """A process, our end of its pipe, and the task that it holds."""

    process: Any
    pipe: Connection
    task: Task | None = None
    ready: bool = False


def run_locally(
    jobs: list[Job],
    *,
    store: ResultStore | None,
    workers: int,
    threads: int,
    attempts: int,
    preload: tuple[str, ...] = PRELOAD,
) -> Generator[Finished, None, None]:
    """Give back what each job came to, as it ends. Workers put results into the store's file themselves.

    Raises
    ------
    RunError
        When the store cannot be written, or workers die before they are ready.
    """
    waiting = deque(Task(job) for job in jobs)
    crew: list[Worker] = []
    stillborn = 0
    try:
        while waiting or any(worker.task for worker in crew):
            while len(crew) < workers and sum(worker.task is None for worker in crew) < len(waiting):
                crew.append(_start(store.path if store else None, threads, preload))
            _hand_out(crew, waiting)
            for worker in _stirring(crew):
                said = _hear(worker)
                if isinstance(said, RunError):
                    raise said  # the store cannot be written: going on would be work for nothing
                if said == READY:
                    worker.ready, stillborn = True, 0
                elif isinstance(said, Finished) and worker.task:
                    finished, worker.task = replace(said, job=worker.task.job), None
                    yield finished
                else:
                    crew.remove(worker)
                    stillborn = 0 if worker.ready else stillborn + 1
                    if stillborn > STILLBORN:
                        raise RunError(
                            f"Worker processes end before they begin ({_exit(worker)}). What they said stands above, "
                            "if anything; if nothing, memory is short: ask for fewer workers."
                        )
                    lost = _bury(worker, waiting, store, attempts)
                    if lost is not None:
                        yield lost
        _dismiss(crew)
    finally:
        for worker in crew:
            _stop(worker)


def _start(path: Path | None, threads: int, preload: tuple[str, ...]) -> Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    ours, theirs = context.Pipe()
    # daemon: should nobody close the iterator, Python's own exit ends them
    process = context.Process(target=_serve, args=(theirs, path, threads, dict(os.environ)), daemon=True)
    with _plain_start(threads), theirs:
        try:
            process.start()
        except BaseException as error:
            ours.close()  # should it have come to life after all, it ends by this
            if isinstance(error, (OSError, EOFError)):
                raise RunError(f"A worker process cannot be started ({error!r}); ask for fewer workers.") from error
            raise
    return Worker(process, ours)


@contextlib.contextmanager
def _plain_start(threads: int) -> Iterator[None]:
    """Let the server begin with few threads and deaf to Ctrl-C, and keep workers from running the main script again.

    A script without ``if __name__ == "__main__"``, a test runner and a console script are then all the same.
    """
    main, before = sys.modules["__main__"], os.environ.get("OMP_NUM_THREADS")
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        resource_tracker.ensure_running()  # the server starts it otherwise, which lifts the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server keeps what it is born with
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield
    finally:
        sys.modules["__main__"] = main
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _hand_out(crew: list[Worker], waiting: deque[Task]) -> None:
    """A task for every worker without one."""
    for worker in crew:
        if worker.task is None and waiting:
            task = waiting.popleft()
            task.began = time.perf_counter()
            try:
                worker.pipe.send((task.job, len(task.exits) + 1))
                worker.task = task
            except OSError:  # it died idle, which is no job's fault; its end is about to be heard
                waiting.appendleft(task)


def _stirring(crew: list[Worker]) -> list[Worker]:
    """Wait until some worker speaks or dies. Its pipe alone would not tell: a child of it may hold that open."""
    heard = set(wait([end for worker in crew for end in (worker.pipe, worker.process.sentinel)]))
    return [worker for worker in crew if worker.pipe in heard or worker.process.sentinel in heard]


def _hear(worker: Worker) -> Any:
    """What a worker says: `READY`, a `Finished`, a `RunError` of the store; None when it is dead."""
    with contextlib.suppress(EOFError, OSError):
        if worker.pipe.poll():
            return worker.pipe.recv()
    _stop(worker)
    return None


def _bury(worker: Worker, waiting: deque[Task], store: ResultStore | None, attempts: int) -> Finished | None:
    """Queue the task of a dead worker again; when it has had its chances, what is to be said of it."""
    task = worker.task
    if task is None:
        return None
    if not worker.ready:  # the job was never begun
        waiting.appendleft(task)
        return None
    settled = held(store, task.job, retry_failed=True)
    if settled:  # it died after its result was kept and before it could say so
        return settled
    task.exits.append(_exit(worker))
    if len(task.exits) < attempts:
        waiting.append(task)
        return None
    lost = died(task.job, task.exits, time.perf_counter() - task.began)
    if store:
        keep(store, lost)
    return lost


def _exit(worker: Worker) -> str:
    code = worker.process.exitcode
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _dismiss(crew: list[Worker]) -> None:
    """Let idle workers leave by themselves."""
    for worker in crew:
        with contextlib.suppress(OSError):
            worker.pipe.send(None)
    deadline = time.monotonic() + PATIENCE
    for worker in crew:
        worker.process.join(max(0.0, deadline - time.monotonic()))


def _stop(worker: Worker) -> None:
    """End a worker and all that it started, now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    if worker.process.exitcode is None:
        worker.process.kill()  # it may not have come as far as a group of its own
    worker.pipe.close()
    worker.process.join()


def _serve(pipe: Connection, path: Path | None, threads: int, environment: dict[str, str]) -> None:
    """The life of a worker: take a job, do it, keep its result, say so."""
    os.setsid()  # a group of its own: ended as a whole, and deaf to the terminal's Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # standard output is for results; what a job prints goes beside it
    multiprocessing.current_process().daemon = False  # a job may have children, such as loaders of data
    os.environ.clear()
    os.environ.update(environment)  # as it is now, not as it was when the server began
    limit_threads(threads)
    inbox: queue.SimpleQueue[tuple[Job, int] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    with contextlib.suppress(BrokenPipeError), contextlib.ExitStack() as stack:  # broken: the parent has just gone
        pipe.send(READY)
        store: ResultStore | None = None
        while (asked := inbox.get()) is not None:
            finished = perform(*asked)
            try:
                if path:
                    store = store or stack.enter_context(ResultStore(path))
                    keep(store, finished)
            except RunError as error:
                pipe.send(error)
                return
            pipe.send(finished)


def _listen(pipe: Connection, inbox: queue.SimpleQueue[tuple[Job, int] | None]) -> None:
    """Take in jobs; when the parent is gone, however it went, end at once with all children, even amid a job."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
