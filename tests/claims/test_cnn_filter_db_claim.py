from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from claims import cnn_filter_db as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.errors import DataError

TINY = claim.Sizes(side=16, many=40, few=20, test=20, narrow=4, wide=8, steps=2, batch=8, seeds=(0, 1))


def cell(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


def made(name: str, n: int, seed: int) -> claim.Collection:
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    pictures = (random.integers(0, 100, (n, 3, 16, 16)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    return claim.Collection(name, pictures, labels, pictures[:16], labels[:16])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (cell(0.01, 0.03), cell(0.001, 0.02), SHOWN),
        (cell(0.01, 0.03), cell(0.0, 0.0), NOT_SHOWN),  # no layer degenerate anywhere shows nothing
        (cell(-0.03, -0.01), cell(0.001, 0.02), CONTRADICTED),
    ],
)
def test_the_claim_needs_both_parts(first: dict[str, float], second: dict[str, float], expected: str) -> None:
    verdict, parts = claim.verdict_of({"depth - collections": first, "wide, few - narrow, many": second})
    assert verdict == expected and len(parts) == 2


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_the_interval_is_student_s() -> None:
    found = claim.over_seeds([1.0, 2.0, 3.0])
    assert found["value"] == 2.0 and found["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert claim.over_seeds([0.5, 0.5, 0.5]) == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_every_network_has_a_random_start_of_its_own() -> None:
    starts = [claim.start_of(name, seed) for name in claim.COLLECTIONS for seed in claim.Sizes().seeds]
    assert len(set(starts)) == len(starts)
    one, again, other = (claim.network(8, 10, start) for start in (starts[0], starts[0], starts[1]))
    convolutions = [name for name, value in one.state_dict().items() if value.ndim == 4 and value.shape[-1] == 3]
    assert len(convolutions) == 11
    for name in convolutions:
        assert torch.equal(one.state_dict()[name], again.state_dict()[name])
        assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_there_are_enough_filters_in_every_third() -> None:
    sizes = {third: len(filters) for third, filters in claim.thirds(claim.network(64, 10, 0)).items()}
    assert sum(sizes.values()) == 120 + 1600 + 40 * 80 + 80 * 64 + 7 * 4096
    assert min(sizes.values()) >= 10_000  # below it a shift is mostly chance


def test_what_random_starts_show_by_themselves_is_taken_off() -> None:
    by_seed = {
        "thirds of depth": [0.5, 0.7],
        "collections": [0.2, 0.3],
        "thirds of depth of random starts": [0.4, 0.4],
        "random starts": [0.3, 0.2],
    }
    quality = {"wide, few": [{"degenerate": 0.5}] * 2, "narrow, many": [{"degenerate": 0.25}] * 2}
    found = claim.differences({"shifts": {"by_seed": by_seed}, "quality": quality})
    assert found["depth - collections"]["value"] == pytest.approx(0.2)  # (0.3 - 0.1 + 0.4 - 0.2) / 2
    assert found["wide, few - narrow, many"]["value"] == 0.25


def test_training_changes_every_filter_and_depends_on_the_seed() -> None:
    collection = made("small photographs", 24, 0)
    models = [claim.trained(collection, 4, seed, TINY) for seed in (0, 0, 1)]
    first = [model.layer1[0].conv1.weight for model in models]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], claim.network(4, 4, 0).layer1[0].conv1.weight)


def test_fewer_pictures_are_even_and_the_same_each_time() -> None:
    collection = made("small photographs", 40, 0)
    few = collection.fewer(20)
    assert np.bincount(few.train_labels).tolist() == [5] * 4
    assert np.array_equal(few.train, collection.fewer(20).train)
    assert np.array_equal(collection.fewer(40).train, collection.train)


def test_shifts_are_means_over_the_right_pairs() -> None:
    """Groups that differ by collection alone, then by depth alone."""
    random = np.random.default_rng(0)
    rows = {third: random.normal(size=(4000, 9)) for third in claim.THIRDS}
    stretched = {third: values * np.array([1, 1, 1, 1, 9, 1, 1, 1, 1]) for third, values in rows.items()}
    by_collection, by_depth = {}, {}
    for seed in (0, 1):
        for number, third in enumerate(claim.THIRDS):
            start = {claim.START + name: rows for name in ("a", "b")}
            for name, values in ({"a": rows, "b": stretched} | start).items():
                by_collection[(name, seed, third)] = values[third]
            for name in ("a", "b", *start):
                by_depth[(name, seed, third)] = (stretched if number == 2 else rows)[third]
    one = claim.shifts_of(by_collection)["by_seed"]
    two = claim.shifts_of(by_depth)["by_seed"]
    assert min(one["collections"]) > 10 * max(one["thirds of depth"])
    assert min(two["thirds of depth"]) > 10 * max(two["collections"])
    assert max(two["collections"]) == pytest.approx(0, abs=0.15)  # equal but for which filters were drawn
    assert len(one["collections"]) == 2
    pair = claim.shifts_of(by_collection)["by_pair"]
    assert len(pair["seeds, the same collection"]) == 1
    assert max(one["random starts"]) < 0.1 * min(one["collections"])


def test_a_whole_measurement_on_made_pictures() -> None:
    collections = [made(name, 40, seed) for seed, name in enumerate(claim.COLLECTIONS)]
    result = claim.compare(collections, TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert {cell: len(found) for cell, found in told["quality"].items()} == dict.fromkeys(
        ("wide, many", "wide, few", "narrow, many", "narrow, few"), 2
    )
    assert told["transfer"]["n"] == 8 and len(told["accuracy"]["written digits"]) == 2
    assert len(result["table"]["rows"]) == 5 + 1 + 1 + 12 + 1
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "shift between thirds of depth" in markdown(result | shared)


@pytest.mark.parametrize("name", ["chest X-rays", "written characters"])
def test_the_real_collections(name: str) -> None:
    try:
        found = claim.load_collection(name, claim.Sizes(many=60, test=30, side=8))
    except DataError as error:
        pytest.skip(str(error))
    assert found.train.shape[1:] == (3, 8, 8) and set(found.test_labels) <= set(found.train_labels)
    assert found.classes == {"chest X-rays": 3, "written characters": 161}[name]
    if name == "written characters":
        assert (len(found.train), len(found.test)) == (161 * 16, 161 * 4)
