import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from offshelf.evaluate.battle.agreement import correlate, scaling

RNG = np.random.default_rng(0)
COMMON = RNG.normal(size=(30, 1))
TABLE = COMMON + 0.7 * RNG.normal(size=(30, 4))
TABLE[:5, 0] = np.round(TABLE[:5, 0])  # some ties
TABLE[5, 0] = TABLE[0, 0]


def test_correlations_are_scipys():
    found = correlate(TABLE)
    np.testing.assert_allclose(found["spearman"], spearmanr(TABLE)[0])
    for i in range(4):
        for j in range(4):
            assert found["pearson"][i, j] == pytest.approx(pearsonr(TABLE[:, i], TABLE[:, j])[0])
    pairs = [spearmanr(TABLE[:, i], TABLE[:, j])[0] for i in range(4) for j in range(i)]
    assert found["mean_spearman"] == pytest.approx(np.mean(pairs))
    assert found["n"] == 30


def test_the_interval_is_that_of_a_slow_bootstrap_over_backbones():
    rng, slow = np.random.default_rng(9), []
    for _ in range(600):
        drawn = spearmanr(TABLE[rng.integers(0, 30, 30)])[0]
        slow.append(drawn[np.triu_indices(4, 1)].mean())
    found = correlate(TABLE)
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(slow, [2.5, 97.5]), atol=0.03)
    assert correlate(TABLE)["low"] == found["low"]


def test_who_takes_part_and_what_is_undefined():
    holes = TABLE.copy()
    holes[3, 1] = np.nan
    found = correlate(holes)
    assert found["n"] == 29
    np.testing.assert_allclose(found["spearman"], spearmanr(np.delete(TABLE, 3, axis=0))[0])
    few = correlate(TABLE[:4])
    assert np.isfinite(few["mean_spearman"]) and np.isnan(few["low"])
    assert np.isnan(correlate(TABLE[:2])["spearman"]).all()
    assert np.isnan(correlate(TABLE[:0])["mean_spearman"]) and correlate(TABLE[:0])["n"] == 0
    assert np.isnan(correlate(TABLE[:, :1])["mean_spearman"])
    flat = np.column_stack([TABLE[:, :2], np.full(30, 0.1)])
    found = correlate(flat)["spearman"]
    assert np.isfinite(found[0, 1]) and np.isnan(found[0, 2])


def test_scaling_by_family():
    size = COMMON[:, 0] + RNG.normal(size=30)
    size[0] = np.nan
    families = ["CNN", "ViT", "hybrid"] * 9 + ["CNN", "lone", "lone"]
    found = scaling(TABLE[:, 1], size, families)
    assert list(found) == ["CNN", "ViT", "hybrid", "lone", "all"]
    cnn = [m for m in range(1, 30) if families[m] == "CNN"]
    assert found["CNN"]["spearman"] == pytest.approx(spearmanr(TABLE[cnn, 1], size[cnn])[0])
    assert found["CNN"]["n"] == 9 and found["CNN"]["low"] < found["CNN"]["spearman"] < found["CNN"]["high"]
    assert found["all"]["spearman"] == pytest.approx(spearmanr(TABLE[1:, 1], size[1:])[0]) and found["all"]["n"] == 29
    assert np.isnan(found["lone"]["spearman"]) and found["lone"]["n"] == 2
