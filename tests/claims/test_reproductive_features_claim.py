from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

import claims.reproductive_features as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, read, seeded_interval
from claims.reproductive_features import (
    MARGIN,
    PRIMARY,
    RULE,
    RULED,
    SEEDS,
    SLUG,
    TASKS,
    VERSION,
    Data,
    Widths,
    autoencoder,
    best_single,
    bottleneck,
    judge,
    label_free,
    run_fold,
    sentence,
    study,
    table,
)
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.splits import outer_folds

SMALL = Widths(hidden=16, code=4)


def small_data(seed: int = 0, per_class: int = 24) -> Data:
    """Three classes of which every table but the blanked one tells something; two rows a patient."""
    random = np.random.default_rng(seed)
    kinds = np.repeat([0, 1, 2], per_class)
    n = len(kinds)

    def features(width: int, strength: float) -> np.ndarray:
        centres = random.normal(size=(3, width)) * strength
        return (centres[kinds] + random.normal(size=(n, width))).astype(np.float32)

    return Data(
        sections=features(20, 1.0),
        blanked=features(20, 0.0),
        whole=features(10, 1.0),
        networks={"first": slice(0, 5), "second": slice(5, 10)},
        names=np.array(["covid19", "no_finding", "pneumonia"])[kinds],
        units=np.arange(n) // 2,
    )


@pytest.fixture(scope="module")
def small() -> Data:
    return small_data()


@pytest.fixture(scope="module", autouse=True)
def one_head() -> Iterator[None]:
    """One head a task: the other two go the same way and would treble the time."""
    with pytest.MonkeyPatch.context() as patch:
        for key, task in TASKS.items():
            patch.setitem(TASKS, key, replace(task, heads=(PRIMARY,)))
        yield


@pytest.fixture(scope="module")
def record(small: Data) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "folds", lambda data: outer_folds(data.names, data.units, n_folds=2))
        return study(small, SMALL, n_boot=200)


# -- the interval --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy"])
@pytest.mark.parametrize("paired", [True, False])
def test_interval_equals_a_slow_loop_over_repeated_rows(metric: str, paired: bool) -> None:
    random = np.random.default_rng(1)
    labels, units = random.integers(0, 3, 90), np.unique(random.integers(0, 40, 90), return_inverse=True)[1]
    a = np.where(random.random((3, 90)) < 0.7, labels, random.integers(0, 3, (3, 90)))
    b = np.where(random.random((1, 90)) < 0.5, labels, random.integers(0, 3, (1, 90)))
    n_boot = 60

    def scored(rows: np.ndarray, answers: np.ndarray) -> float:
        if metric == "macro_f1":
            return float(f1_score(labels[rows], answers[rows], average="macro"))
        return float(balanced_accuracy_score(labels[rows], answers[rows]))

    weights = np.concatenate(list(resampled_weights(units, n_boot, 5)), axis=1)
    seeds = np.random.default_rng([5, 13]).integers(0, 3, (n_boot, 3))
    slow = []
    for i in range(n_boot):
        rows = np.repeat(np.arange(90), weights[:, i].astype(int))
        other = scored(rows, b[0]) if paired else 0.0
        slow.append(np.mean([scored(rows, a[s]) - other for s in seeds[i]]))
    low, high = np.percentile(slow, [2.5, 97.5])
    everyone = np.arange(90)
    point = np.mean([scored(everyone, row) for row in a]) - (scored(everyone, b[0]) if paired else 0.0)

    found = seeded_interval(labels, a, b if paired else None, units, metric, seed=5, n_boot=n_boot)
    assert found["difference" if paired else "value"] == pytest.approx(point, abs=1e-12)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-12)


