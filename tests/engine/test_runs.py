from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from offshelf.engine.files import write_atomic, write_json
from offshelf.engine.runs import Run, new_run_folder
from offshelf.errors import RunError, UsageError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = Run.create(tmp_path / "run", "fit", {"data": "x"}, seed=3)
    write_json(made.folder / "results.json", {"accuracy": 0.5})
    write_atomic(made.folder / "model" / "model.safetensors", b"weights")
    made.finish()
    return made.folder


def test_a_finished_run_seals_every_file(run: Path) -> None:
    record = Run.open(run).record
    assert record["status"] == "complete"
    assert set(record["files"]) == {"results.json", "model/model.safetensors"}
    assert record["seed"] == 3
    assert record["versions"]["torch"]
    assert "process" not in record


def test_changed_numbers_are_caught_by_their_hash(run: Path) -> None:
    path = run / "results.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(RunError, match=r"results\.json: changed since the run was written"):
        Run.open(run)


def test_a_missing_file_is_named(run: Path) -> None:
    (run / "model" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model\.safetensors: sealed in run\.json, but missing"):
        Run.open(run)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "head.pkl", "model.pt", "head"])
def test_a_pickle_has_no_place_in_a_run(run: Path, name: str) -> None:
    (run / "model" / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RunError, match="has no place in a run"):
        Run.open(run)


def test_unfinished_foreign_and_absent_runs_are_told_apart(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        Run.open(tmp_path)
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", record | {"status": "running"})
    with pytest.raises(RunError, match="the run is running, not complete"):
        Run.open(run)
    write_json(run / "run.json", record | {"format": 99})
    with pytest.raises(RunError, match="run format 99, expected 1"):
        Run.open(run)


def test_nothing_that_is_there_is_overwritten_unasked(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="holds a complete run"):
        Run.create(run, "fit", {}, 0)
    with pytest.raises(UsageError, match="holds a run of `offshelf fit`"):
        Run.create(run, "finetune", {}, 0, overwrite=True)
    Run.create(run, "fit", {}, 0, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UsageError, match="files that are not a run"):
        Run.create(tmp_path / "photos", "fit", {}, 0, overwrite=True)


def test_run_folders_get_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [new_run_folder("fit", "some/my photos.csv").as_posix() for _ in range(2)]
    assert made == ["runs/fit-my-photos", "runs/fit-my-photos-2"]


def test_a_run_that_another_process_writes_is_left_alone(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", record | {"status": "running", "process": 1, "started": "then"})
    with pytest.raises(UsageError, match="process 1 has been writing this run since then"):
        Run.create(run, "fit", {}, 0, overwrite=True)
    write_json(run / "run.json", record | {"status": "running", "process": 999999999})
    Run.create(run, "fit", {}, 0)  # its writer is dead: the same command goes on


def test_overwriting_removes_the_old_model(run: Path) -> None:
    Run.create(run, "fit", {}, 0, overwrite=True)
    assert not (run / "model" / "model.safetensors").exists()


def test_a_complete_run_can_be_reopened_and_keeps_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, "battle", {}, 0)
    (folder / "results.sqlite").write_bytes(b"kept")
    run.finish()
    with pytest.raises(UsageError, match="a run of `offshelf battle`, not of fit"):
        Run.reopen(folder, "fit")
    assert Run.open(folder).record["status"] == "complete"
    Run.reopen(folder, "battle")
    again = Run.create(folder, "battle", {}, 0)
    assert (folder / "results.sqlite").read_bytes() == b"kept"
    again.finish()
    assert Run.open(folder).record["files"].keys() == {"results.sqlite"}
