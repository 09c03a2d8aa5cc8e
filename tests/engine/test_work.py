"""The work queue on this machine.

What runs in this process takes the preloaded modules that other tests need, since the first use decides.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from offshelf.engine.files import alive
from offshelf.engine.store import ResultStore
from offshelf.engine.work import Finished, Job, run_jobs
from offshelf.errors import RunError, UsageError
from tests.engine import toy_jobs

PROJECT = Path(__file__).resolve().parents[2]


def job(key: str, function: str, **spec: Any) -> Job:
    return Job(key, f"{function} {key}", f"tests.engine.toy_jobs:{function}", spec, kind="toy")


def run(jobs: list[Job], **options: Any) -> dict[str, Finished]:
    return {finished.job.key: finished for finished in run_jobs(jobs, **{"workers": 2} | options)}


def test_results_equal_serial_ones(tmp_path: Path) -> None:
    jobs = [job(f"n{seed}", "numbers", seed=seed) for seed in range(12)]
    told: list[int] = []
    found = run(jobs, store=tmp_path / "r.sqlite", advance=told.append)
    assert sum(told) == 12
    for seed, asked in enumerate(jobs):
        value, blob = toy_jobs.numbers(seed)
        finished = found[asked.key]
        assert (finished.status, finished.value, finished.blob, finished.attempts) == ("done", value, blob, 1)
        assert finished.job is asked
        assert finished.seconds > 0
    with ResultStore(tmp_path / "r.sqlite") as store:
        assert [(row.key, row.kind, row.spec) for row in store.rows("toy")] == sorted(
            ((asked.key, "toy", asked.spec) for asked in jobs), key=lambda row: f"numbers {row[0]}"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["r.sqlite"]


def test_without_a_store_and_with_one_worker() -> None:
    found = run([job("a", "remember", number=1), job("b", "remember", number=2)], workers=1)
    assert found["a"].value["pid"] == found["b"].value["pid"] != os.getpid()
    assert found["b"].value["seen"] == [1, 2]  # a module keeps what it knows from job to job


def test_a_rerun_does_only_what_is_missing(tmp_path: Path) -> None:
    marks, store = tmp_path / "marks", tmp_path / "r.sqlite"
    marks.mkdir()
    jobs = [job(name, "counted", folder=str(marks), name=name) for name in "abcde"]
    poor = job("poor", "raises", what="not applicable")
    first = run([jobs[0], jobs[1], poor, jobs[0]], store=store)
    assert sorted(first) == ["a", "b", "poor"]
    ended = list(run_jobs([*jobs, poor], store=store, workers=2))
    assert [finished.job.key for finished in ended[:3]] == ["a", "b", "poor"]  # from the store, first
    assert {finished.job.key for finished in ended} == {*"abcde", "poor"}
    assert {p.name: p.read_text() for p in marks.iterdir()} == dict.fromkeys("abcde", "x")
    assert ended[0] == first["a"]  # a stored result is as the fresh one was, NaN as None in both
    assert first["a"].value == {"name": "a", "nothing": None}
    assert ended[2] == first["poor"]


def test_what_failed_runs_again_unless_told_otherwise(tmp_path: Path) -> None:
    store, marker = tmp_path / "r.sqlite", tmp_path / "marker"
    once = job("once", "dies_once", marker=str(marker))
    assert run([once], store=store, attempts=1)["once"].status == "failed"
    kept = run([once], store=store, retry_failed=False)["once"]
    assert (kept.status, kept.reason) == (
        "failed",
        "killed (signal 9), most likely out of memory: fewer workers or a smaller batch",
    )
    again = run([once], store=store)["once"]
    assert (again.status, again.value, again.attempts, again.reason) == ("done", {"survived": True}, 1, "")
    assert run([once], store=store, retry_failed=False)["once"] == again


def test_a_killed_worker_is_replaced_and_its_job_done(tmp_path: Path) -> None:
    jobs = [job(f"n{seed}", "numbers", seed=seed) for seed in range(6)]
    jobs.insert(2, job("once", "dies_once", marker=str(tmp_path / "marker")))
    found = run(jobs, store=tmp_path / "r.sqlite")
    assert all(finished.status == "done" for finished in found.values())
    assert {key: finished.attempts for key, finished in found.items()} == {
        **{f"n{seed}": 1 for seed in range(6)},
        "once": 2,
    }
    assert found["once"].value == {"survived": True}


def test_a_poison_job_is_named_capped_and_marked_and_all_others_finish(tmp_path: Path) -> None:
    poison = {how: job(how, "dies", how=how) for how in ("kill", "crash", "exit")}
    jobs = [*poison.values(), *[job(f"n{seed}", "numbers", seed=seed) for seed in range(6)]]
    found = run(jobs, store=tmp_path / "r.sqlite")
    assert all(found[f"n{seed}"].value == toy_jobs.numbers(seed)[0] for seed in range(6))
    assert found["kill"].reason == (
        "killed each of 3 times (signal 9), most likely out of memory: fewer workers or a smaller batch"
    )
    assert found["crash"].reason == "ended its worker each of 3 times (signal 11): run this job alone to see why"
    assert found["exit"].reason == "ended its worker each of 3 times (exit code 7): run this job alone to see why"
    with ResultStore(tmp_path / "r.sqlite") as store:
        for how in poison:
            row = store.get(how)
            assert row is not None
            assert (found[how].status, found[how].attempts) == (row.status, row.attempts) == ("failed", 3)
            assert row.reason == found[how].reason
            assert row.name == f"dies {how}"


def test_what_a_job_raises_is_its_status(tmp_path: Path) -> None:
    jobs = [job(what, "raises", what=what) for what in ("not applicable", "ours", "zero", "exit")]
    jobs += [job(what, "returns", what=what) for what in ("list", "object", "pair")]
    jobs += [Job("gone", "gone", "tests.engine.absent:f", {}), Job("no", "no", "tests.engine.toy_jobs:absent", {})]
    found = run(jobs, store=tmp_path / "r.sqlite")
    said = {key: (finished.status, finished.reason) for key, finished in found.items()}
    call = "tests.engine.toy_jobs:returns returned"
    assert said == {
        "not applicable": ("not applicable", "one class alone; needs two"),
        "ours": ("failed", "photos/: no pictures"),
        "zero": ("failed", "ZeroDivisionError: integer division or modulo by zero"),
        "exit": ("failed", "SystemExit: 3"),
        "list": ("failed", f"TypeError: {call} list; expected a dict, or a dict and bytes"),
        "object": ("failed", "TypeError: Object of type object is not JSON serializable"),
        "pair": ("failed", f"TypeError: {call} tuple; expected a dict, or a dict and bytes"),
        "gone": ("failed", "ModuleNotFoundError: No module named 'tests.engine.absent'"),
        "no": ("failed", "AttributeError: module 'tests.engine.toy_jobs' has no attribute 'absent'"),
    }
    assert all(finished.attempts == 1 for finished in found.values())  # it would end the same way again


def test_jobs_that_cannot_be_asked_for_are_refused_before_anything_runs(tmp_path: Path) -> None:
    for call in ("module", "module:", ":f", "__main__:f", "module:a.b"):
        with pytest.raises(UsageError, match=r"job 'n': cannot call .* expected 'module:function'"):
            run_jobs([Job("k", "n", call, {})])
    with pytest.raises(UsageError, match="job 'numbers k': its spec must be plain values"):
        run_jobs([job("k", "numbers", seed=tmp_path)])
    with pytest.raises(UsageError, match="jobs 'numbers k' and 'numbers k' differ, but share the key 'k'"):
        run_jobs([job("k", "numbers", seed=1), job("k", "numbers", seed=2)])
    for wrong in ({"workers": 0}, {"threads": 0}, {"attempts": 0}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))}: 0; expected 1 or more"):
            run_jobs([], **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="engine 'dask': expected 'local' or 'ray'"):
        run_jobs([], engine="dask")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give engine 'ray' with it"):
        run_jobs([], address="127.0.0.1:1")
    assert list(run_jobs([])) == []


def test_workers_have_few_threads_and_the_surroundings_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = [job("a", "surroundings", variable="OFFSHELF_TOY"), job("b", "prints")]
    for threads, value in ((1, "one"), (2, "two")):
        monkeypatch.setenv("OFFSHELF_TOY", value)
        (tmp_path / value).mkdir()
        monkeypatch.chdir(tmp_path / value)
        found = run(asked, threads=threads, workers=1)
        expected = {"threads": threads, "pools": [threads], "variable": value, "folder": str(tmp_path / value)}
        assert found["a"].value == {**expected, "ignores": True}
    assert capfd.readouterr().out == ""  # standard output is for results


def test_a_store_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    store = tmp_path / "r.sqlite"
    jobs = [job(f"n{seed}", "numbers", seed=seed, size=100) for seed in range(50)]
    running = run_jobs(jobs, store=store, workers=1)
    next(running)
    for leftover in tmp_path.glob("r.sqlite*"):
        leftover.write_bytes(b"\x55" * 9000)
    with pytest.raises(RunError, match=r"r\.sqlite: "):
        list(running)


def _pids(folder: Path, count: int) -> list[int]:
    """Workers and their children, once all of them have said so."""
    while len(list(folder.glob("pids-?"))) < count:
        time.sleep(0.01)
    return [int(pid) for path in folder.glob("pids-?") for pid in path.read_text().split()]


def _gone(pids: list[int]) -> bool:
    """Wait for processes to go; a zombie of somebody else's counts as gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = []
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                left += [pid] if alive(pid) and state != "Z" else []
        if not left:
            return True
        time.sleep(0.02)
    return False


