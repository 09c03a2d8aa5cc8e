import json
import time

import numpy as np
import pytest
from sklearn import metrics as reference

from offshelf.errors import DataError
from offshelf.evaluate.bootstrap import evaluate
from offshelf.evaluate.intervals import wilson_interval
from offshelf.evaluate.resampling import bootstrap_mean, replicate, resampled_weights
from offshelf.evaluate.scores import OVERALL, PER_CLASS, Scores


def draw(rng, n, k=3, skill=1.0):
    y = rng.integers(0, k, n)
    z = rng.normal(size=(n, k))
    z[np.arange(n), y] += skill
    return y, np.exp(z) / np.exp(z).sum(1, keepdims=True)


def test_shape_and_values_of_an_arm():
    y, p = draw(np.random.default_rng(0), 150)
    result = evaluate(y, p, ["a", "b", "c"], n_boot=300)
    assert set(result) == {"metrics", "per_class", "confusion", "roc", "calibration"}
    metrics = result["metrics"]
    assert tuple(metrics) == OVERALL
    guess = p.argmax(1)
    expected = {
        "accuracy": reference.accuracy_score(y, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(y, guess),
        "macro_f1": reference.f1_score(y, guess, average="macro"),
        "macro_auroc": reference.roc_auc_score(y, p, multi_class="ovr"),
        "macro_average_precision": reference.average_precision_score(np.eye(3)[y], p, average="macro"),
        "log_loss": reference.log_loss(y, p),
        "brier": np.mean(((p - np.eye(3)[y]) ** 2).sum(1)),
    }
    for name, value in expected.items():
        cell = metrics[name]
        assert cell["value"] == pytest.approx(value), name
        assert cell["low"] < value < cell["high"], name
        assert (cell["n"], cell["interval"]) == (150, "bootstrap")
    assert result["confusion"] == reference.confusion_matrix(y, guess).tolist()
    for c, name in enumerate("abc"):
        entry = result["per_class"][name]
        assert set(entry) == {*PER_CLASS, "n"}
        assert entry["n"] == entry["sensitivity"]["n"] == np.sum(y == c)
        assert entry["specificity"]["n"] == np.sum(y != c)
        assert entry["precision"]["n"] == np.sum(guess == c)
        assert entry["auroc"]["value"] == pytest.approx(reference.roc_auc_score(y == c, p[:, c]))
        assert result["roc"][name]["tpr"][-1] == 1
    assert sum(b["n"] for b in result["calibration"]) == 150
    assert set(result["calibration"][0]) == {"low", "high", "confidence", "accuracy", "n"}
    json.dumps(result, allow_nan=False)


def test_replicates_equal_a_slow_loop_that_copies_rows():
    rng = np.random.default_rng(1)
    y, p = draw(rng, 40)
    p = np.round(p, 1) + 1e-3
    p /= p.sum(1, keepdims=True)
    codes = rng.integers(0, 12, 40)
    codes = np.unique(codes, return_inverse=True)[1]
    drawn = replicate(Scores(y, p, None, 3), codes, 30, seed=5)
    weights = np.concatenate(list(resampled_weights(codes, 30, seed=5)), axis=1)
    compared = 0
    for b in range(30):
        rows = np.repeat(np.arange(40), weights[:, b].astype(int))
        yb, pb = y[rows], p[rows]
        assert drawn.overall["accuracy"][b] == pytest.approx(np.mean(pb.argmax(1) == yb))
        if np.unique(yb).size < 3:
            continue
        compared += 1
        truth = np.eye(3)[yb]
        assert drawn.overall["macro_auroc"][b] == pytest.approx(reference.roc_auc_score(truth, pb, average="macro"))
        assert drawn.overall["macro_average_precision"][b] == pytest.approx(
            reference.average_precision_score(truth, pb)
        )
        assert drawn.overall["log_loss"][b] == pytest.approx(reference.log_loss(yb, pb, labels=[0, 1, 2]))
    assert compared > 20


def test_resamples_draw_whole_groups_and_do_not_depend_on_the_chunk():
    codes = np.array([0, 0, 1, 2, 2, 2, 3])
    one = np.concatenate(list(resampled_weights(codes, 50, seed=1)), axis=1)
    small = np.concatenate(list(resampled_weights(codes, 50, seed=1, chunk=20)), axis=1)
    assert one.shape == (7, 50)
    assert np.array_equal(one, small)
    first = [0, 2, 3, 6]  # one row of each group
    assert np.all(one[first].sum(axis=0) == 4)
    assert np.array_equal(one[0], one[1])
    assert np.array_equal(one[3], one[5])
    assert np.concatenate(list(resampled_weights(np.arange(50), 2000, 0)), axis=1).shape == (50, 2000)


def test_perfect_answers_get_wilson_over_groups():
    y = np.repeat([0, 1], 20)
    groups = np.arange(40) // 4  # ten groups, five a class
    result = evaluate(y, np.eye(2)[y] * 0.8 + 0.1, ["a", "b"], groups=groups, n_boot=500)
    cell = result["metrics"]["accuracy"]
    assert (cell["interval"], cell["low"], cell["high"]) == ("wilson", pytest.approx(wilson_interval(1, 10)[0]), 1)
    own = wilson_interval(1, 5)[0]
    assert result["per_class"]["a"]["sensitivity"]["low"] == pytest.approx(own)
    assert result["per_class"]["a"]["auroc"]["low"] == pytest.approx(own)
    balanced = result["metrics"]["balanced_accuracy"]
    assert (balanced["interval"], balanced["low"]) == ("wilson", pytest.approx(1 - np.sqrt(2) * (1 - own) / 2))
    # Every loss is the same number: no interval is better than one of no width.
    assert result["metrics"]["brier"] == {
        "value": pytest.approx(0.01),
        "low": None,
        "high": None,
        "n": 40,
        "interval": "none",
    }


def test_rare_and_absent_classes():
    y = np.array([0] * 30 + [1] * 30 + [2] * 2)
    p = np.full((62, 4), 0.1)
    p[np.arange(62), np.where(np.arange(62) % 5 == 0, (y + 1) % 2, y)] = 0.7
    result = evaluate(y, p, ["a", "b", "rare", "absent"], n_boot=500)
    assert result["per_class"]["rare"]["sensitivity"]["interval"] == "none"  # absent from 13 % of the resamples
    assert result["metrics"]["balanced_accuracy"]["interval"] == "none"
    assert result["metrics"]["balanced_accuracy"]["value"] is not None
    assert result["metrics"]["accuracy"]["interval"] == "bootstrap"
    absent = result["per_class"]["absent"]
    assert absent["sensitivity"]["value"] is None
    assert absent["auroc"]["value"] is None
    assert absent["precision"]["value"] is None
    assert result["roc"]["absent"] == {"fpr": [], "tpr": []}
    json.dumps(result, allow_nan=False)


def test_predictions_alone_and_predictions_that_differ_from_the_probabilities():
    y = np.array([0, 1] * 20)
    guess = np.where(np.arange(40) < 8, 1 - y, y)
    result = evaluate(y, None, ["a", "b"], predictions=guess, n_boot=200)
    assert result["metrics"]["accuracy"]["value"] == 0.8
    assert result["metrics"]["log_loss"]["value"] is None
    assert result["calibration"] == []
    both = evaluate(y, np.eye(2)[y] * 0.8 + 0.1, ["a", "b"], predictions=guess, n_boot=200)
    assert both["metrics"]["accuracy"]["value"] == 0.8
    assert both["metrics"]["macro_auroc"]["value"] == 1
    # 8 answers given with confidence 0.1, all wrong; 32 with 0.9, all right.
    assert both["metrics"]["calibration_error"]["value"] == pytest.approx(0.1)


def test_bad_input_names_the_row():
    y = np.array([0, 1, 0])
    with pytest.raises(DataError, match="probabilities, row 1"):
        evaluate(y, np.array([[0.5, 0.5], [0.9, 0.9], [1, 0]]), ["a", "b"])
    with pytest.raises(DataError, match="probabilities, row 2"):
        evaluate(y, np.array([[0.5, 0.5], [0.1, 0.9], [np.nan, 0]]), ["a", "b"])
    with pytest.raises(DataError, match=r"expected \(3, 2\)"):
        evaluate(y, np.ones((3, 3)) / 3, ["a", "b"])
    with pytest.raises(DataError, match="labels, row 2: 5 is not a class number 0 to 1"):
        evaluate(np.array([0, 1, 5]), np.ones((3, 2)) / 2, ["a", "b"])
    with pytest.raises(DataError, match="no rows"):
        evaluate(np.array([], dtype=int), np.ones((0, 2)), ["a", "b"])


def test_intervals_cover_the_truth():
    truth_y, truth_p = draw(np.random.default_rng(99), 200_000)
    truth = {name: values[0] for name, values in Scores(truth_y, truth_p, None, 3).point().overall.items()}
    names = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_average_precision", "log_loss", "brier")
    covered = dict.fromkeys(names, 0)
    draws = 300
    for seed in range(draws):
        y, p = draw(np.random.default_rng(seed), 120)
        drawn = replicate(Scores(y, p, None, 3), np.arange(120), 400, seed)
        for name in names:
            low, high = np.percentile(drawn.overall[name], [2.5, 97.5])
            covered[name] += low <= truth[name] <= high
    for name in names:
        assert 0.90 <= covered[name] / draws <= 0.99, (name, covered[name])


def test_groups_must_be_drawn_whole_to_cover():
    covered = {"rows": 0, "groups": 0}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        easy = rng.random(40) < 0.7  # all eight rows of a group are right or all wrong
        values = np.repeat(easy, 8).astype(float)
        for kind, groups in (("rows", None), ("groups", np.repeat(np.arange(40), 8))):
            cell = bootstrap_mean(values, groups, seed=seed, n_boot=300, rate=True)
            covered[kind] += cell["low"] <= 0.7 <= cell["high"]
    assert 0.90 <= covered["groups"] / 300 <= 0.99
    assert covered["rows"] / 300 < 0.7


def test_same_seed_same_result_and_quick():
    y, p = draw(np.random.default_rng(3), 2000, k=10)
    start = time.perf_counter()
    first = evaluate(y, p, [str(c) for c in range(10)], seed=4)
    assert time.perf_counter() - start < 10  # about 0.2 s on one core
    assert first == evaluate(y, p, [str(c) for c in range(10)], seed=4)
    assert first["metrics"]["accuracy"] != evaluate(y, p, [str(c) for c in range(10)], seed=5)["metrics"]["accuracy"]


def test_mean_leaves_out_undefined_rows():
    cell = bootstrap_mean(np.array([1.0, np.nan, 0.0, 1.0, 1.0]), n_boot=200)
    assert (cell["value"], cell["n"]) == (0.75, 4)
    assert bootstrap_mean(np.array([np.nan]))["value"] is None
