import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.evaluate.controls import source_probe

N, D = 240, 20


def planted(seed, shift, tie, signal=2.0):
    """Two classes and sites; ``shift`` of the site in the features, ``tie`` share of rows whose site is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, N)
    site = np.where(rng.random(N) < tie, y, rng.integers(0, 2, N))
    x = rng.normal(size=(N, D))
    x[:, 0] += signal * y
    x[:, 1] += shift * site
    return x, np.array(["north", "south"])[site].tolist(), y


def test_planted_shift_tied_to_the_class_alarms():
    x, site, y = planted(0, shift=3.0, tie=0.5)
    control = source_probe(x, site, y, n_boot=300)
    assert (control["column"], control["kind"], control["level"]) == ("source", "classes", "alarm")
    assert control["score"]["value"] > 0.88
    assert 0.7 < control["chance"] < 0.8
    assert "short cut" in control["sentence"]
    assert source_probe(x, site, y, column="group", n_boot=300)["level"] == "warning"


def test_planted_shift_that_says_nothing_of_the_class_warns():
    control = source_probe(*planted(1, shift=3.0, tie=0.0), n_boot=300)
    assert control["level"] == "warning"
    assert control["chance"] == pytest.approx(0.5, abs=0.08)


def test_a_probe_that_only_knows_the_class_does_not_alarm():
    levels = [source_probe(*planted(seed, shift=0.0, tie=0.5), n_boot=200)["level"] for seed in range(20)]
    assert levels.count("fine") >= 19


def test_noise_is_fine():
    levels = [source_probe(*planted(seed, shift=0.0, tie=0.0, signal=0.0), n_boot=200)["level"] for seed in range(20)]
    assert levels.count("fine") >= 18


def test_source_that_is_the_class_alarms_since_nothing_can_tell_them_apart():
    control = source_probe(*planted(2, shift=0.0, tie=1.0), n_boot=200)
    assert (control["level"], control["chance"]) == ("alarm", 1.0)
    assert "cannot be told apart" in control["sentence"]
    quiet = source_probe(*planted(2, shift=0.0, tie=1.0, signal=0.0), n_boot=200)
    assert quiet["level"] == "fine"  # the features show neither


def test_patients_of_one_site_must_not_be_recognised_as_the_site():
    # Eight pictures a patient, all alike; patients lie in sites at random, so the site itself is not in the features.
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(30), 8)
    x = np.repeat(rng.normal(size=(30, D)), 8, axis=0) + 0.1 * rng.normal(size=(N, D))
    site, y = rng.integers(0, 2, 30)[patient], rng.integers(0, 2, N)
    assert source_probe(x, site, y, n_boot=200)["level"] == "warning"
    assert source_probe(x, site, y, clusters=patient, n_boot=200)["level"] == "fine"


def pairs(seed, alike):
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(size=(60, D)), 2, axis=0) * alike + rng.normal(size=(120, D))
    y = np.repeat(np.arange(60) % 2, 2)
    return x, [f"p{i}" for i in np.repeat(np.arange(60), 2)], y


def test_neighbours_of_many_small_groups():
    control = source_probe(*pairs(0, alike=3.0), column="group", n_boot=300)
    assert (control["kind"], control["level"]) == ("neighbours", "warning")
    assert control["chance"] == pytest.approx(1 / 59)
    assert control["score"]["value"] > 0.9
    assert source_probe(*pairs(0, alike=3.0), column="source", n_boot=300)["level"] == "alarm"
    fine = sum(
        source_probe(*pairs(seed, alike=0.0), column="source", n_boot=200)["level"] == "fine" for seed in range(10)
    )
    assert fine >= 9


def test_nothing_to_judge_is_said():
    x, y = np.random.default_rng(0).normal(size=(6, 3)), [0, 1, 0, 1, 0, 1]
    assert source_probe(x, None, y) is None
    assert source_probe(x, [None] * 6, y) is None
    assert source_probe(x, list("abcdef"), y) is None
    with pytest.raises(DataError, match="5 values of 'source'"):
        source_probe(x, list("abcde"), y)
