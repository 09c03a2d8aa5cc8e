"""Threads that read and decode beside the main one, and that never keep an interrupted program from ending."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def readers(count: int = 4) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; on an error or Ctrl-C what is queued is dropped, and nobody waits for the rest.

    An interrupt can strike while the main thread is taking the lock of a result, and leave it taken: a worker that
    needs that lock would then wait for ever, and with it everyone who waits for the worker.
    """
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