def test_interval_is_wider_with_rows_tied_in_patients_and_with_seeds_that_differ() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 200)
    right = np.repeat(random.random(20) < 0.8, 10)  # whole patients are right or wrong
    answers = np.where(right, labels, 1 - labels)[None]

    def width(predictions: np.ndarray, units: np.ndarray) -> float:
        cell = seeded_interval(labels, predictions, None, units, "balanced_accuracy", n_boot=500)
        return cell["high"] - cell["low"]

    patients = np.arange(200) // 10
    assert width(answers, patients) > 2 * width(answers, np.arange(200))
    wrong = (1 - labels)[None]
    assert width(np.concatenate([answers, answers, wrong]), patients) > width(np.repeat(answers, 3, axis=0), patients)


# -- the rule ------------------------------------------------------------------------------------------------------


def parts(**other: tuple[float, float]) -> dict[str, Any]:
    """Differences of which all four of the rule are shown, but for those named ``task_arm``."""
    found = {f"{task}|M - {arm}": {"low": -0.01, "high": 0.03} for task in RULED for arm in "AB"}
    for name, (low, high) in other.items():
        task, arm = name.split("_")
        found[f"{task}|M - {arm}"] = {"low": low, "high": high}
    return found


def test_rule_at_its_edges() -> None:
    assert judge(parts()) == SHOWN
    assert judge(parts(three_A=(-0.0199, 0.5))) == SHOWN
    assert judge(parts(three_A=(-0.02, 0.5))) == NOT_SHOWN  # on the margin is not above it
    assert judge(parts(two_B=(-0.5, -0.02))) == NOT_SHOWN
    assert judge(parts(two_B=(-0.5, -0.0201))) == CONTRADICTED
    assert judge(parts(three_B=(-0.5, 0.5), two_A=(-0.5, -0.1))) == CONTRADICTED


def test_only_the_four_parts_count() -> None:
    assert judge(parts(three_C=(-0.9, -0.8), two_D=(-0.9, -0.8), two_E=(-0.9, -0.8))) == SHOWN


def test_rule_stands_in_the_docstring_as_it_does_in_the_record() -> None:
    said = " ".join((claim.__doc__ or "").split())
    assert " ".join(RULE.split()) in said
    assert f"{MARGIN}" in RULE


# -- no leak -------------------------------------------------------------------------------------------------------


def noisy(data: Data, rows: np.ndarray) -> Data:
    """The same data with other features in the rows named."""
    random = np.random.default_rng(9)
    tables = {}
    for name in ("sections", "blanked", "whole"):
        tables[name] = getattr(data, name).copy()
        tables[name][rows] = random.normal(50, 30, tables[name][rows].shape)
    return replace(data, **tables)


def test_noise_in_the_test_rows_changes_no_code_of_a_training_row(small: Data) -> None:
    fold = small.folds()[0]
    before, after = (label_free(data, fold.train, SMALL) for data in (small, noisy(small, fold.test)))
    assert set(before) == {"M", "M blanked", "E", "C", "D"}
    for arm, tables in before.items():
        assert len(tables) == (3 if arm in ("M", "M blanked", "E") else 1)
        for seed, codes in enumerate(tables):
            assert np.array_equal(codes[fold.train], after[arm][seed][fold.train]), arm
            assert not np.allclose(codes[fold.test], after[arm][seed][fold.test]), arm


def test_noise_in_the_test_rows_changes_no_fitted_weight_of_autoencoder_or_bottleneck(small: Data) -> None:
    fold = small.folds()[0]
    other, labels = noisy(small, fold.test), small.labels(TASKS["three"])
    codes = [autoencoder(data.sections, fold.train, data.units, 1, SMALL)["code"] for data in (small, other)]
    nets = [bottleneck(data.sections, labels, fold.train, data.units, 1, SMALL)["code"] for data in (small, other)]
    for first, second in zip(codes[0].encoder_coefs_ + nets[0].coefs_, codes[1].encoder_coefs_ + nets[1].coefs_):
        assert np.array_equal(first, second)


