from __future__ import annotations

from typing import Any

import pytest

from offshelf.evaluate.evaluation_verdict import sentences, shown_drop


def cell(value: float | None, low: float | None = None, high: float | None = None, n: int = 40) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "interval": "bootstrap" if low is not None else "none"}


DATA = {"source": "new/", "fingerprint": "a", "bad_files": [], "n": 40, "unlabelled": 0, "groups": 20,
        "class_counts": {"cat": 20, "dog": 20}}  # fmt: skip


def one_label(score: dict[str, Any], **changes: Any) -> list[str]:
    results = {
        "data": DATA,
        "evaluated": {"fingerprint": "b", "balanced_accuracy": None},
        "metrics": {"balanced_accuracy": score},
        "baselines": {"chance": 0.5},
    }
    return sentences(results | changes)


def test_a_score_is_compared_with_chance() -> None:
    assert one_label(cell(0.8, 0.7, 0.9)) == ["Balanced accuracy 0.800 [0.700, 0.900] on 40 pictures (chance 0.500)."]
    assert one_label(cell(0.6, 0.5, 0.7))[0].endswith("This cannot be told from chance.")
    assert "do not rely" in one_label(cell(0.6))[0]


def test_what_a_reader_must_know_is_said() -> None:
    told = one_label(
        cell(0.8, 0.7, 0.9),
        data=DATA | {"fingerprint": "b", "bad_files": [{}], "unlabelled": 3, "groups": None,
                     "class_counts": {"cat": 40, "dog": 0}},
        evaluated={"fingerprint": "b", "balanced_accuracy": cell(0.9, 0.8, 1.0)},
    )  # fmt: skip
    assert told[1:] == [
        "On the pictures that the run itself was tested on: 0.900 [0.800, 1.000].",
        "No picture of dog.",
        "These are, byte for byte, the pictures and labels that the run was made from: it has trained on them, and the "
        "numbers say nothing about new ones.",
        "1 of 40 pictures could not be read and were left out.",
        "3 pictures do not say what is right for them and were left out.",
        "No group column: if several pictures come from one patient or site, the intervals are too narrow.",
    ]


def label_sets(top_1: dict[str, Any], against: dict[str, Any] | None = None) -> list[str]:
    rows = [("top_1", top_1), ("real", cell(0.8, 0.7, 0.9)), ("variable_top_k", cell(0.75, 0.7, 0.8))]
    results: dict[str, Any] = {
        "data": DATA,
        "evaluated": {"fingerprint": "b", "balanced_accuracy": None},
        "multilabel": {
            "n": 40,
            "empty": 2,
            "label_counts": {"1": 30, "2": 10},
            "rows": [{"metric": name, "k": None, **value} for name, value in rows],
        },
    }
    return sentences(results | ({"against": against} if against else {}))


def test_sets_of_valid_labels_in_words() -> None:
    assert label_sets(cell(0.6, 0.5, 0.7)) == [
        "Against the one label, top-1 is 0.600 [0.500, 0.700]; any valid label counted, 0.800 [0.700, 0.900].",
        "10 of 40 pictures (25%) have several valid labels. Of a picture's k valid labels the first k answers hold "
        "0.750 [0.700, 0.800].",
        "2 pictures have no valid label at all and count nowhere.",
    ]
    assert "there is no one label for top-1" in label_sets(cell(None))[0]


def test_a_drop_in_words() -> None:
    split = {
        "drop": cell(0.1, 0.05, 0.15),
        "composition_share": cell(0.9, 0.8, 1.1),
        "reweighted": cell(0.59, 0.5, 0.65),
    }
    against = {
        "data": DATA | {"source": "other/"},
        "drops": {"real": cell(-0.02, -0.05, 0.01), "variable_top_k": cell(0.0)},
        "decomposition": {"top_1": split},
    }
    told = label_sets(cell(0.6, 0.5, 0.7), against)
    assert told[1] == (
        "Top-1 is 0.100 [0.050, 0.150] lower on other/. Other shares of pictures with one, two, ... valid labels make "
        "up 0.900 [0.800, 1.100] of that (1 is all of it); with the shares of new/ it would be 0.590 [0.500, 0.650] "
        "there."
    )
    assert told[2] == ("On the same two sets ReaL is 0.020 [-0.010, 0.050] higher; variable top-k is the same.")
    split["composition_share"] = cell(0.9)
    assert label_sets(cell(0.6, 0.5, 0.7), against)[1].endswith("That cannot be told from no change.")


@pytest.mark.parametrize(
    ("drop", "words"), [(cell(0.1), "0.100 lower"), (cell(-0.1), "0.100 higher"), (cell(1e-17), "the same")]
)
def test_a_drop_without_bounds(drop: dict[str, Any], words: str) -> None:
    assert shown_drop(drop) == words
