"""Functions that the tests of the work queue have called in workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from offshelf.errors import DataError, NotApplicable

SEEN: list[int] = []


def numbers(seed: int, size: int = 1000) -> tuple[dict[str, Any], bytes]:
    """Numbers that hang on the seed alone."""
    drawn = np.random.default_rng(seed).normal(size=size).astype("<f4")
    return {"mean": float(drawn.mean()), "seed": seed}, drawn.tobytes()


def slow_numbers(seed: int, seconds: float, begun: str) -> tuple[dict[str, Any], bytes]:
    """The same, later; leaves a mark of each time that it was begun, with the number of the parent process."""
    with Path(begun).open("a") as marks:
        marks.write(f"{seed} {os.getppid()}\n")
    time.sleep(seconds)
    return numbers(seed)


def counted(folder: str, name: str) -> dict[str, Any]:
    """Leaves a mark of each time that it was run."""
    with (Path(folder) / name).open("a") as marks:
        marks.write("x")
    return {"name": name, "nothing": float("nan")}


def remember(number: int) -> dict[str, Any]:
    """What this process has been asked before."""
    SEEN.append(number)
    return {"pid": os.getpid(), "seen": list(SEEN)}


def surroundings(variable: str) -> dict[str, Any]:
    """What a worker finds around itself."""
    import torch
    from threadpoolctl import threadpool_info

    return {
        "threads": torch.get_num_threads(),
        "pools": sorted({pool["num_threads"] for pool in threadpool_info()}),
        "variable": os.environ.get(variable),
        "folder": str(Path.cwd()),
        "ignores": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    }


def dies_once(marker: str) -> dict[str, Any]:
    """Killed the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived": True}


def dies(how: str) -> dict[str, Any]:
    """Ends its process in one of three ways."""
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "crash": signal.SIGSEGV}[how])
    time.sleep(60)
    return {}


def raises(what: str) -> dict[str, Any]:
    """Ends badly, but in Python."""
    if what == "not applicable":
        raise NotApplicable("one class alone; needs two")
    if what == "ours":
        raise DataError("photos/: no pictures")
    if what == "exit":
        sys.exit(3)
    return {"never": 1 // 0}


def returns(what: str) -> Any:
    """Returns what no job may."""
    return {"list": [1, 2], "object": {"a": object()}, "pair": ({"a": 1}, "text")}[what]


def sleeps_with_a_child(folder: str, number: int) -> dict[str, Any]:
    """Sleeps for ever beside a child, and says who they are."""
    child = subprocess.Popen(["sleep", "600"])
    (Path(folder) / f"pids-{number}.tmp").write_text(f"{os.getpid()} {child.pid}")
    (Path(folder) / f"pids-{number}.tmp").rename(Path(folder) / f"pids-{number}")
    time.sleep(600)
    return {}


def prints() -> dict[str, Any]:
    """Says something on standard output."""
    print("said by a job", flush=True)
    return {}


def loaded(module: str) -> dict[str, Any]:
    """Whether a module was imported before anybody asked, and how the main script is called here."""
    return {"loaded": module in sys.modules, "main": getattr(sys.modules["__main__"], "__file__", None)}
