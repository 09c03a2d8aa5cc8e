from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from offshelf.engine.runs import Run
from offshelf.engine.store import APPLICATION, ResultStore
from offshelf.errors import RunError

FORK = multiprocessing.get_context("fork")


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    numbers = np.array([0.5, -1.25, 3e-8], dtype="<f4")
    with ResultStore(tmp_path / "new" / "results.sqlite") as store:
        assert store.put(
            "k1",
            name="vit on digits",
            kind="linear/v1",
            spec={"grid": (2, 2), "seed": 3},
            status="done",
            value={"accuracy": np.float64(0.75), "auc": float("nan"), "classes": ["Ärmel", "b"]},
            blob=numbers.tobytes(),
            attempts=2,
            seconds=1.5,
        )
        assert store.put("k2", name="other", kind="knn/v1", status="not applicable", reason="One class alone.")
    with ResultStore(tmp_path / "new" / "results.sqlite") as store:
        row = store.get("k1")
        assert row is not None
        assert row.value == {"accuracy": 0.75, "auc": None, "classes": ["Ärmel", "b"]}
        assert row.spec == {"grid": [2, 2], "seed": 3}
        assert np.array_equal(np.frombuffer(row.blob or b"", "<f4"), numbers)
        assert (row.name, row.kind, row.status, row.attempts, row.seconds) == (
            *("vit on digits", "linear/v1", "done"),
            *(2, 1.5),
        )
        assert store.get("absent") is None
        assert store.kinds() == ["knn/v1", "linear/v1"]
        assert [row.key for row in store.rows()] == ["k2", "k1"]
        assert [(row.key, row.blob, row.reason) for row in store.rows("knn/v1")] == [("k2", None, "One class alone.")]
        assert store.done(["k1", "k2", "absent"]) == {"k1", "k2"}


def test_only_what_failed_gives_way(tmp_path: Path) -> None:
    with ResultStore(tmp_path / "r.sqlite") as store:
        assert store.put("k", name="job", status="failed", reason="first")
        assert store.put("k", name="job", status="failed", reason="second", attempts=3)
        again = store.get("k")
        assert again is not None and (again.reason, again.attempts) == ("second", 3)
        assert store.done(["k"]) == set()
        assert store.put("k", name="job", status="done", value={"n": 1})
        assert not store.put("k", name="job", status="done", value={"n": 2})
        assert not store.put("k", name="job", status="failed", reason="late")
        row = store.get("k")
        assert row is not None and (row.status, row.value, row.reason) == ("done", {"n": 1}, "")
        assert store.put("n", name="job", status="not applicable")
        assert not store.put("n", name="job", status="done")


def _write_for_ever(path: Path, writer: int, start: int, acknowledged: Path) -> None:
    log = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = ResultStore(path)
    for number in range(start, 10**9):
        key = f"{writer}-{number}"
        store.put(key, name=key, status="done", value={"n": number}, blob=b"x" * 400)
        os.write(log, f"{key}\n".encode())


def test_no_acknowledged_row_is_lost_to_kills(tmp_path: Path) -> None:
    path, dice = tmp_path / "r.sqlite", random.Random(0)

    def start(writer: int, first: int) -> multiprocessing.Process:
        process = FORK.Process(target=_write_for_ever, args=(path, writer, first, tmp_path / f"acknowledged-{writer}"))
        process.start()
        return process

    writers = [start(number, 0) for number in range(3)]
    kills = 0
    for kills in range(1, 31):
        time.sleep(dice.uniform(0.01, 0.08))
        victim = dice.randrange(3)
        os.kill(writers[victim].pid or 0, signal.SIGKILL)
        writers[victim].join()
        writers[victim] = start(victim, kills * 10**6)
    while any(not (tmp_path / f"acknowledged-{number}").exists() for number in range(3)):
        time.sleep(0.01)  # on a busy machine a writer may not have begun
    for writer in writers:
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
    said = [(tmp_path / f"acknowledged-{number}").read_text().splitlines() for number in range(3)]
    promised = {key for lines in said for key in lines}
    assert kills == 30
    assert len(promised) > 30
    with ResultStore(path) as store:
        rows = {row.key: row for row in store.rows()}
        assert promised <= set(rows)
        assert len(rows) - len(promised) <= kills + 3  # at most the row in hand of each that was killed
        assert all(row.value["n"] == int(key.split("-")[1]) and row.blob == b"x" * 400 for key, row in rows.items())
    assert sqlite3.connect(path).execute("pragma integrity_check").fetchone() == ("ok",)


