from __future__ import annotations

import threading
import time

import pytest

from offshelf.engine.threads import readers


def test_results_come_back_in_order() -> None:
    with readers(3) as pool:
        assert list(pool.map(lambda n: n * n, range(5))) == [0, 1, 4, 9, 16]


def test_an_interrupt_is_not_kept_waiting_by_a_thread_that_never_ends() -> None:
    release = threading.Event()
    ran: list[int] = []
    clock = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), readers(1) as pool:
        pool.submit(release.wait)
        pool.submit(ran.append, 1)
        raise KeyboardInterrupt
    waited = time.perf_counter() - clock
    release.set()
    assert waited < 30  # it would be for ever
    time.sleep(0.05)
    assert ran == []  # what was queued is dropped