def test_closing_the_iterator_ends_all_workers_and_their_children(tmp_path: Path) -> None:
    sleepers = [job(f"s{number}", "sleeps_with_a_child", folder=str(tmp_path), number=number) for number in range(2)]
    jobs = [job("first", "numbers", seed=1), *sleepers]
    running = run_jobs(jobs, store=tmp_path / "r.sqlite", workers=2)
    assert next(running).job.key == "first"
    pids = _pids(tmp_path, 1)  # the second worker sleeps; the first has not been asked again yet
    assert all(alive(pid) for pid in pids)
    running.close()  # type: ignore[attr-defined]
    assert _gone(pids)
    with ResultStore(tmp_path / "r.sqlite") as store:
        assert [row.key for row in store.rows()] == ["first"]


SLEEPERS = """
import sys
from offshelf.engine.work import Job, run_jobs
folder = sys.argv[1]
jobs = [Job(f"s{n}", "s", "tests.engine.toy_jobs:sleeps_with_a_child", {"folder": folder, "number": n}) for n in (0, 1)]
jobs.insert(0, Job("n", "n", "tests.engine.toy_jobs:counted", {"folder": folder, "name": "ran"}))
for finished in run_jobs(jobs, store=folder + "/r.sqlite", workers=2, preload=()):
    print(finished.job.key, flush=True)
"""


