"""What a backbone costs on this machine: pictures a second and memory, measured in one thread by one process."""

from __future__ import annotations

import ctypes
import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from offshelf.backbones.card import card_of
from offshelf.backbones.input_size import set_input_size
from offshelf.backbones.load import load_backbone
from offshelf.backbones.readout import read
from offshelf.engine.runs import machine
from offshelf.engine.work import Job

VERSION = "cost/v2"  # the first version counted what a process needs once to the first backbone it was asked about
BATCH, ROUNDS = 16, 7
PROCESS = Path("/proc/self")


def cost_job(facts: dict[str, Any], input_size: int | None) -> Job:
    """The measurement as a job; its key holds the kind of machine, since elsewhere the numbers are others."""
    spec = {"backbone": facts["path"], "input_size": input_size}
    said = json.dumps([VERSION, facts["identity"], input_size, machine(), torch.__version__, BATCH], sort_keys=True)
    key = hashlib.sha256(said.encode()).hexdigest()
    return Job(key, f"cost of {facts['name']}", f"{__name__}:measure_cost", spec, VERSION)


def measure_cost(*, backbone: str, input_size: int | None) -> dict[str, Any]:
    """Speed and memory of the frozen network in fp32 on batches of 16 noise pictures.

    Returns
    -------
    dict
        ``images_per_second``: 16 over the median of seven forward passes, decoding left out. ``memory_mb``: how far the
        process's peak rose from before the network was loaded, weights and activations together, in 10^6 bytes; None
        where the system does not tell (elsewhere than on Linux).
    """
    _passes(backbone, input_size)  # what a process needs once, modules and kernels, is no backbone's cost
    before = _settled()
    median = sorted(_passes(backbone, input_size)[1:])[ROUNDS // 2]
    peak = _kilobytes("VmHWM")
    memory = None if before is None or peak is None else max(0, peak - before) * 1024 / 1e6
    return {
        "images_per_second": BATCH / median,
        "memory_mb": memory,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
    }


def _passes(backbone: str, input_size: int | None) -> list[float]:
    """Load the network, and the seconds of each of its forward passes; the first may be slower than the others."""
    model = load_backbone(backbone)
    card = card_of(model)
    side = (input_size, input_size) if input_size else card.input_size
    if input_size and tuple(card.input_size) != side:
        set_input_size(model, *side)
    pictures = torch.randn(BATCH, 3, *side, generator=torch.Generator().manual_seed(0))
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            started = time.perf_counter()
            read(model, pictures)
            seconds.append(time.perf_counter() - started)
    return seconds


def _settled() -> int | None:
    """Resident kilobytes after what is free was given back, with the peak reset to it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    return _kilobytes("VmRSS")


def _kilobytes(name: str) -> int | None:
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) if found else None
