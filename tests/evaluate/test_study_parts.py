"""The small parts of a study: rows that stay together, the corrected score, the verdict, the gallery."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset
from offshelf.evaluate.arms import cross_predict
from offshelf.evaluate.mistakes import confident_mistakes
from offshelf.evaluate.rows import Rows, joined
from offshelf.evaluate.selection import selected_score
from offshelf.evaluate.verdict import sentences, shown
from offshelf.transfer.pipelines import Arm


def test_rows_of_one_group_or_one_picture_are_joined_also_through_each_other() -> None:
    keys = [b"a", b"b", b"b", b"c", b"d"]
    groups = np.array(["x", "x", "y", None, None], dtype=object)
    together = joined(groups, keys)
    assert together is not None
    assert len({together[0], together[1], together[2]}) == 1  # x and y share picture b
    assert len(set(together)) == 3
    assert joined(None, [b"a", b"b"]) is None
    twins = joined(None, [b"a", b"b", b"a"])
    assert twins is not None
    assert twins[0] == twins[2] != twins[1]


def test_choosing_among_coin_flips_is_corrected_to_chance() -> None:
    """The best of 30 random arms looks good on the rows that chose it; corrected, it is a coin."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    arms = {str(k): random.integers(0, 2, 200) for k in range(30)}
    naive = max(np.mean(arm == labels) for arm in arms.values())
    corrected = selected_score(labels, arms, 2)
    assert naive == pytest.approx(0.55)
    assert abs(corrected["value"] - 0.5) < 0.05
    assert corrected["low"] < 0.5 < corrected["high"]
    assert sum(corrected["chosen"].values()) == pytest.approx(1)


def test_an_arm_that_is_clearly_best_keeps_its_score() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(300) % 3
    good = np.where(random.random(300) < 0.9, labels, (labels + 1) % 3)
    found = selected_score(labels, {"good": good, "bad": (labels + 1) % 3}, 3)
    assert found["chosen"]["good"] == 1.0
    assert found["value"] == pytest.approx(np.mean(good == labels), abs=0.01)


def test_too_few_rows_give_no_corrected_score() -> None:
    labels = np.array([0, 1])
    found = selected_score(labels, {"a": labels, "b": labels}, 2)
    assert np.isnan(found["value"])
    assert found["interval"] == "none"


def test_no_fold_learns_from_its_test_rows() -> None:
    """Noise in place of the test rows' features leaves the other folds' models, and so their predictions, unchanged."""
    random = np.random.default_rng(0)
    labels = np.arange(180) % 3
    features = (random.normal(size=(180, 20)) + 6 * np.eye(20)[labels]).astype(np.float32)
    rows = Rows(as_samples([]), labels, ["a", "b", "c"], None, None, None, np.arange(180), None)
    folds = rows.outer_folds(3, seed=0)
    arm = Arm("reproductive", "svm-linear")
    settings = {"code_dim": 8, "hidden_dim": 64}
    before = cross_predict(arm, features, rows, folds, **settings)
    assert (before.predicted == labels).mean() > 0.8
    noisy = features.copy()
    test = folds[0].test
    noisy[test[1:]] = 100 * random.normal(size=(len(test) - 1, 20))
    after = cross_predict(arm, noisy, rows, folds[:1], **settings)
    np.testing.assert_array_equal(after.probabilities[test[0]], before.probabilities[test[0]])
    assert (after.fold >= 0).sum() == len(test)


def test_shown_writes_what_is_known() -> None:
    assert shown({"value": 0.9123, "low": 0.85, "high": 0.95}) == "0.912 [0.850, 0.950]"
    assert shown({"value": 0.9, "low": None, "high": None}) == "0.900"
    assert shown({"value": None, "low": None, "high": None}) == "not defined"


def results(**changes: object) -> dict[str, object]:
    cell = {"value": 0.4, "low": 0.3, "high": 0.5, "n": 50}
    base: dict[str, object] = {
        "arms": [{"name": "a", "metrics": {"balanced_accuracy": cell}}],
        "best": "a",
        "baselines": {"chance": 0.33},
        "tie_groups": [["a", "b"]],
        "controls": {
            "blank_centre": {"level": "alarm", "sentence": "ALARM"},
            "source": {"level": "fine", "sentence": "fine"},
        },
        "data": {"duplicates": [], "bad_files": [], "n": 50, "unlabelled": 0, "groups": 9},
        "backbones": [{"name": "x", "weights": "hub"}],
    }
    return base | changes


def test_the_verdict_says_chance_ties_and_alarms() -> None:
    text = " ".join(sentences(results()))
    assert "0.400 [0.300, 0.500] on 50 pictures (chance 0.330). This cannot be told from chance." in text
    assert "cannot be told apart from b" in text
    assert "ALARM" in text
    assert "fine" not in text
    assert "group" not in text


def test_the_verdict_warns_of_random_weights_missing_groups_and_conflicts() -> None:
    twin = {"paths": ["p", "q"], "splits": ["train", "test"], "labels": ["ill", "well"]}
    changed = {"duplicates": [twin], "bad_files": [{"path": "x"}], "n": 50, "unlabelled": 2, "groups": None}
    text = " ".join(sentences(results(data=changed, backbones=[{"name": "x.random", "weights": "random"}])))
    for words in (
        "1 pictures stand in more than one split",
        "two different labels",
        "1 of 50 pictures could not be read",
        "2 pictures have no label",
        "No group column",
        "All backbones have random weights",
    ):
        assert words in text


def test_the_gallery_shows_the_surest_mistakes_first(folder: Path) -> None:
    samples = as_samples(open_dataset(folder))
    labels = np.array(samples.dataset["label"][:])
    predicted = labels.copy()
    predicted[[3, 7, 9]] = (labels[[3, 7, 9]] + 1) % 3
    predicted[20] = -1  # not tested: no mistake
    probabilities = np.full((36, 3), 0.1)
    probabilities[np.arange(36), predicted] = 0.5
    probabilities[7, predicted[7]] = 0.9
    found = confident_mistakes(samples, labels, predicted, probabilities, ["across", "disc", "down"], limit=2)
    assert [m["confidence"] for m in found] == [0.9, 0.5]
    assert found[0]["path"] == samples.name(7)
    head, _, data = found[0]["thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) == 112
