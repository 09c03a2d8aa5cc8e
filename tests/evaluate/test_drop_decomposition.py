from __future__ import annotations

import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.evaluate.drop_decomposition import drop_decomposition, drops, kitagawa
from offshelf.evaluate.multilabel_imagenet import MultiLabelReport


def report(rates: dict[int, tuple[int, int]], seed: int = 0, label: bool = True) -> MultiLabelReport:
    """Pictures of k valid labels, so many answered right and wrong: ``{k: (right, wrong)}``; the right answer is 0."""
    sets, scores = [], []
    for k, (right, wrong) in rates.items():
        sets += [list(range(k))] * (right + wrong)
        scores += [[5, 1, 1, 1, 1]] * right + [[1, 1, 1, 1, 5]] * wrong
    labels = np.zeros(len(sets), dtype=int) if label else None
    return MultiLabelReport(np.array(scores), sets, labels, seed=seed, n_boot=400)


P = report({1: (80, 20), 2: (10, 10)})
Q = report({1: (40, 10), 2: (30, 40)})


def test_worked_by_hand() -> None:
    """Shares 100/120 and 20/120 against 50/120 and 70/120; rates 0.8, 0.5 against 0.8, 3/7."""
    found = drop_decomposition(P, Q)
    composition = (5 / 12) * 0.8 + (-5 / 12) * (0.5 + 3 / 7) / 2
    within = (9 / 12) / 2 * (0.5 - 3 / 7)
    assert found["composition"]["value"] == pytest.approx(composition, abs=1e-12)
    assert found["within"]["value"] == pytest.approx(within, abs=1e-12)
    assert found["drop"]["value"] == pytest.approx(90 / 120 - 70 / 120, abs=1e-12)
    assert found["composition_share"]["value"] == pytest.approx(composition / (composition + within))
    assert found["reweighted"]["value"] == pytest.approx((10 * 0.8 + 2 * 3 / 7) / 12)
    assert found["covered"] == 1
    first = found["groups"][0]
    assert (first["k"], first["share_p"], first["share_q"], first["rate_p"], first["rate_q"]) == pytest.approx(
        (1, 10 / 12, 5 / 12, 0.8, 0.8)
    )
    assert sum(group["composition"] for group in found["groups"]) == pytest.approx(composition)


def test_5_it_adds_up_and_swapping_flips_the_signs() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(5), (2, 200)).transpose(0, 2, 1)
    rates = random.random((2, 5, 200))
    composition, within = kitagawa(shares[0], rates[0], shares[1], rates[1])
    drop = (shares[0] * rates[0]).sum(axis=0) - (shares[1] * rates[1]).sum(axis=0)
    assert np.abs((composition + within).sum(axis=0) - drop).max() < 1e-12
    swapped = kitagawa(shares[1], rates[1], shares[0], rates[0])
    assert np.abs(swapped[0] + composition).max() < 1e-15 and np.abs(swapped[1] + within).max() < 1e-15
    assert kitagawa(shares[0], rates[0], shares[0], rates[1])[0].tolist() == np.zeros((5, 200)).tolist()

    there, back = drop_decomposition(P, Q), drop_decomposition(Q, P)
    for name in ("drop", "composition", "within"):
        assert back[name]["value"] == pytest.approx(-there[name]["value"], abs=1e-15)
    total = there["composition"]["value"] + there["within"]["value"]
    assert abs(total - there["drop"]["value"]) < 1e-12
    assert abs(there["drop"]["value"] - (P.cell("top_1")["value"] - Q.cell("top_1")["value"])) < 1e-12


def test_equal_compositions_leave_everything_to_the_subgroups() -> None:
    found = drop_decomposition(report({1: (8, 2), 3: (9, 1)}), report({1: (4, 6), 3: (5, 5)}))
    assert found["composition"]["value"] == 0
    assert found["within"]["value"] == pytest.approx(0.4)


def test_a_subgroup_that_one_set_lacks_is_composition() -> None:
    found = drop_decomposition(report({1: (80, 20)}), report({1: (40, 10), 3: (10, 40)}))
    assert found["within"]["value"] == pytest.approx(0, abs=1e-15)
    assert found["composition"]["value"] == pytest.approx(0.8 - 0.5)
    assert [group["rate_p"] for group in found["groups"]] == [0.8, None]
    other = drop_decomposition(report({1: (40, 10), 3: (10, 40)}), report({1: (80, 20)}))
    assert other["covered"] == 0.5 and other["reweighted"]["value"] == 0.8


def test_the_intervals_are_those_of_two_independent_sets() -> None:
    found = drop_decomposition(P, Q)
    for name in ("drop", "composition", "within", "reweighted", "composition_share"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    spread = np.sqrt(0.75 * 0.25 / 120 + (7 / 12) * (5 / 12) / 120)
    assert found["drop"]["high"] - found["drop"]["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    same = drop_decomposition(P, P)  # equal seeds and rows, and still two sets
    assert same["drop"]["value"] == 0 and same["drop"]["high"] > 0.05
    assert same["composition_share"]["value"] is None  # no drop, no share of it


def test_no_share_has_bounds_where_the_drop_may_be_none() -> None:
    found = drop_decomposition(report({1: (8, 2), 2: (3, 2)}), report({1: (7, 3), 2: (6, 4)}))
    assert found["drop"]["low"] < 0 < found["drop"]["high"]
    assert found["composition_share"]["value"] is not None and found["composition_share"]["interval"] == "none"


def test_drops_of_all_metrics() -> None:
    found = drops(P, Q)
    for name in ("top_1", "real", "variable_top_k", "strict"):
        assert found[name]["value"] == pytest.approx(P.cell(name)["value"] - Q.cell(name)["value"])
    few = report({1: (80, 20), 2: (5, 5)})  # too few of k = 2: the mean is over k = 1 in both sets
    assert drops(few, Q)["asma"]["value"] == pytest.approx(0, abs=1e-15)
    both = report({1: (80, 20), 2: (30, 10)})
    assert drops(both, Q)["asma"]["value"] == pytest.approx(
        both.cell("asma")["value"] - Q.cell("asma")["value"], abs=1e-15
    )


def test_a_metric_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="metric 'asma': expected one of top_1"):
        drop_decomposition(P, Q, "asma")
    with pytest.raises(DataError, match="top_1 is not defined on both sets"):
        drop_decomposition(P, report({1: (1, 1)}, label=False))
    assert drop_decomposition(P, report({1: (8, 2)}, label=False), "real")["drop"]["value"] == pytest.approx(-0.05)
