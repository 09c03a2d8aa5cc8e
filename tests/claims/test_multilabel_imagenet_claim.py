from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claims import multilabel_imagenet as claim
from claims.cifar import Pictures
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.imagenet_drop import FILES, Accuracies, family, published_drop, read_accuracies
from claims.table import markdown
from offshelf.errors import DataError

TINY = claim.Sizes(train=64, test=60, test_split=200, spare=0, epochs=1, batch=16, seeds=(0, 1))
# (low, high) of an interval that shows each part.
GOOD = {"top_1": (0.08, 0.12), "real": (-0.05, 0.02), "variable_top_k": (-0.02, 0.02), "share": (0.85, 1.2),
        "second": (0.3, 0.4)}  # fmt: skip


def numbers(**changes: tuple[float, float]) -> dict[str, Any]:
    cells = {name: {"low": low, "high": high} for name, (low, high) in (GOOD | changes).items()}
    return {"drops": cells, "composition_share": cells["share"], "second_answer": cells["second"]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, SHOWN),
        ({"top_1": (0.04, 0.12)}, NOT_SHOWN),
        ({"top_1": (0.01, 0.04)}, CONTRADICTED),
        ({"real": (0.01, 0.04)}, NOT_SHOWN),
        ({"real": (0.04, 0.06)}, CONTRADICTED),
        ({"variable_top_k": (0.02, 0.03)}, NOT_SHOWN),  # touching the bound is not below it
        ({"variable_top_k": (-0.3, -0.2)}, SHOWN),  # a rise is no drop
        ({"share": (0.5, 0.79)}, CONTRADICTED),
        ({"share": (0.7, 0.9)}, NOT_SHOWN),
        ({"second": (0.05, 0.2)}, NOT_SHOWN),
        ({"second": (0.05, 0.1)}, CONTRADICTED),
    ],
)
def test_the_claim_needs_all_its_parts(changes: dict[str, tuple[float, float]], expected: str) -> None:
    verdict, parts = claim.verdict_of(numbers(**changes))
    assert verdict == expected
    assert list(parts.values()).count(SHOWN) == 5 - (expected != SHOWN)


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())
    assert (claim.FALLS, claim.STAYS, claim.COMPOSED, claim.GUESSED) == (0.05, 0.03, 0.8, 1 / 9)


def test_the_two_sets_have_the_shares_of_the_paper_and_fit_the_pool() -> None:
    sizes = claim.Sizes()
    p, q = sizes.counts(sizes.several_p), sizes.counts(sizes.several_q)
    assert p == {1: 2520, 2: 288, 3: 120, 4: 72}
    assert q == {1: 1560, 2: 864, 3: 360, 4: 216}
    assert sum(k * n for k, n in p.items()) + sum(k * n for k, n in q.items()) < sizes.test_split + sizes.spare
    assert min(p.values()) >= 30  # so that all subgroups count in ASMA


def made(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 10
    noise = np.random.default_rng(0).integers(0, 40, (n, 3, 32, 32))
    return (noise + 20 * labels[:, None, None, None]).astype(np.uint8), labels


def test_what_is_trained_on_is_not_pasted() -> None:
    loaded = Pictures(*made(100), *made(50))
    sizes = claim.Sizes(train=60)
    found = claim.apart(loaded, sizes)
    assert np.bincount(found.train_labels).tolist() == [6] * 10
    assert len(found.test) == len(found.test_labels) == 90
    seen = {picture.tobytes() for picture in found.train}
    assert len(seen) == 60 and not seen & {picture.tobytes() for picture in found.test[50:]}
    assert {picture.tobytes() for picture in loaded.train} == seen | {picture.tobytes() for picture in found.test[50:]}


def test_no_picture_is_in_both_sets() -> None:
    p, q = claim.made_sets(Pictures(*made(20), *made(200)), TINY)
    used = [made.sources[made.sources >= 0] for made in (p, q)]
    assert not set(used[0]) & set(used[1])
    assert [len(set(one)) for one in used] == [len(one) for one in used]
    assert (q.label_sets.sum(axis=1) > 1).sum() == 28 and (p.label_sets.sum(axis=1) > 1).sum() == 9


def test_the_second_answer_counts_pairs_whose_first_answer_is_valid() -> None:
    table = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
    scores = np.array([[4, 3, 2, 1], [4, 2, 3, 1], [2, 3, 4, 1], [4, 3, 2, 1], [4, 3, 2, 1]])
    assert claim.second_answer([scores, scores], table, n_boot=50).value == 0.5  # one of two; the third is out
    random = np.random.default_rng(0)
    many = np.zeros((9000, 10), dtype=bool)
    many[:, :2] = True
    guessed = claim.interval(claim.second_answer([random.random((9000, 10))], many, n_boot=200))
    assert guessed["low"] < 1 / 9 < guessed["high"]


def test_a_whole_measurement_on_made_pictures() -> None:
    found = claim.compare(Pictures(*made(64), *made(200)), TINY)
    drop, parts = found["drops"]["top_1"]["difference"], found["parts"]
    assert parts["composition"]["difference"] + parts["within"]["difference"] == pytest.approx(drop, abs=1e-12)
    assert np.mean(found["by_seed"]["top_1"]) == pytest.approx(drop)
    levels = found["levels"]
    assert levels["top_1 on P"]["value"] - levels["top_1 on Q"]["value"] == pytest.approx(drop)
    assert levels["real on Q"]["value"] >= levels["top_1 on Q"]["value"]
    result = claim.record(found, TINY)
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "top-1 drops by" in markdown(result | shared)


def test_families_are_the_letters_of_the_architecture() -> None:
    names = ["resnet50.tv_in1k", "tf_efficientnet_b0.ns_jft_in1k", "vit_base_patch16_224.augreg", "gluon_resnet18_v1b"]
    assert [family(name) for name in names] == ["resnet", "efficientnet", "vit", "resnet"]


def write(folder: Path, **tables: list[tuple[str, int, float]]) -> Path:
    for name, rows in tables.items():
        with (folder / FILES[name]).open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["model", "img_size", "top1", "top5"])
            writer.writerows([*row, 99.0] for row in rows)
    return folder


