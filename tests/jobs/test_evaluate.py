from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from offshelf import cli
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, RunError, UsageError
from offshelf.evaluate.labelled import matched
from offshelf.evaluate.multilabel_imagenet import MultiLabelReport
from offshelf.jobs.common import Common
from offshelf.jobs.evaluate import evaluate
from offshelf.jobs.finetune import finetune
from offshelf.jobs.fit import fit
from tests.conftest import draw, write_folder

QUIET = Common(quiet=True)
NAMES = ("across", "down", "disc")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted run over 3 x 12 pictures."""
    root = tmp_path_factory.mktemp("evaluate")
    data = write_folder(root / "data")
    fit(str(data), backbones=["test_resnet.random"], input_size=32, heads=["logistic"], control="none",
        out=root / "run", common=QUIET)  # fmt: skip
    return root / "run"


def new_folder(root: Path, names: tuple[str, ...] = NAMES, per_class: int = 8, first: int = 100) -> Path:
    """Class folders of pictures that the run has not seen."""
    for kind, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(draw(kind % 3, first + number)).save(root / name / f"{number:02d}.png")
    return root


def new_table(root: Path, rows: int, several: float, seed: int, first: int = 100) -> Path:
    """A manifest of pictures with one label, their set of valid ones (two halves side by side), and a patient."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    lines = []
    for number in range(rows):
        kinds = random.permutation(3)[: 1 + (number < several * rows)].tolist()
        picture = draw(kinds[0], first + number)
        if len(kinds) == 2:
            picture[:, 24:] = draw(kinds[1], first + number)[:, 24:]
        Image.fromarray(picture).save(root / f"{number:03d}.png")
        valid = [NAMES[kind] for kind in kinds]
        one = {"path": f"{number:03d}.png", "label": valid[number % len(valid)], "valid": "|".join(valid)}
        lines.append(one | {"patient": f"p{number // 2}"} | {name: int(name in valid) for name in NAMES})
    with (root / "table.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return root / "table.csv"


def test_new_pictures_are_measured_as_they_are_answered(run: Path, tmp_path: Path) -> None:
    data = new_folder(tmp_path / "new")
    found = evaluate(run, [str(data)], out=tmp_path / "out", common=QUIET)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    truth, said = [row["label"] for row in table], [row["predicted"] for row in table]
    assert [row["id"].split("/")[0] for row in table] == truth and len(truth) == 24
    score = found.results["metrics"]["balanced_accuracy"]
    assert score["value"] == pytest.approx(balanced_accuracy_score(truth, said))
    assert score["low"] <= score["value"] <= score["high"] and score["n"] == 24
    assert found.results["baselines"] == {"chance": pytest.approx(1 / 3), "majority": pytest.approx(1 / 3),
                                          "majority_class": "across"}  # fmt: skip
    assert np.trace(found.results["confusion"]) == sum(a == b for a, b in zip(truth, said))
    assert found.results["protocol"]["label"] == "evaluation/v1"
    own = json.loads((run / "results.json").read_text())["arms"][0]["metrics"]["balanced_accuracy"]["value"]
    assert f"On the pictures that the run itself was tested on: {own:.3f}" in " ".join(found.results["verdict"])
    assert found.exit_code == 0 and "byte for byte" not in " ".join(found.results["verdict"])
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "complete"
    page = found.report.read_text(encoding="utf-8")
    assert f"{score['value']:.3f}" in page and "Confusion matrix" in page and "disc" in page


def test_classes_are_matched_by_name(run: Path, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "new")
    (folder / "across").rename(folder / "zz")
    with pytest.raises(DataError, match=r"the run does not know the class 'zz'. It knows across, disc, down"):
        evaluate(run, [str(folder)], out=tmp_path / "a", common=QUIET)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "failed"
    (folder / "zz").rename(folder / "dics")
    with pytest.raises(DataError, match=r"'dics'; did you mean 'disc'\?"):
        evaluate(run, [str(folder)], out=tmp_path / "b", common=QUIET)
    two = new_folder(tmp_path / "two", ("down", "across"))  # discs are absent; 'down' shows stripes across
    found = evaluate(run, [str(two)], out=tmp_path / "c", common=QUIET)
    assert found.results["baselines"]["chance"] == 0.5
    assert "No picture of disc." in found.results["verdict"]
    assert found.results["metrics"]["accuracy"]["value"] < 0.5  # named the wrong way round
    assert matched(["b", "never", "a"], np.array([0, 2]), ["a", "b"], "x").tolist() == [1, -1, 0]


def test_several_sources_are_one_and_their_groups_stay_apart(run: Path, tmp_path: Path) -> None:
    a, b = (str(new_table(tmp_path / name, 20, 0, seed, 100 * seed)) for name, seed in (("a", 1), ("b", 2)))
    found = evaluate(run, [a, b], group_column="patient", out=tmp_path / "out", common=QUIET).results
    assert (found["data"]["n"], found["data"]["groups"]) == (40, 20)  # ten patients in each, of equal names
    assert found["metrics"]["accuracy"]["n"] == 40
    assert sum(found["data"]["class_counts"].values()) == 40


def test_sets_of_valid_labels(run: Path, tmp_path: Path) -> None:
    table = new_table(tmp_path / "a", 60, 0.6, 1)
    found = evaluate(
        run, [str(table)], multilabel=["valid"], label_separator="|", n_min=5, out=tmp_path / "out", common=QUIET
    )
    told = {(row["metric"], row["k"]): row for row in found.results["multilabel"]["rows"]}
    assert found.results["multilabel"]["label_counts"] == {"1": 24, "2": 36}
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    order = ["across", "disc", "down"]
    scores = np.array([[row[f"p_{name}"] for name in order] for row in rows])
    sets = [[order.index(name) for name in row["labels"]] for row in rows]
    again = MultiLabelReport(scores, sets, [order.index(row["label"]) for row in rows], n_min=5, n_boot=2)
    for row in again.rows:
        assert told[row["metric"], row["k"]]["value"] == pytest.approx(row["value"]), row
    with table.open() as handle:
        written = list(csv.DictReader(handle))
    assert [set(row["labels"]) for row in rows] == [set(line["valid"].split("|")) for line in written]
    assert [row["label"] for row in rows] == [line["label"] for line in written]
    hot = evaluate(run, [str(table)], multilabel=list(NAMES), n_min=5, out=tmp_path / "hot", common=QUIET)
    assert hot.results["multilabel"] == found.results["multilabel"]  # written in another way, and the same
    page = found.report.read_text(encoding="utf-8")
    assert "Variable top-k" in page and "2 valid labels, n = 36" in page and "The drop" not in page


def test_a_data_set_with_lists_has_no_one_label(run: Path, tmp_path: Path) -> None:
    table = new_table(tmp_path / "a", 30, 0.5, 1)
    lists = open_dataset(str(table), label_column="valid", label_separator="|").remove_columns(list(NAMES))
    with pytest.raises(DataError, match="several labels a picture. Name their column with --multilabel"):
        evaluate(run, [lists], out=tmp_path / "a1", common=QUIET)
    found = evaluate(run, [lists], multilabel=["labels"], out=tmp_path / "a2", common=QUIET)
    cells = {row["metric"]: row for row in found.results["multilabel"]["rows"] if row["k"] is None}
    assert cells["top_1"]["value"] is None and cells["real"]["value"] > 0
    assert "there is no one label for top-1" in found.results["verdict"][0]
    assert "Top-1" not in found.report.read_text(encoding="utf-8")


def test_a_drop_is_split_into_composition_and_the_rest(run: Path, tmp_path: Path) -> None:
    p, q = new_table(tmp_path / "p", 60, 0.1, 1), new_table(tmp_path / "q", 60, 0.8, 2, 300)
    arguments = ["evaluate", str(run), str(p), "--multilabel", "valid", "--label-separator", "|", "--against", str(q),
                 "--group-column", "patient", "--n-min", "5", "--out", str(tmp_path / "out"), "--quiet"]  # fmt: skip
    assert cli.run(arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    split = results["against"]["decomposition"]["top_1"]
    values = [
        next(row["value"] for row in one["rows"] if (row["metric"], row["k"]) == ("top_1", None))
        for one in (results["multilabel"], results["against"]["multilabel"])
    ]
    assert split["drop"]["value"] == pytest.approx(values[0] - values[1], abs=1e-12)
    assert split["composition"]["value"] + split["within"]["value"] == pytest.approx(split["drop"]["value"], abs=1e-12)
    assert [round(group["share_q"], 3) for group in split["groups"]] == [0.2, 0.8]
    assert results["data"]["groups"] == 30 and results["protocol"]["label"] == "label-sets/v1"
    assert {row["data"] for row in pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()} == {
        str(p), str(q)
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What the drop is made of" in page and f"{abs(split['composition']['value']):.3f}" in page


def test_pictures_that_cannot_be_used_are_counted(run: Path, tmp_path: Path) -> None:
    table = new_table(tmp_path / "a", 20, 0.5, 1)
    (tmp_path / "a" / "003.png").write_bytes(b"no picture")
    lines = table.read_text().splitlines()
    cells = lines[6].split(",")  # the sixth picture does not say what is valid
    lines[6] = ",".join([*cells[:2], "", *cells[3:]])
    cells = lines[7].split(",")  # and the seventh has none
    lines[7] = ",".join([*cells[:2], "none", *cells[3:]])
    table.write_text("\n".join(lines) + "\n")
    found = evaluate(
        run, [str(table)], multilabel=["valid"], label_separator="|", n_min=2, out=tmp_path / "out", common=QUIET
    )
    data = found.results["data"]
    assert (data["n"], data["n_used"], data["unlabelled"], len(data["bad_files"])) == (20, 18, 1, 1)
    assert found.results["multilabel"]["empty"] == 1 and found.results["multilabel"]["n"] == 17
    assert found.exit_code == 3
    assert "1 pictures have no valid label at all and count nowhere." in found.results["verdict"]
    with pytest.raises(DataError, match="--strict was asked for"):
        evaluate(run, [str(table)], strict=True, out=tmp_path / "strict", common=QUIET)


def test_the_pictures_of_the_run_itself_are_recognised(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, [str(run.parent / "data")], out=tmp_path / "out", common=QUIET)
    assert "byte for byte" in " ".join(found.results["verdict"])
    assert found.results["metrics"]["accuracy"]["value"] > 0.9


def test_a_finetuned_run_is_taken_and_one_of_several_labels_is_not(tmp_path: Path) -> None:
    table = new_table(tmp_path / "a", 40, 0.5, 1)
    settings: dict[str, Any] = {
        "backbone": "test_resnet.random",
        "epochs": 1,
        "image_size": 32,
        "batch_size": 8,
        "common": QUIET,
    }
    finetune(str(table), out=tmp_path / "one", **settings)
    found = evaluate(tmp_path / "one", [str(new_folder(tmp_path / "new"))], out=tmp_path / "out", common=QUIET)
    assert found.results["metrics"]["accuracy"]["n"] == 24
    assert found.results["evaluated"]["arm"].startswith("test_resnet")
    finetune(str(table), label_columns=list(NAMES), out=tmp_path / "several", **settings)
    with pytest.raises(UsageError, match="this run answers every label by itself"):
        evaluate(tmp_path / "several", [str(table)], out=tmp_path / "x", common=QUIET)


def test_a_run_must_be_a_finished_one_with_a_classifier(run: Path, tmp_path: Path) -> None:
    data = str(new_folder(tmp_path / "new", per_class=2))
    with pytest.raises(RunError, match=r"not a run folder \(no run.json\)"):
        evaluate(tmp_path, [data], common=QUIET)
    (tmp_path / "half").mkdir()
    record = json.loads((run / "run.json").read_text()) | {"status": "stopped"}
    (tmp_path / "half" / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="the run is stopped, not complete; run again:"):
        evaluate(tmp_path / "half", [data], common=QUIET)
    evaluate(run, [data], out=tmp_path / "out", common=QUIET)
    with pytest.raises(RunError, match="a run of `offshelf evaluate` has no classifier; expected one of fit or"):
        evaluate(tmp_path / "out", [data], out=tmp_path / "again", common=QUIET)


def test_wrong_use_is_answered_before_any_work(run: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = new_folder(tmp_path / "new", per_class=2)
    with pytest.raises(UsageError, match="--against other/: compares two sets .* expected --multilabel COLUMN"):
        evaluate(run, [str(data)], against=["other/"], common=QUIET)
    with pytest.raises(UsageError, match=r"--label-separator '\|': expected --multilabel"):
        evaluate(run, [str(data)], label_separator="|", common=QUIET)
    with pytest.raises(UsageError, match="--n-min 0: expected 1 or more"):
        evaluate(run, [str(data)], n_min=0, common=QUIET)
    with pytest.raises(UsageError, match="nothing to evaluate on"):
        evaluate(run, [], common=QUIET)
    with pytest.raises(UsageError, match="has no columns"):
        evaluate(run, [str(data)], multilabel=["valid"], out=tmp_path / "a", common=QUIET)
    flat = tmp_path / "new" / "down"
    with pytest.raises(DataError, match="no labels. Class folders are needed"):
        evaluate(run, str(flat), out=tmp_path / "b", common=QUIET)  # type: ignore[arg-type]
    table = new_table(tmp_path / "t", 6, 0.5, 1)
    with pytest.raises(DataError, match="--multilabel label holds one class a picture; expected several columns"):
        evaluate(run, [str(table)], multilabel=["label"], out=tmp_path / "c", common=QUIET)
    hot = open_dataset(str(table), label_column=list(NAMES)).remove_columns(["valid"])
    bare = hot.remove_columns([name for name in hot.column_names if name not in ("image", "labels")])
    bare.info.description = ""
    with pytest.raises(DataError, match="have no names, so they cannot be matched"):
        evaluate(run, [bare], multilabel=["labels"], out=tmp_path / "d", common=QUIET)
    assert cli.run(["evaluate", str(run), str(data), "--multilable", "valid"]) == 2
    assert "--multilabel" in capsys.readouterr().err
