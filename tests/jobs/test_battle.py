"""`offshelf battle` as a user runs it: good input, killed and gone on with, and broken input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from offshelf import cli
from offshelf.engine.store import ResultStore
from offshelf.errors import BackboneError, DataError, UsageError
from offshelf.jobs.battle import Battled, battle
from offshelf.jobs.common import Common
from tests.conftest import write_folder

QUIET = Common(quiet=True)
BACKBONES = ["test_resnet.random", "test_byobnet.offshelf_finetune_cifar10"]
SMALL = {"backbones": BACKBONES, "input_size": 32, "seeds": 1, "common": QUIET}


@pytest.fixture(scope="module")
def fought(tmp_path_factory: pytest.TempPathFactory) -> Battled:
    root = tmp_path_factory.mktemp("battle")
    patch = pytest.MonkeyPatch()
    patch.setenv("OFFSHELF_CACHE", str(root / "cache"))
    write_folder(root / "a" / "shapes", 12)
    write_folder(root / "b" / "shapes", 14)
    yield battle(
        [str(root / "a" / "shapes"), str(root / "b" / "shapes")],
        protocols=["linear", "retrieval"],
        out=root / "run",
        **SMALL,
    )
    patch.undo()


def test_a_run_holds_everything_and_is_sealed(fought: Battled) -> None:
    record = json.loads((fought.folder / "run.json").read_text())
    assert record["status"] == "complete"
    files = {"results.json", "results.sqlite", "report.html", "leaderboard.csv", "cells.parquet"}
    assert files == set(record["files"])
    results = json.loads((fought.folder / "results.json").read_text())
    names = [one["name"] for one in results["data"]["sets"]]
    assert len(set(names)) == 2  # both folders are called shapes; their paths tell them apart
    assert all(name.endswith("shapes") for name in names)
    assert {one["backbone"] for one in results["standing"]["overall"]} == set(BACKBONES)
    assert results["cost"]["cells"] == results["cost"]["computed"] == 8
    assert results["cost"]["total_seconds"] > 0
    with (fought.folder / "leaderboard.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["data"] != "all"]
    cells = {(cell["backbone"], cell["setting"]): cell["value"] for cell in results["cells"]}
    assert len(rows) == len(cells) == 8
    assert sorted(float(row["value"]) for row in rows) == pytest.approx(sorted(cells.values()))


def test_every_single_measurement_is_a_row(fought: Battled) -> None:
    rows = pq.read_table(fought.folder / "cells.parquet").to_pylist()
    assert len(rows) == len({row["key"] for row in rows}) == 8
    cells = {(cell["backbone"], cell["setting"]): cell for cell in fought.results["cells"]}
    for row in rows:
        assert row["value"] == cells[row["backbone"], row["setting"]]["by_seed"][row["seed"]]
    linear = next(row for row in rows if row["protocol"] == "linear/v1")
    assert len(json.loads(linear["chosen"])) == 5  # what each fold chose


def test_more_backbones_are_added_to_a_finished_run(
    fought: Battled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("OFFSHELF_CACHE", str(fought.folder.parent / "cache"))
    folder = tmp_path / "run"
    shutil.copytree(fought.folder, folder)
    sets = [one["source"] for one in fought.results["data"]["sets"]]
    same = {"protocols": ["linear", "retrieval"], "out": folder, "resume": True}
    more = battle(sets, **(SMALL | same | {"backbones": [*BACKBONES, "test_vit.random"]}))
    assert (more.results["cost"]["computed"], more.results["cost"]["reused"]) == (4, 8)
    before = {(c["backbone"], c["setting"]): c["value"] for c in fought.results["cells"]}
    after = {(c["backbone"], c["setting"]): c["value"] for c in more.results["cells"]}
    assert {key: after[key] for key in before} == before
    assert len(after) == 12
    with pytest.raises(UsageError, match="complete run"):
        battle(sets, **(SMALL | {"out": folder}))


@pytest.mark.slow
def test_killed_in_the_middle_and_gone_on_with(tmp_path: Path) -> None:
    """kill -9 of the verb loses no finished cell; the same command ends with the same numbers."""
    write_folder(tmp_path / "shapes", 30)
    words = ["battle", "shapes", "--backbones", *BACKBONES, "--protocols", "linear", "knn", "retrieval", "robustness"]
    words += ["--input-size", "32", "--seeds", "3", "--workers", "1", "--quiet"]
    environment = os.environ | {"OFFSHELF_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "offshelf.cli", *words]
    started = subprocess.Popen([*command, "--out", "killed"], cwd=tmp_path, env=environment)
    store = tmp_path / "killed" / "results.sqlite"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if store.is_file() and len(done(store)) >= 3:
            break
        time.sleep(0.1)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    kept = done(store)
    assert len(kept) >= 3
    for out in ("killed", "whole"):
        subprocess.run([*command, "--out", out], cwd=tmp_path, env=environment, check=True, timeout=300)
    one, other = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("killed", "whole"))
    assert [c["value"] for c in one["cells"]] == [c["value"] for c in other["cells"]]
    assert one["standing"] == other["standing"]
    assert one["cost"]["reused"] >= len([kind for kind in kept if not kind.startswith("cost")])


def done(store: Path) -> list[str]:
    with ResultStore(store) as results:
        return [row.kind for row in results.rows() if row.status == "done"]


def test_the_command_prints_the_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "shapes", 12)
    words = [
        "battle",
        str(folder),
        "--backbones",
        *BACKBONES,
        "--protocols",
        "knn",
        "--input-size",
        "32",
        "--seeds",
        "1",
    ]
    assert cli.run([*words, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert "test_byobnet.offshelf_finetune_cifar10" in printed.out
    assert "report:" in printed.out
    assert cli.run([*words, "--out", str(tmp_path / "run"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["computed"] == 0


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"backbones": ["test_resnet.random"]}, UsageError, "at least 2"),
        ({"backbones": [BACKBONES[0], "test_resnt.random"]}, BackboneError, "test_resnet"),
        ({"protocols": ["linnear"]}, UsageError, "did you mean 'linear'"),
        ({"labels": ["0%"]}, UsageError, "0%"),
        ({"seeds": 0}, UsageError, "--seeds 0"),
        ({"resume": True, "overwrite": True}, UsageError, "contradict"),
        ({"resume": True}, UsageError, "no run to --resume"),
        ({"address": "127.0.0.1:9"}, UsageError, "ray"),
        ({"label_column": "a", "label_columns": ["b"]}, UsageError, "one of the two"),
    ],
)
def test_wrong_usage_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, object], error: type[Exception], said: str
) -> None:
    folder = write_folder(tmp_path / "shapes", 4)
    with pytest.raises(error, match=said):
        battle([str(folder)], **(SMALL | {"out": tmp_path / "run"} | change))  # type: ignore[arg-type]
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        battle([str(tmp_path / "nowhere")], **(SMALL | {"out": tmp_path / "run"}))


def test_two_runs_never_write_one_folder(tmp_path: Path) -> None:
    folder, run = write_folder(tmp_path / "shapes", 4), tmp_path / "run"
    run.mkdir()
    busy = {"format": 1, "verb": "battle", "status": "running", "process": os.getppid(), "started": "now"}
    (run / "run.json").write_text(json.dumps(busy))
    with pytest.raises(UsageError, match=f"process {os.getppid()} has been writing this run"):
        battle([str(folder)], **(SMALL | {"out": run}))


def test_a_ray_address_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folder = write_folder(tmp_path / "shapes", 4)
    with pytest.raises(UsageError, match="127.0.0.1:9"):
        battle([str(folder)], **(SMALL | {"out": tmp_path / "run", "engine": "ray", "address": "127.0.0.1:9"}))
