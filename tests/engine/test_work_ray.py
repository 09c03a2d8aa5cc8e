"""The work queue on Ray: a real cluster of two nodes beside its head, one of which is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offshelf.engine import ray_cluster
from offshelf.engine.store import ResultStore
from offshelf.engine.work import Finished, Job, run_jobs
from offshelf.errors import RunError, UsageError
from tests.engine.test_work import _children, job

slow = pytest.mark.slow
on_one_worker = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray_cluster.import_ray()
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    plain: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **plain})
    try:
        cluster.nodes_of_work = [cluster.add_node(num_cpus=1, **plain) for _ in range(2)]
        yield cluster
    finally:
        cluster.shutdown()


def run(jobs: list[Job], **options: Any) -> dict[str, Finished]:
    return {finished.job.key: finished for finished in run_jobs(jobs, **options)}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'needs Ray: pip install "offshelf\[distributed\]"'):
        run([job("a", "numbers", seed=1)], engine="ray")


@pytest.mark.parametrize("address", ["auto", "10.0.0.1", "ray://10.0.0.1:10001", "host:", ":6379", "host:70000"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=f"{address}: not the address of a Ray cluster; expected host:port"):
        ray_cluster._answers(address)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "a-host-that-is-not-there.invalid:6379"])
def test_an_address_that_nobody_answers_is_refused_at_once(address: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = address.format(port=taken.getsockname()[1])
        with pytest.raises(UsageError, match=f"{address}: no Ray cluster answers there .*`ray start --head --port="):
            run([job("a", "numbers", seed=1)], engine="ray", address=address)


def test_refusals_of_a_cluster_are_put_in_plain_words() -> None:
    said = (
        "Traceback\nRuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.12.1"
    )
    assert ray_cluster._refusal(said, "Python: 3.12.1") == (
        "the cluster's versions are not this program's. Version mismatch: The cluster was started with: Ray: 2.40.0 "
        "Python: 3.12.1 Install the same on both."
    )
    assert "Join it with `ray start --address=" in ray_cluster._refusal(
        "cannot find matched Raylet address", "no raylet"
    )
    assert ray_cluster._refusal("other", "last line") == "the cluster does not take this program in (last line)."


def test_other_code_of_the_same_version_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    identity = ray_cluster._identity()
    ours = identity([])
    assert ours["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert identity([]) == ours
    (tmp_path / "part").mkdir()
    (tmp_path / "__init__.py").touch()
    found: Any = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    seen = {ours["offshelf"]}
    for code in ("a = 1", "a = 2"):
        (tmp_path / "part" / "module.py").write_text(code)
        seen.add(identity([])["offshelf"])
    assert len(seen) == 3
    found = None
    assert identity([])["offshelf"] == "(not installed)"


@slow
@on_one_worker
def test_what_listens_but_is_no_cluster_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "JOIN_SECONDS", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises((UsageError, RunError), match=f"{address}: .*(did not take|does not take)"):
            run([job("a", "numbers", seed=1)], engine="ray", address=address)
    assert not [pid for pid in _children(os.getpid()) if address in Path(f"/proc/{pid}/cmdline").read_text()]


@slow
@on_one_worker
def test_statuses_are_the_local_ones_and_a_poison_job_is_capped(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(f"n{seed}", "numbers", seed=seed, size=50_000) for seed in range(5)]  # 200 kB: not sent inline
    jobs += [job(what, "raises", what=what) for what in ("not applicable", "ours", "zero", "exit")]
    jobs += [job("list", "returns", what="list"), Job("gone", "gone", "tests.engine.absent:f", {})]
    jobs += [job("counted", "counted", folder=str(tmp_path), name="marks"), jobs[0]]
    once = job("once", "dies_once", marker=str(tmp_path / "marker"))
    everything = [*jobs, job("poison", "dies", how="kill"), once]
    there = run(everything, engine="ray", address=cluster.address, store=tmp_path / "r.sqlite")
    here = run(jobs, workers=1)
    for key, finished in here.items():
        same = ("status", "value", "blob", "reason", "attempts")
        assert [getattr(there[key], name) for name in same] == [getattr(finished, name) for name in same]
    assert (there["once"].status, there["once"].attempts) == ("done", 2)
    poison = there["poison"]
    assert (poison.status, poison.attempts) == ("failed", 3)
    assert poison.reason == (
        "ended its worker each of 3 times (worker crashed), most likely out of memory or a fault in native code: "
        "fewer workers, a smaller batch, or this job alone to see why"
    )
    with ResultStore(tmp_path / "r.sqlite") as store:  # the driver keeps them; a second run asks nobody
        assert {row.key: (row.status, row.value, row.blob, row.reason) for row in store.rows()} == {
            key: (f.status, f.value, f.blob, f.reason) for key, f in there.items()
        }
    again = run([*jobs, once], engine="ray", address="127.0.0.1:1", store=tmp_path / "r.sqlite", retry_failed=False)
    assert again == {key: finished for key, finished in there.items() if key != "poison"}
    assert (tmp_path / "marks").read_text() == "xx"  # once there, once here
    assert capfd.readouterr().out == ""


@slow
@on_one_worker
def test_more_than_the_cluster_has_and_other_code_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked = [job("a", "numbers", seed=1)]
    ray.init(address=cluster.address, **ray_cluster.QUIET)
    try:
        with pytest.raises(UsageError, match="64 threads a job, but the largest node of the cluster has 1 CPUs"):
            run(asked, engine="ray", threads=64)
        with pytest.raises(UsageError, match="5 workers of 1 threads need 5 CPUs, but the cluster has 2 on 3 nodes"):
            run(asked, engine="ray", workers=5)
        monkeypatch.setattr(ray_cluster, "_identity", lambda: lambda paths: {"offshelf": f"0.{os.getpid()}"})
        with pytest.raises(RunError, match=rf"The node [\d.]+ has offshelf 0\.\d+, this program 0\.{os.getpid()}; "):
            run(asked, engine="ray")
        assert ray.is_initialized()  # a connection of the caller's stays the caller's
    finally:
        ray.shutdown()


@slow
@on_one_worker
def test_a_killed_node_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    """The last test of this file: it leaves the cluster with one node of work."""
    marks = tmp_path / "marks"
    jobs = [job(f"n{seed}", "slow_numbers", seed=seed, seconds=1.0, begun=str(marks)) for seed in range(10)]
    victim = cluster.nodes_of_work[1]
    raylet = victim.all_processes["raylet"][0].process.pid
    doomed = threading.Thread(target=_kill_once_it_works, args=(victim, raylet, marks))
    doomed.start()
    there = run(jobs, engine="ray", address=cluster.address, store=tmp_path / "r.sqlite")
    doomed.join()
    begun = marks.read_text().split("\n")[:-1]
    assert any(line.endswith(f" {raylet}") for line in begun)  # the killed node did work
    assert len(begun) > len(jobs)  # and lost some
    assert max(finished.attempts for finished in there.values()) == 2
    here = run([job(f"n{seed}", "numbers", seed=seed) for seed in range(10)], workers=1)
    assert {key: (f.status, f.value, f.blob) for key, f in there.items()} == {
        key: ("done", f.value, f.blob) for key, f in here.items()
    }


def _kill_once_it_works(node: Any, raylet: int, marks: Path) -> None:
    """End a node as a power cut would: its raylet alone would still hand in the work that it holds."""
    while not marks.exists() or f" {raylet}\n" not in marks.read_text():
        time.sleep(0.05)
    everyone = [process.process.pid for group in node.all_processes.values() for process in group]
    for pid in {*everyone, *(child for parent in everyone for child in _children(parent))}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
