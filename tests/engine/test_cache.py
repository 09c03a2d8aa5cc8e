from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from offshelf.engine.cache import FeatureCache
from offshelf.engine.files import TEMPORARY
from offshelf.errors import RunError


def keys(n: int, start: int = 0) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(start, start + n)]


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = FeatureCache({"weights": "a"}, 3, tmp_path)
    cache.put(keys(2), np.array([[1, 2, 3], [4, 5, 6.0]]))
    cache.put(keys(1, 2), np.array([[7, 8, 9.0]]))
    out = np.zeros((3, 5), np.float32)
    cache.get([keys(3)[2], keys(3)[0], keys(3)[2]], out, slice(1, 4))
    assert out.tolist() == [[0, 7, 8, 9, 0], [0, 1, 2, 3, 0], [0, 7, 8, 9, 0]]
    assert keys(4)[3] not in cache
    with pytest.raises(KeyError):
        cache.get([keys(4)[3]], out[:1], slice(0, 3))


def test_another_space_or_version_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FeatureCache({"weights": "a"}, 1, tmp_path).put(keys(1), np.ones((1, 1)))
    assert len(FeatureCache({"weights": "a"}, 1, tmp_path)) == 1
    assert len(FeatureCache({"weights": "b"}, 1, tmp_path)) == 0
    assert len(FeatureCache({"weights": "a"}, 2, tmp_path)) == 0
    monkeypatch.setattr("offshelf.engine.cache.VERSION", "v2")
    assert len(FeatureCache({"weights": "a"}, 1, tmp_path)) == 0


def test_a_space_folder_that_describes_something_else_is_refused(tmp_path: Path) -> None:
    cache = FeatureCache({"weights": "a"}, 1, tmp_path)
    (cache.folder / "space.json").write_text('{"weights": "b", "width": 1}')
    with pytest.raises(RunError, match="describes other features"):
        FeatureCache({"weights": "a"}, 1, tmp_path)


def test_a_half_written_shard_is_set_aside_and_the_rest_is_kept(tmp_path: Path) -> None:
    cache = FeatureCache({"weights": "a"}, 4, tmp_path)
    cache.put(keys(3), np.ones((3, 4)))
    first = next(cache.folder.glob("*.safetensors"))
    cache.put(keys(3, 3), np.full((3, 4), 2.0))
    first.write_bytes(first.read_bytes()[:60])
    (cache.folder / f".x.safetensors{TEMPORARY}999999999-aa").write_bytes(b"half")
    again = FeatureCache({"weights": "a"}, 4, tmp_path)
    assert [k in again for k in keys(6)] == [False] * 3 + [True] * 3
    assert [p.suffix for p in again.damaged] == [".damaged"]
    again.put(keys(3), np.ones((3, 4)))
    assert len(FeatureCache({"weights": "a"}, 4, tmp_path)) == 6
    assert not list(cache.folder.glob(f".*{TEMPORARY}*"))


def _fill(root: Path, start: int, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    cache = FeatureCache({"weights": "a"}, 2, root)
    for i in range(start, start + 40):
        cache.put(keys(1, i), np.full((1, 2), i))


def test_two_processes_fill_one_space_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_fill, args=(tmp_path, start, barrier)) for start in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    cache = FeatureCache({"weights": "a"}, 2, tmp_path)
    out = np.zeros((60, 2), np.float32)
    cache.get(keys(60), out)
    assert out[:, 0].tolist() == list(range(60))
    assert not cache.damaged


def _put_until_full(root: Path, outcome: Path) -> None:
    cache = FeatureCache({"weights": "a"}, 100, root)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        cache.put(keys(50, 1), np.ones((50, 100)))
    except RunError as error:
        os.write(os.open(outcome, os.O_CREAT | os.O_WRONLY), str(error).encode()[:900])


def test_a_full_disk_is_said_and_earlier_shards_stay_good(tmp_path: Path) -> None:
    FeatureCache({"weights": "a"}, 100, tmp_path).put(keys(1), np.ones((1, 100)))
    worker = multiprocessing.get_context("fork").Process(target=_put_until_full, args=(tmp_path, tmp_path / "outcome"))
    worker.start()
    worker.join(30)
    assert "the disk is full" in (tmp_path / "outcome").read_text()
    cache = FeatureCache({"weights": "a"}, 100, tmp_path)
    assert len(cache) == 1
    assert not cache.damaged