def test_labels_of_test_rows_change_no_answer(small: Data) -> None:
    fold = small.folds()[0]
    turned = small.names.copy()
    turned[fold.test] = np.roll(turned[fold.test], 1)
    assert (turned != small.names).any()
    found: list[dict[Any, np.ndarray]] = [{}, {}]
    for data, answers in zip((small, replace(small, names=turned)), found):
        run_fold(data, fold, SMALL, answers)
    key = ("three", "M", PRIMARY)
    for other in ("A", "B"):
        assert np.array_equal(found[0]["three", other, PRIMARY], found[1]["three", other, PRIMARY])
    assert np.array_equal(found[0][key], found[1][key])


def test_bottleneck_of_two_classes_never_saw_the_third(small: Data) -> None:
    train = small.folds()[0].train
    labels = small.labels(TASKS["two"])
    net = bottleneck(small.sections, labels, train, small.units, 0, SMALL)["code"]
    assert net.classes_.tolist() == [0, 1]


def test_best_single_network_is_picked_on_training_rows_alone() -> None:
    data = small_data(3)
    train = data.folds()[0].train
    test = np.setdiff1d(np.arange(len(data.names)), train)
    labels = data.labels(TASKS["three"])
    truth, lie = np.eye(3, 5)[labels] * 8, np.eye(3, 5)[(labels + 1) % 3] * 8
    random = np.random.default_rng(4)
    whole = random.normal(size=(len(labels), 10)).astype(np.float32)
    whole[train, 5:] += truth[train]  # tells all, and lies about every test row
    whole[test, 5:] += lie[test]
    whole[test, :5] += truth[test]  # tells all of the test rows, and nothing of the training rows
    for head in ("svm-rbf", "slp"):
        name, scale, model = best_single(replace(data, whole=whole), head, labels, train)
        assert name == "second"
        assert scale.mean_ == pytest.approx(whole[train, 5:].mean(axis=0), abs=1e-5)
        assert np.mean(model.predict(scale.transform(whole[test, 5:])) == labels[test]) < 0.2


# -- the whole, small ----------------------------------------------------------------------------------------------


def test_every_row_of_a_task_is_answered_once_and_no_other(small: Data) -> None:
    found: dict[Any, np.ndarray] = {}
    folds = small.folds()
    run_fold(small, folds[1], SMALL, found)
    tested = np.zeros(len(small.names), dtype=bool)
    tested[folds[1].test] = True
    for (task, arm, head), answers in found.items():
        inside = small.labels(TASKS[task]) >= 0
        assert ((answers >= 0) == (tested & inside)).all(), (task, arm, head)
        assert answers.max() < len(TASKS[task].classes)
        assert len(answers) == (1 if arm in "ACD" else len(SEEDS))
    assert len(folds) == 5
    assert not any(set(small.units[fold.train]) & set(small.units[fold.test]) for fold in folds)
    assert np.sort(np.concatenate([fold.test for fold in folds])).tolist() == list(range(len(small.names)))


def test_record_has_what_the_page_needs_and_follows_its_own_rule(record: dict[str, Any]) -> None:
    agrees_with_itself(record)
    assert set(record) == {"verdict", "sentence", "rule", "margin", "table", "notes", "numbers"}
    assert record["rule"] == RULE
    assert any("Two sources" in note for note in record["notes"])
    assert len(record["numbers"]["nesting"]["d_from_r"]) == 6
    assert all(-10 < value <= 1 for value in record["numbers"]["nesting"]["r_from_d"])
    assert record["numbers"]["folds"][0]["train"] + record["numbers"]["folds"][0]["test"] == 72


def test_blanked_pictures_without_content_do_not_alarm_and_unchanged_ones_do(
    small: Data, record: dict[str, Any]
) -> None:
    control = record["numbers"]["blank_centre"]["three"]
    assert control["level"] == "fine"
    assert control["blanked"]["value"] < 0.5 < 0.8 < control["full"]["value"]
    assert control["chance"] == pytest.approx(1 / 3)
    scores = dict(record["numbers"]["scores"])
    for task in TASKS:
        scores[f"{task}|M blanked|{PRIMARY}|balanced_accuracy"] = scores[f"{task}|M|{PRIMARY}|balanced_accuracy"]
    assert claim.blanked(scores, "two", 2)["level"] == "alarm"
    assert claim.blanked(scores, "two", 2)["retained"] == pytest.approx(1.0)


