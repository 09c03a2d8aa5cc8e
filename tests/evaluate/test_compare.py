import numpy as np
import pytest

from offshelf.errors import DataError, UsageError
from offshelf.evaluate.compare import compare_arms, mcnemar_exact, paired_comparison


def answers(y, share_right, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(y)) < share_right, y, (y + 1) % 3)


Y = np.arange(300) % 3


def test_clear_and_unclear_differences():
    arms = {
        "poor": answers(Y, 0.5, 0),
        "good": answers(Y, 0.9, 1),
        "also good": answers(Y, 0.9, 2),
        "worst": answers(Y, 0.1, 3),
    }
    comparisons, ties = compare_arms(Y, arms, 3, n_boot=500)
    assert len(comparisons) == 6
    assert {frozenset(group) for group in ties} == {
        frozenset({"good", "also good"}),
        frozenset({"poor"}),
        frozenset({"worst"}),
    }
    assert [group[0] for group in ties][1:] == ["poor", "worst"]
    for entry in comparisons:
        assert entry["metric"] == "balanced_accuracy"
        assert entry["difference"] >= 0
        expected = np.mean(
            [(arms[entry["a"]] == Y)[c == Y].mean() - (arms[entry["b"]] == Y)[c == Y].mean() for c in range(3)]
        )
        assert entry["difference"] == pytest.approx(expected)
        assert entry["low"] <= entry["difference"] <= entry["high"]
        assert entry["told_apart"] == ({entry["a"], entry["b"]} != {"good", "also good"})


def test_pairing_narrows_the_interval():
    base = answers(Y, 0.8, 0)
    better = base.copy()
    wrong = np.flatnonzero(base != Y)[:12]
    better[wrong] = Y[wrong]
    entry = paired_comparison(Y, better, base, 3, metric="accuracy", names=("better", "base"))
    assert entry["difference"] == pytest.approx(0.04)
    assert entry["told_apart"]
    # Twelve discordant rows, all one way: standard deviation of their number is sqrt(12 (1 - 0.04)).
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * np.sqrt(12 * 0.96) / 300, rel=0.12)
    swapped = paired_comparison(Y, base, better, 3, metric="accuracy")
    assert (swapped["difference"], swapped["high"]) == (pytest.approx(-0.04), pytest.approx(-entry["low"]))


@pytest.mark.parametrize(("n_discordant", "told_apart"), [(5, False), (6, True)])
def test_too_few_differing_groups_are_never_told_apart(n_discordant, told_apart):
    better = Y.copy()
    worse = Y.copy()
    worse[: 10 * n_discordant : 10] = (Y[: 10 * n_discordant : 10] + 1) % 3
    entry = paired_comparison(Y, better, worse, 3, metric="accuracy")
    assert entry["low"] > 0
    assert entry["told_apart"] is told_apart
    one_group = paired_comparison(Y, better, worse, 3, groups=["g"] * 300, metric="accuracy")
    assert not one_group["told_apart"]


def test_identical_arms_tie():
    arm = answers(Y, 0.7, 0)
    comparisons, ties = compare_arms(Y, {"a": arm, "b": arm.copy()}, 3, n_boot=100)
    assert (comparisons[0]["difference"], comparisons[0]["low"], comparisons[0]["high"]) == (0, 0, 0)
    assert not comparisons[0]["told_apart"]
    assert ties == [["a", "b"]]


def test_loss_is_better_when_lower():
    rng = np.random.default_rng(0)
    sharp = np.full((300, 3), 0.05) + 0.85 * np.eye(3)[Y]
    blunt = rng.dirichlet(np.ones(3) * 5, 300)
    comparisons, ties = compare_arms(Y, {"blunt": blunt, "sharp": sharp}, metric="log_loss", n_boot=200)
    assert ties == [["sharp"], ["blunt"]]
    assert comparisons[0]["a"] == "sharp"
    assert comparisons[0]["high"] < 0
    _, ties = compare_arms(Y, {"blunt": blunt, "sharp": sharp}, metric="macro_auroc", n_boot=200)
    assert ties[0][0] == "sharp"
    pair = paired_comparison(Y, (sharp, blunt.argmax(1)), blunt, metric="accuracy", n_boot=200)
    assert pair["difference"] == 0  # the predictions of the pair count, not its probabilities


def test_false_alarms_are_rare():
    told = 0
    for seed in range(200):
        y = np.arange(90) % 3
        entry = paired_comparison(y, answers(y, 0.7, 2 * seed), answers(y, 0.7, 2 * seed + 1), 3, seed=seed, n_boot=300)
        told += entry["told_apart"]
    assert 1 <= told <= 20  # 5 % expected


def test_mcnemar_by_hand():
    # 8 rows only a gets right, 2 only b: 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024.
    y = np.zeros(20, dtype=int)
    a, b = np.zeros(20, dtype=int), np.zeros(20, dtype=int)
    b[:8] = 1
    a[8:10] = 1
    assert mcnemar_exact(y, a, b) == {"only_a": 8, "only_b": 2, "p_value": pytest.approx(0.109375)}
    assert mcnemar_exact(y, a, a)["p_value"] == 1
    with pytest.raises(DataError, match="must be as many"):
        mcnemar_exact(y, a[:3], b)


def test_wrong_settings():
    with pytest.raises(UsageError, match="did you mean 'balanced_accuracy'"):
        compare_arms(Y, {"a": Y}, metric="balanced_acuracy")
    with pytest.raises(UsageError, match="arm 'a': log_loss needs probabilities"):
        compare_arms(Y, {"a": Y}, metric="log_loss")
    with pytest.raises(UsageError, match="no arms"):
        compare_arms(Y, {})
