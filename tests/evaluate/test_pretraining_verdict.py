from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offshelf.evaluate.pretraining_verdict import difference_interval, moved, pretraining_sentences, tenths


def probe(step: int, accuracy: float | None, n: int = 300, **others: Any) -> dict[str, Any]:
    return {
        "step": step,
        "knn_accuracy": accuracy,
        "linear_accuracy": accuracy,
        "chance": 0.25,
        "n": n,
        "n_groups": n,
        "feature_rank": 20.0,
        "feature_std": 0.5,
    } | others


def run(losses: list[float], probes: list[dict[str, Any]], status: str = "complete") -> dict[str, Any]:
    history = [{"step": 10 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
    return {"status": status, "training": {"of_steps": 800}, "history": history, "probes": probes}


FALLING = np.linspace(1.0, 0.5, 40).tolist()


def said(*arguments: Any) -> str:
    return " ".join(pretraining_sentences(run(*arguments)))


def test_the_papers_worked_difference() -> None:
    # Newcombe 1998, table II, example (a), method 10
    assert difference_interval(48 / 80, 80, 56 / 70, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = difference_interval(56 / 70, 70, 48 / 80, 80)
    assert (low, high) == pytest.approx((-0.3339, -0.0524), abs=5e-5)


def test_tenths() -> None:
    assert tenths(list(range(40))) == (1.5, 37.5, 4)
    assert tenths([3.0, 1.0]) == (3.0, 1.0, 1)


def test_a_loss_that_falls_rises_or_only_scatters() -> None:
    text = said(FALLING, [])
    assert "The loss fell from 0.9808 in the first tenth of the records to 0.5192 in the last" in text
    assert "(mean of 4 records" in text
    assert "The loss rose from 0.5192" in said(FALLING[::-1], [])
    noise = np.random.default_rng(0).normal(1, 0.1, 40).tolist()
    assert "cannot be told apart from its scatter" in said(noise, [])
    assert "recorded once: 0.7" in said([0.7], [])
    assert "No loss" in said([], [])


def test_a_scatter_without_trend_is_seldom_called_a_move() -> None:
    rng = np.random.default_rng(1)
    called = np.mean([moved(rng.normal(0, 1, 100).tolist()) for _ in range(1000)])
    assert 0.02 < called < 0.08  # about 5 % by its rule
    assert not moved([1.0, 0.0])
    assert moved([1.0, 0.9, 0.8, 0.7, 0.6])


def test_probes_against_the_start() -> None:
    text = said(FALLING, [probe(0, 0.4), probe(200, 0.5), probe(400, 0.6)])
    assert "Nearest-neighbour accuracy on 300 held-out pictures went from 0.400 at the start to 0.600 [" in text
    assert "at step 400 (always naming the commonest class reaches 0.250): the features became more useful" in text
    assert "a difference of +0.200 [+0.120, +0.276]" in text and "Linear accuracy on" in text
    assert "less useful, a difference of −0.200 [−0.276, −0.120]" in said(FALLING, [probe(0, 0.6), probe(400, 0.4)])


def test_what_cannot_be_told_apart_is_said() -> None:
    text = said(FALLING, [probe(0, 0.30), probe(400, 0.27)])
    assert text.count("cannot be told apart from no change") == 2
    assert text.count("cannot be told apart from naming the commonest class") == 2
    assert "useful" not in text
    # the same rates from fewer independent pictures: ten groups tell less than 300 pictures
    assert "more useful" in said(FALLING, [probe(0, 0.4), probe(400, 0.6)])
    few = said(FALLING, [probe(0, 0.4, n_groups=10), probe(400, 0.6, n_groups=10)])
    assert "300 held-out pictures of 10 groups" in few and "no change" in few


def test_without_labels_and_with_one_probe() -> None:
    unlabelled = [{"step": step, "feature_rank": 9.0 + step, "feature_std": 0.4, "drift": step} for step in (0, 1)]
    text = said(FALLING, unlabelled)
    assert "was not measured: there were no labelled pictures" in text
    assert "No collapse: the effective rank of the features is 10.0 (9.0 at the start)." in text
    assert "measured once" in said(FALLING, [probe(400, 0.6)])
    assert "not looked at while training" in said(FALLING, [])


def test_collapse_and_endings_come_first() -> None:
    flat = probe(400, 0.25, feature_rank=1.01, feature_std=0.001)
    sentences = pretraining_sentences(run(FALLING, [probe(0, 0.4), flat], "collapsed"))
    assert sentences[0] == "Stopped at step 400 of 800, because the features collapsed: do not use this backbone."
    assert "nearly the same for every picture" in sentences[1]
    assert not any("No collapse" in sentence for sentence in sentences)
    # seen in the numbers though the run went to its end
    assert "collapsed" in pretraining_sentences(run(FALLING, [probe(0, 0.4), flat]))[0]
    assert "unfinished training" in pretraining_sentences(run(FALLING, [probe(0, 0.4)], "stopped"))[0]
    lost = [probe(0, 0.4), probe(400, None, feature_rank=None, feature_std=None, drift=None)]
    assert "do not rely" in pretraining_sentences(run(FALLING, lost, "diverged"))[0]
    assert "no longer finite" in pretraining_sentences(run(FALLING, lost, "diverged"))[1]


def test_drift() -> None:
    assert "hardly moved from where they started (drift 0.004)" in said(FALLING, [probe(400, 0.5, drift=0.004)])
    assert "drift 0.400 (0 none, 1 unrelated)" in said(FALLING, [probe(400, 0.5, drift=0.4)])
    assert "drift" not in said(FALLING, [probe(400, 0.5)])