def test_load_reads_the_manifest_and_cuts_the_networks_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder.rename(tmp_path / "chest-xray")
    with (root / "labels.csv").open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["file", "split", "label", "patient"])
        for kind in ("across", "down", "disc"):
            for number, name in enumerate(sorted(p.name for p in (root / kind).iterdir())[:4]):
                rows.writerow([f"{kind}/{name}", "train", kind, f"{kind}{number // 2}"])
    monkeypatch.setattr(claim, "data_folder", lambda name: tmp_path / name)
    names = ["test_resnet.random", "test_convnext.random"]
    monkeypatch.setattr(claim, "default_backbones", lambda reproductive: (names, ""))
    data, backbones = claim.load()
    assert data.names.tolist() == ["across"] * 4 + ["down"] * 4 + ["disc"] * 4
    assert data.units.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert data.networks == {"test_resnet.random": slice(0, 96), "test_convnext.random": slice(96, 160)}
    assert data.whole.shape == (12, 160)
    assert data.sections.shape == data.blanked.shape == (12, 640)
    assert not np.allclose(data.sections, data.blanked)
    assert [card["weights"] for card in backbones] == ["random", "random"]
    assert "with **random weights** " in claim.setting(data, backbones)


# -- the committed result ------------------------------------------------------------------------------------------


def agrees_with_itself(record: dict[str, Any]) -> None:
    """Verdict, sentence, table and notes follow from the record's own numbers."""
    numbers = record["numbers"]
    scores, differences = numbers["scores"], numbers["differences"]
    nested = np.array([numbers["nesting"]["d_from_r"], numbers["nesting"]["r_from_d"]]).T
    told = claim.notes(scores, differences, nested, numbers["single_network_chosen"], numbers["blank_centre"])
    assert record["notes"] == told
    assert record["verdict"] == judge(differences)
    assert record["sentence"] == sentence(differences)
    assert record["table"] == table(scores, differences)
    for key, task in TASKS.items():
        ours = scores[f"{key}|M|{PRIMARY}|{task.metric}"]
        for arm, head, name in claim.compared(key):
            found, other = differences[f"{key}|{name}"], scores[f"{key}|{arm}|{head}|{task.metric}"]
            assert found["difference"] == pytest.approx(ours["value"] - other["value"], abs=1e-12)
            assert found["low"] <= found["high"]
    width = len(record["table"]["header"])
    for row in record["table"]["rows"]:
        assert len(row) == width
        assert all(not cell or ("[" in cell and cell.endswith("]")) for cell in row[2:])


def test_committed_result_agrees_with_the_code_and_with_itself() -> None:
    kept = read(SLUG)
    assert kept is not None, (
        "claims/results/reproductive-features.json is missing: python -m claims reproductive-features"
    )
    assert (kept["version"], kept["rule"], kept["margin"]) == (VERSION, RULE, MARGIN)
    agrees_with_itself(kept)
    random = [card["name"] for card in kept["backbones"] if card["weights"] == "random"]
    assert len(kept["backbones"]) == 8
    assert all(name in kept["setting"].partition("random weights")[2] for name in random)
    assert {cell["n"] for key, cell in kept["numbers"]["scores"].items() if key.startswith("three|")} == {897}


def test_committed_result_counts_the_pictures_that_are_there(real_data: Path) -> None:
    kept = read(SLUG)
    assert kept is not None
    with (real_data / "chest-xray" / "labels.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert f"{len(rows)} chest X-rays of {len({row['patient'] for row in rows})} patients" in kept["setting"]