def test_tables_are_joined_at_the_smallest_size_that_all_have(tmp_path: Path) -> None:
    write(
        tmp_path,
        v1=[("a1.x", 224, 80.0), ("a1.x", 288, 81.0), ("b.x", 224, 70.0), ("only", 224, 50.0)],
        real=[("a1.x", 288, 86.0), ("b.x", 224, 78.0), ("a1.x", 224, 85.5)],
        v2=[("b.x", 224, 57.0), ("a1.x", 288, 71.0)],
    )
    table = read_accuracies(tmp_path)
    assert (table.models, table.families) == (["a1.x", "b.x"], ["a", "b"])
    assert [column.tolist() for column in table[2:]] == [[81.0, 70.0], [86.0, 78.0], [71.0, 57.0]]
    write(tmp_path, v2=[("c", 224, 57.0)])
    with pytest.raises(DataError, match="no network stands in all of results-imagenet.csv"):
        read_accuracies(tmp_path)


def test_the_published_drop_worked_by_hand_and_against_least_squares() -> None:
    v1, real, v2 = np.array([80.0, 70, 75, 85]), np.array([85.0, 77, 81, 88]), np.array([70.0, 58, 63, 77])
    found = published_drop(Accuracies(["a", "a2", "b", "c"], ["a", "a", "b", "c"], v1, real, v2), n_boot=300)
    assert (found["n"], found["families"]) == (4, 3)
    drop, gain = v1 - v2, real - v1  # 10 12 12 8 and 5 7 6 3
    assert (found["drop"]["value"], found["drop"]["least"], found["drop"]["most"]) == (10.5, 8, 12)
    assert found["gain"]["value"] == 5.25
    assert found["valid_v1"]["value"] == pytest.approx((5 / 20 + 7 / 30 + 6 / 25 + 3 / 15) / 4)
    assert found["valid_needed"]["value"] == pytest.approx((15 / 30 + 19 / 42 + 18 / 37 + 11 / 23) / 4)
    slope, _ = np.polyfit(gain, drop, 1)
    assert found["slope"]["value"] == pytest.approx(slope)
    assert found["explained"]["value"] == pytest.approx(np.corrcoef(gain, drop)[0, 1] ** 2)
    both = np.linalg.lstsq(np.column_stack([gain, v1, np.ones(4)]), drop, rcond=None)[0]
    assert found["slope_at_equal_accuracy"]["value"] == pytest.approx(both[0])


def test_families_are_drawn_whole() -> None:
    random = np.random.default_rng(0)
    base = random.normal(0, 2, 30)
    v1 = np.repeat(80 + base, 10)
    v2 = np.repeat(70 + base + random.normal(0, 1, 30), 10)
    real = v1 + random.normal(5, 0.5, 300)
    names = [f"{chr(97 + i // 10 // 26)}{chr(97 + i // 10 % 26)}{i}" for i in range(300)]
    wide, narrow = (
        published_drop(Accuracies(names, families, v1, real, v2), n_boot=500)["drop"]
        for families in ([family(name) for name in names], names)
    )
    assert (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"]) == pytest.approx(np.sqrt(10), rel=0.2)


def test_the_published_tables_say_what_was_counted(real_data: Path) -> None:
    table = read_accuracies(real_data / "timm-results")
    found = published_drop(table, n_boot=20)
    assert found["n"] == 1266
    assert [round(found["drop"][key], 2) for key in ("value", "least", "most")] == [10.85, 7.15, 15.87]
    assert [round(found["gain"][key], 1) for key in ("value", "least", "most")] == [5.2, 1.1, 8.1]
    row = table.models.index("resnet50.tv_in1k")
    assert [round(float(column[row]), 2) for column in table[2:]] == [76.16, 82.97, 63.19]
