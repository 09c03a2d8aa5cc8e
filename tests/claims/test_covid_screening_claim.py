from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claims import covid_screening as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, read, seeded_interval
from claims.table import markdown
from tests.conftest import draw

TINY = claim.Sizes("test_resnet.random", "test_resnet", 32, epochs=4, batch_size=12, seeds=(0, 1), folds=3, n_boot=100)


def differences(first: tuple[float, float], second: tuple[float, float]) -> dict[str, Any]:
    cells = zip(claim.PARTS, (first, second), strict=True)
    return {f"{a} - {b}": {"accuracy": {"low": low, "high": high}} for (a, b), (low, high) in cells}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.01, 0.1), (0.001, 0.1), SHOWN),
        ((0.01, 0.1), (0.0, 0.1), NOT_SHOWN),  # touching 0 is not above it
        ((0.01, 0.1), (-0.1, 0.1), NOT_SHOWN),
        ((0.01, 0.1), (-0.1, -0.01), CONTRADICTED),
        ((-0.1, -0.01), (0.01, 0.1), CONTRADICTED),
        ((-0.1, 0.1), (-0.1, 0.1), NOT_SHOWN),
    ],
)
def test_the_rule(first: tuple[float, float], second: tuple[float, float], expected: str) -> None:
    assert claim.verdict_of(differences(first, second))[0] == expected


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_arms_differ_in_what_they_are_named_for_and_in_nothing_else() -> None:
    sizes = claim.Sizes()
    settings = {arm: sizes.recipe(arm, 2).get_params() for arm in claim.ARMS}
    named = {"backbone", "augment", "oversample_to_balance"}
    for arm in claim.ARMS:
        same = {key: value for key, value in settings[arm].items() if key not in named}
        assert same == {key: value for key, value in settings["P"].items() if key not in named}
        assert settings[arm]["augment"] is settings[arm]["oversample_to_balance"] is arm.endswith("A")
        learnt = settings[arm]["backbone"] == "test_byobnet.offshelf_finetune_cifar10"
        assert learnt is arm.startswith("P") and (learnt or settings[arm]["backbone"] == "test_byobnet.random_2")
    assert len(sizes.seeds) >= 3


def test_accuracy_interval_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    a, b = np.array([[0, 0, 1, 1], [0, 0, 1, 0]]), np.array([[0, 1, 1, 0], [0, 1, 1, 0]])
    found = seeded_interval(labels, a, b, np.arange(4), "accuracy", n_boot=400)
    assert found["difference"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["low"] <= 0.375 <= found["high"]
    assert seeded_interval(labels, b, None, np.arange(4), "accuracy", n_boot=50)["value"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def data() -> claim.Data:
    """Ten patients a class with two pictures each."""
    labels = np.repeat([0, 1, 2], 20)
    pixels = np.stack([draw(int(k), i, 32) for i, k in enumerate(labels)]).transpose(0, 3, 1, 2)
    return claim.Data(np.ascontiguousarray(pixels), labels, ["covid19", "no_finding", "pneumonia"], np.arange(60) // 2)


@pytest.fixture(scope="module")
def found(data: claim.Data) -> dict[str, Any]:
    return claim.study(data, TINY)


def test_the_study_holds_together(data: claim.Data, found: dict[str, Any]) -> None:
    assert set(found["arms"]) == set(claim.ARMS)
    assert sum(fold["test"] for fold in found["folds"]) == 60
    steps = found["steps"]["S"]
    assert all(found["steps"][arm] == steps for arm in claim.ARMS)
    assert len(steps) == 2 and {count for run in steps for count in run} <= {4, 8, 12}  # 4 epochs of 32 or so pictures
    assert all(1 <= epoch <= 4 for arm in claim.ARMS for run in found["best_epochs"][arm] for epoch in run)
    for arm in claim.ARMS:
        matrix = np.array(found["confusion"][arm])
        assert matrix.sum() == 2 * 60  # each picture once a seed
        assert found["arms"][arm]["accuracy"]["value"] == pytest.approx(np.trace(matrix) / 120)
        assert found["arms"][arm]["sensitivity"]["value"] == pytest.approx(matrix[0, 0] / 40)
        assert len(found["seconds"][arm]) == 2
    for a, b in claim.PARTS + claim.BESIDE:
        cell = found["differences"][f"{a} - {b}"]["accuracy"]
        expected = found["arms"][a]["accuracy"]["value"] - found["arms"][b]["accuracy"]["value"]
        assert cell["difference"] == pytest.approx(expected)
    for a, b in claim.PARTS:
        for test in found["mcnemar"][f"{a} - {b}"]:
            assert 0 <= test["p_value"] <= 1 and test["only_a"] + test["only_b"] <= 60
    two = found["two_classes"]
    assert two["n"] == np.sum(two["confusion"]) == 40
    assert two["rates"]["accuracy"] == pytest.approx(two["accuracy"]["value"])
    assert found["blank_centre"]["full"]["n"] == 60 and found["blank_centre"]["area"] == 0.6


def test_two_classes_keep_their_folds(data: claim.Data) -> None:
    kept, labels = data.part(("no_finding", "covid19"))
    assert [data.classes[k] for k in data.labels[kept]] == [("no_finding", "covid19")[k] for k in labels]
    assert kept.tolist() == list(range(40))


def test_the_record_comes_from_the_numbers(data: claim.Data, found: dict[str, Any]) -> None:
    record = claim.record(found, data, TINY)
    assert record["verdict"] == claim.verdict_of(found["differences"])[0]
    assert record["rule"] == claim.RULE
    header, rows = record["table"]["header"], record["table"]["rows"]
    assert len(rows) == 8 and all(len(row) == len(header) for row in rows)
    text = markdown(
        record
        | {"version": 1, "date": "", "command": "", "seconds": 0.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    )
    assert "blanked" in text and "McNemar" in text and "60 chest X-rays of 30 patients" in text


def test_the_kept_result_agrees_with_its_numbers() -> None:
    kept = read(claim.SLUG)
    if kept is None:
        pytest.skip("no kept result of this claim yet")
    assert kept["version"] == claim.VERSION, "numbers of another version: run python -m claims covid-screening"
    assert kept["rule"] == claim.RULE
    assert (kept["verdict"], kept["parts"]) == claim.verdict_of(kept["numbers"]["differences"])
    for a, b in claim.PARTS:
        cell = kept["numbers"]["differences"][f"{a} - {b}"]["accuracy"]
        arms = kept["numbers"]["arms"]
        assert cell["difference"] == pytest.approx(arms[a]["accuracy"]["value"] - arms[b]["accuracy"]["value"])
        assert cell["low"] <= cell["difference"] <= cell["high"]
        assert len(kept["numbers"]["mcnemar"][f"{a} - {b}"]) == len(claim.Sizes().seeds)
    assert len(set(map(len, kept["table"]["rows"]))) == 1
    assert kept["verdict"] in markdown(kept)


def test_real_data_have_the_stated_rows(real_data: Path) -> None:
    data = claim.load(claim.Sizes(image_size=8))
    assert data.pixels.shape == (897, 3, 8, 8) and len(set(data.units)) == 607
    assert dict(zip(data.classes, np.bincount(data.labels).tolist())) == {
        "covid19": 103,
        "no_finding": 399,
        "pneumonia": 395,
    }
