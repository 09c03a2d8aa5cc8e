"""Ray itself: how it is imported, joined and asked what it is, before any job is handed to it.

Left alone, Ray waits for minutes for an address where nobody listens, and for ever for CPUs that no node has. So all
that is asked of a cluster is checked first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from offshelf.engine.job import cores
from offshelf.errors import RunError, UsageError

ANSWER_SECONDS = 5.0  # for a machine to take a connection
JOIN_SECONDS = 60.0  # for a cluster to take a driver
QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


def import_ray() -> Any:
    """Ray, told before it is imported to report nothing to the outside and to leave standard output to results.

    What it would print there is that a worker died; we say so ourselves, with the name of the job.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "(?s).")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UsageError('The engine "ray" needs Ray: pip install "offshelf[distributed]"') from None
    return ray


@contextlib.contextmanager
def session(ray: Any, address: str | None, workers: int | None, threads: int) -> Iterator[None]:
    """A connection to Ray, ended afterwards when it is ours."""
    if ray.is_initialized():
        yield
        return
    if address:
        _answers(address)
        _takes_drivers(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **QUIET)
        else:
            cpus = (workers or max(1, cores() // threads)) * threads
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **QUIET)
        yield
    finally:
        ray.shutdown()
        with contextlib.suppress(ValueError):  # not the main thread: then Ray has not touched it either
            signal.signal(signal.SIGTERM, handler)


def _answers(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host or not 0 < int(port) < 65536:
        raise UsageError(
            f"{address}: not the address of a Ray cluster; expected host:port as `ray start --head` prints it, such as "
            "10.0.0.1:6379."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"{address}: no Ray cluster answers there ({error}). Start one with `ray start --head --port={port}` on "
            f"{host}, or check the address with `ray status` there."
        ) from None


def _takes_drivers(address: str) -> None:
    """Join the cluster from a child first: whatever else listens at the address, the child can be ended."""
    code = f"import ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False); ray.shutdown()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        _, said = child.communicate(timeout=JOIN_SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{address}: something listens there, but did not take this program in as a Ray cluster would within "
            f"{JOIN_SECONDS:.0f} seconds. Check the address with `ray status`."
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        lines = [line for line in said.strip().splitlines() if line.strip()]
        raise RunError(f"{address}: {_refusal(said, lines[-1] if lines else 'Ray ended without a word')}")


def _refusal(said: str, last: str) -> str:
    """Why a cluster did not take a driver, in Ray's words or ours."""
    if "Version mismatch" in said:
        words = " ".join(said[said.rindex("Version mismatch") :].split())
        return f"the cluster's versions are not this program's. {words} Install the same on both."
    if "matched Raylet" in said or "node's ip address" in said.lower():
        return f"this machine is no part of the cluster ({last}). Join it with `ray start --address=...` first."
    return f"the cluster does not take this program in ({last})."


def room(ray: Any, workers: int | None, threads: int) -> int:
    """Jobs that run at once; Ray would wait for ever, in silence, for CPUs that no node has."""
    nodes = node_cpus(ray)
    total, largest = sum(nodes), max(nodes, default=0)
    if threads > largest:
        raise UsageError(
            f"{threads} threads a job, but the largest node of the cluster has {largest} CPUs; ask for fewer threads."
        )
    if workers and workers * threads > total:
        raise UsageError(
            f"{workers} workers of {threads} threads need {workers * threads} CPUs, but the cluster has {total} on "
            f"{len(nodes)} nodes; ask for fewer workers."
        )
    return max(1, sum(cpus // threads for cpus in nodes))


def node_cpus(ray: Any) -> list[int]:
    """CPUs of each node that is alive."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def same_everywhere(ray: Any) -> None:
    """Compare Python, Ray and offshelf of every node with the driver's."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    identity = _identity()
    paths = [os.path.abspath(folder) for folder in sys.path]  # noqa: PTH100
    ours = identity(paths)
    probe = ray.remote(identity)
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeManagerAddress"], node["NodeID"]] = probe.options(
                num_cpus=0, max_retries=0, scheduling_strategy=there
            ).remote(paths)
    for (host, _), reference in asked.items():
        try:
            theirs = ray.get(reference, timeout=JOIN_SECONDS)
        except ray.exceptions.RayError as error:
            raise RunError(
                f"The node {host} runs no tasks ({type(error).__name__}); see `ray status` and the logs of Ray there."
            ) from error
        for what, version in ours.items():
            if theirs[what] != version:
                raise RunError(
                    f"The node {host} has {what} {theirs[what]}, this program {version}; results could differ. Install "
                    "the same on every node."
                )


def _identity() -> Callable[[list[str]], dict[str, str]]:
    """What must be the same everywhere; an inner function, so that it runs where offshelf is missing."""

    def identity(paths: list[str]) -> dict[str, str]:
        import hashlib
        import importlib.util
        import pathlib
        import sys
        from importlib import metadata

        sys.path.extend(path for path in paths if path not in sys.path)
        found = importlib.util.find_spec("offshelf")
        try:
            version = metadata.version("offshelf")
        except metadata.PackageNotFoundError:
            version = "of unknown version"
        if found is None or not found.origin:
            version = "(not installed)"
        else:
            folder, digest = pathlib.Path(found.origin).parent, hashlib.sha256()
            for path in sorted(folder.rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
            version += f" (code {digest.hexdigest()[:8]})"
        return {
            "Python": ".".join(map(str, sys.version_info[:2])),
            "Ray": metadata.version("ray"),
            "offshelf": version,
        }

    return identity