def _fill_under_a_limit(path: Path, outcome: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = ResultStore(path)
    store.put("before", name="before", status="done")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    kept = 0
    try:
        while True:
            store.put(str(kept), name="n", status="done", blob=b"x" * 2000)
            kept += 1
    except RunError as error:
        outcome.write_text(f"{kept} {error}"[:900])
    os._exit(0)  # no tidy end


def test_a_full_disk_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    process = FORK.Process(target=_fill_under_a_limit, args=(path, tmp_path / "outcome"))
    process.start()
    process.join(60)
    kept, said = (tmp_path / "outcome").read_text().split(" ", 1)
    assert "r.sqlite: the disk is full (" in said
    assert "bytes free" in said
    assert int(kept) > 5
    with ResultStore(path) as store:
        assert {row.key for row in store.rows()} == {"before", *map(str, range(int(kept)))}
        assert store.put("after", name="after", status="done")


def test_sqlites_own_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    with ResultStore(tmp_path / "r.sqlite") as store:
        store.put("k", name="k", status="done")
        store._database.execute("pragma max_page_count = 4")  # SQLITE_FULL, as a full disk gives it
        with pytest.raises(RunError, match=r"r\.sqlite: the disk is full \([\d,]+ bytes free"):
            store.put("big", name="big", status="done", blob=b"x" * 100_000)
        assert store.get("big") is None
        assert store.get("k") is not None


def test_reading_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    writer = FORK.Process(target=_write_for_ever, args=(path, 0, 0, tmp_path / "acknowledged"))
    writer.start()
    try:
        with ResultStore(path) as store:
            seen = [len(store.rows())]
            while seen[-1] < 200:
                seen.append(len(store.rows()))
                log = tmp_path / "acknowledged"
                promised = len(log.read_text().splitlines()) if log.exists() else 0
                assert len(store.done([f"0-{number}" for number in range(promised)])) == promised
        assert seen == sorted(seen)
    finally:
        writer.kill()
        writer.join()


def test_a_closed_store_is_one_file_that_reading_does_not_change(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "fit", {}, 0)
    path = tmp_path / "results.sqlite"
    with ResultStore(path) as store:
        store.put("k", name="k", status="done")
        assert (tmp_path / "results.sqlite-wal").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.sqlite", "run.json"]
    run.finish()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with ResultStore(path) as store:
        assert [row.key for row in store.rows()] == ["k"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["results.sqlite", "run.json"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    Run.open(tmp_path)
    copied = tmp_path / "copy.sqlite"
    copied.write_bytes(path.read_bytes())
    with ResultStore(copied) as store:
        assert store.done(["k"]) == {"k"}


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.sqlite"
    text.write_text("no database at all, but longer than a header of SQLite" * 40)
    with pytest.raises(RunError, match=r"notes\.sqlite: not a database of results; nothing was touched"):
        ResultStore(text)
    assert text.read_text().startswith("no database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("create table results (key)")
    with pytest.raises(RunError, match=r"other\.sqlite: a database, but not one of results"):
        ResultStore(other)
    later = tmp_path / "later.sqlite"
    with sqlite3.connect(later) as database:
        database.execute("create table results (key)")
        database.execute(f"pragma application_id = {APPLICATION}")
        database.execute("pragma user_version = 2")
    with pytest.raises(RunError, match=r"later\.sqlite: results in format 2, expected 1\. Use the offshelf that wrote"):
        ResultStore(later)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="its folder cannot be made"):
        ResultStore(tmp_path / "file" / "r.sqlite")
    with pytest.raises(RunError, match="Check that the file and its folder can be read and written"):
        ResultStore(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResultStore(path) as store:
        for number in range(200):
            store.put(str(number), name="n", status="done", blob=b"x" * 500)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"r\.sqlite: the file is damaged .*run the jobs again"), ResultStore(path) as s:
        s.rows()