def _children(pid: int) -> list[int]:
    """A process's descendants."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found += [int(path.parent.name), *_children(int(path.parent.name))]
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_parent_goes_nobody_stays(tmp_path: Path, how: signal.Signals) -> None:
    with (tmp_path / "said").open("w") as said:
        parent = subprocess.Popen(
            [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler){SLEEPERS}", tmp_path],
            cwd=PROJECT,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        pids = _pids(tmp_path, 2)
        everyone = _children(parent.pid)
        assert set(pids) <= set(everyone)  # workers, their children, the server and its tracker
        parent.send_signal(how)
        out, _ = parent.communicate(timeout=60)  # ends when the last of them lets go of the pipe
    assert out == "n\n"
    assert _gone(everyone)
    assert ("KeyboardInterrupt" in (tmp_path / "said").read_text()) == (how == signal.SIGINT)
    with ResultStore(tmp_path / "r.sqlite") as store:
        assert [row.key for row in store.rows()] == ["n"]


def test_an_iterator_that_nobody_closes_does_not_keep_the_program_from_ending(tmp_path: Path) -> None:
    code = SLEEPERS.replace("for finished in run_jobs", "kept = run_jobs").replace(
        "preload=()):\n    print(finished.job.key, flush=True)", "preload=())\nprint(next(kept).job.key, flush=True)"
    )
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, cwd=PROJECT, env=_environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "n\n"), done.stderr


MAIN = """
print("main runs")
from offshelf.engine.work import Job, run_jobs
jobs = [Job(str(n), "n", "tests.engine.toy_jobs:loaded", {"module": "sklearn"}) for n in range(2)]
for finished in run_jobs(jobs, workers=2, preload=("sklearn", "a_module_that_is_not_there")):
    print(finished.status, finished.value, finished.reason)
"""


@pytest.mark.parametrize("main", ["script", "module", "stdin"])
def test_any_main_script_will_do(tmp_path: Path, main: str) -> None:
    (tmp_path / "toymain").mkdir()
    (tmp_path / "toymain" / "__main__.py").write_text(MAIN)
    (tmp_path / "script").write_text(MAIN)  # like a console script: no ending; unlike most: no guard
    ways = {"script": [str(tmp_path / "script")], "module": ["-m", "toymain"], "stdin": ["-i", "-q"]}
    environment = _environment(tmp_path)
    # an interactive session wants an empty line after a block
    done = subprocess.run(
        [sys.executable, *ways[main]],
        cwd=tmp_path,
        env=environment,
        input=MAIN + "\n" if main == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["main runs", *["done {'loaded': True, 'main': None} "] * 2], done.stderr


def _environment(*more: Path) -> dict[str, str]:
    path = os.pathsep.join(str(folder) for folder in (PROJECT / "src", PROJECT, *more))
    return {**os.environ, "PYTHONPATH": path}
