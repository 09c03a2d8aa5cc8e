from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from claims import off_the_shelf as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, read
from claims.table import markdown
from offshelf.data.columns import image_column
from offshelf.data.samples import as_samples


def cell(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


# ---- the rule ----


def differences(*means: dict[str, float]) -> dict[str, list[dict[str, float]]]:
    return {f"{a} - {b}": [cell(9, 9, 9), mean] for (a, b), mean in zip(claim.PARTS, means, strict=True)}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (cell(0.1, 0.001, 0.2), SHOWN),
        (cell(0.1, 0.0, 0.2), NOT_SHOWN),  # touching 0 is not above it
        (cell(-0.1, -0.2, 0.0), NOT_SHOWN),
        (cell(-0.1, -0.2, -0.001), CONTRADICTED),
    ],
)
def test_the_claim_is_shown_only_when_all_four_parts_are(last: dict[str, float], expected: str) -> None:
    good = cell(0.1, 0.05, 0.2)
    verdict, parts = claim.verdict_of(differences(good, good, good, last))
    assert verdict == expected
    assert list(parts.values()) == [SHOWN, SHOWN, SHOWN, expected]


def test_one_contradiction_outweighs_three_parts_shown_or_open() -> None:
    good, open_, bad = cell(0.1, 0.05, 0.2), cell(0.0, -0.1, 0.1), cell(-0.1, -0.2, -0.05)
    assert claim.verdict_of(differences(good, bad, open_, good))[0] == CONTRADICTED
    assert claim.verdict_of(differences(good, good, open_, good))[0] == NOT_SHOWN


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


# ---- intervals ----


def test_replicates_against_a_slow_loop() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 40)
    groups = random.integers(0, 12, 40)
    answers = {name: random.integers(0, 3, (3, 40)) for name in "ab"}
    found = claim.measured(labels, groups, answers, 3, seed=5, n_boot=50)

    codes = claim.group_codes(groups, 40)
    drawn_seeds = np.random.default_rng([5, 7]).integers(3, size=(50, 3))
    draws = np.random.default_rng(5).integers(codes.max() + 1, size=(50, codes.max() + 1))
    for name, predictions in answers.items():
        for b in range(50):
            rows = np.concatenate([np.flatnonzero(codes == group) for group in draws[b]])
            accuracies = [
                np.mean([(predictions[s][rows][labels[rows] == k] == k).mean() for k in np.unique(labels[rows])])
                for s in drawn_seeds[b]
            ]
            assert found[name].replicates[b] == pytest.approx(np.mean(accuracies), abs=1e-12)
        plain = [np.mean([(p[labels == k] == k).mean() for k in range(3)]) for p in predictions]
        np.testing.assert_allclose(found[name].by_seed, plain)
        assert found[name].value == pytest.approx(np.mean(plain))


def test_equal_answers_differ_by_nothing_and_the_last_cell_is_the_mean_over_tasks() -> None:
    a = claim.Measured(np.array([0.6, 0.8]), np.array([0.6, 0.7, 0.8]))
    b = claim.Measured(np.array([0.5, 0.5]), np.array([0.4, 0.5, 0.6]))
    tasks = [{"x": a, "y": b}, {"x": b, "y": b}]
    same = claim.over_tasks(tasks, "y", "y")
    assert same == [cell(0.0, 0.0, 0.0)] * 3
    first, second, mean = claim.over_tasks(tasks, "x", "y")
    assert first["value"] == pytest.approx(0.2)
    assert second == cell(0.0, 0.0, 0.0)
    assert mean == pytest.approx(cell(0.1, 0.1, 0.1))  # the replicates differ by 0.2 and 0 throughout


# ---- rows ----


def test_subsample_is_stratified_keeps_groups_whole_and_hangs_on_the_seed() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], [300, 100])
    groups = np.where(random.random(400) < 0.5, random.integers(0, 60, 400), 1000 + np.arange(400))
    rows = claim.subsample(labels, groups, 200, seed=0)
    assert len(set(rows)) == len(rows)
    taken = np.bincount(labels[rows])
    assert taken[0] <= 150 and taken[1] <= 50
    assert taken.sum() >= 180
    assert not set(groups[rows]) & set(np.delete(groups, rows))
    np.testing.assert_array_equal(rows, claim.subsample(labels, groups, 200, seed=0))
    assert set(rows) != set(claim.subsample(labels, groups, 200, seed=1))
    np.testing.assert_array_equal(claim.subsample(labels, groups, 400, seed=0), np.arange(400))


def test_groups_are_read_from_names() -> None:
    assert claim.shots("glass354.jpg") == "glass 70"
    assert claim.shots("glass355.jpg") == claim.shots("glass359.jpg") == "glass 71"
    farmers = {f"emoji_u{who}_200d_1f33e.png" for who in ("1f468", "1f469", "1f9d1")}
    assert {claim.variant(name) for name in farmers} == {"person 1f33e"}
    assert claim.variant("emoji_u1f33e.png") == "1f33e"
    assert claim.variant("emoji_u1f9d9_200d_2640.png") == claim.variant("emoji_u1f9d9.png") == "1f9d9"
    assert claim.variant("emoji_u1f468.png") == "person"


def small_dataset(splits: list[str], labels: list[int], names: list[str]) -> datasets.Dataset:
    n = len(labels)
    columns = {"image": image_column([b"x"] * n, [None] * n), "label": labels, "split": splits}
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column("label", datasets.ClassLabel(names=names)).cast_column(
        "image", datasets.Image(decode=False)
    )


def test_small_classes_and_straddling_training_rows_are_left_out() -> None:
    splits = ["train"] * 46 + ["test"] * 3
    labels = [0] * 20 + [1] * 5 + [2] * 21 + [0, 1, 2]
    groups: list[Any] = [f"g{i}" for i in range(48)] + ["g45"]  # the last test row shares a group with a training row
    task = claim.make_task("x", small_dataset(splits, labels, ["a", "b", "c"]), groups)
    assert task.classes == ["a", "c"]
    assert task.dropped == {"b": 5}
    assert task.straddling == 1
    assert np.bincount(task.labels[task.train]).tolist() == [20, 20]
    assert task.labels[task.test].tolist() == [0, 1]
    assert not set(task.groups[task.train]) & set(task.groups[task.test])
    assert len(task.samples) == len(task.labels) == 42


# ---- classical features ----


def gradient_picture(horizontal: bool) -> np.ndarray:
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 8, (16, 1))
    return np.stack([ramp if horizontal else ramp.T] * 3)[None]


def test_hog_of_ramps() -> None:
    across = claim.hog(gradient_picture(True)).reshape(4, 9)
    # one direction, as much in each of the four cells: four equal numbers of length 1, clipped at 0.2 and scaled again
    assert across.shape == (4, 9)
    np.testing.assert_allclose(across[:, 0], 0.5, atol=1e-3)
    assert np.abs(across[:, 1:]).max() == 0
    down = claim.hog(gradient_picture(False)).reshape(4, 9)  # 90 degrees lies between the bins of 80 and 100
    np.testing.assert_allclose(down[:, 4], down[:, 5], atol=1e-4)
    np.testing.assert_allclose(down[:, 4], np.sqrt(1 / 8), atol=1e-3)
    assert np.abs(np.delete(down, [4, 5], axis=1)).max() < 1e-4


def test_hog_of_a_flat_picture_is_zero_and_of_a_negative_the_same() -> None:
    assert np.abs(claim.hog(np.full((1, 3, 16, 16), 77, np.uint8))).max() == 0
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(claim.hog(noise), claim.hog(255 - noise), atol=1e-5)  # directions are unsigned
    assert claim.hog(noise).shape == (2, 3 * 3 * 36)


def test_hog_against_a_slow_writing_of_one_cell() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)
    x = np.pad(noise[0] / 255.0, ((0, 0), (1, 1), (1, 1)), mode="edge")
    cells = np.zeros((2, 2, 9))
    for r in range(16):
        for c in range(16):
            steps = [(x[k, r + 1, c + 2] - x[k, r + 1, c], x[k, r + 2, c + 1] - x[k, r, c + 1]) for k in range(3)]
            dx, dy = max(steps, key=lambda step: np.hypot(*step))
            degrees = np.degrees(np.arctan2(dy, dx)) % 180
            for k in range(9):
                away = min(abs(degrees - 20 * k), 180 - abs(degrees - 20 * k))
                cells[r // 8, c // 8, k] += np.hypot(dx, dy) * max(0, 1 - away / 20)
    block = cells.reshape(-1)
    block = np.minimum(block / np.sqrt((block**2).sum() + 1e-6), 0.2)
    np.testing.assert_allclose(claim.hog(noise)[0], block / np.sqrt((block**2).sum() + 1e-6), atol=1e-5)


# ---- retrieval ----


def test_search_leaves_the_query_out_and_ranks_by_distance() -> None:
    points = np.array([[0.0], [1.0], [3.0], [7.0]])[:, None, :]
    truth = np.array([0, 1, 0, 1])
    # 0: others at 1, 3, 7 -> relevant second; 1: 0, 3, 7 -> third; 3: 1, 0, 7 -> second; 7: 3, 1, 0 -> second
    np.testing.assert_allclose(claim.search(points, points, truth), [1 / 2, 1 / 3, 1 / 2, 1 / 2])


def test_patch_features_are_unit_length_and_the_first_is_the_whole_picture() -> None:
    from offshelf.transfer.deep_features import DeepFeatures

    pictures = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    found = claim.patch_features(as_samples(pictures), "test_resnet.random")
    assert found.shape[:2] == (3, 5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    whole = DeepFeatures("test_resnet.random").fit_transform(pictures)
    np.testing.assert_allclose(found[:, 0], whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)


# ---- the arms, small ----


def test_arms_see_the_drawn_training_rows_only() -> None:
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    pixels = random.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    table = random.normal(size=(60, 8)).astype(np.float32) + labels[:, None]
    views = claim.Views(table, np.tile(table, 16), [table], claim.hog(pixels), table, pixels, None)
    task: Any = SimpleNamespace(labels=labels, groups=np.arange(60), train=np.arange(40), test=np.arange(40, 60))
    found = claim.answer(task, views, seed=0, number=0, epochs=1)
    assert set(found) == {*claim.ARMS, "rows"}
    assert found["rows"] == {"train": 40, "groups": 40}
    assert all(found[arm]["predictions"].shape == (20,) for arm in claim.ARMS)
    assert (found["features"]["predictions"] == labels[40:]).mean() > 0.7
    # other test rows change nothing that was chosen, and no answer on the rows that stay
    changed = table.copy()
    changed[50:] = 99.0
    views = claim.Views(changed, np.tile(changed, 16), [changed], views.hog, changed, pixels, None)
    again = claim.answer(task, views, seed=0, number=0, epochs=1)
    for arm in claim.ARMS:
        assert again[arm].get("C") == found[arm].get("C")
        np.testing.assert_array_equal(again[arm]["predictions"][:10], found[arm]["predictions"][:10])


# ---- the data and the kept result ----


def test_real_data_have_the_stated_rows(real_data: Path) -> None:
    xray, waste, emoji = claim.load_tasks()
    assert (len(xray.train), len(xray.test), len(xray.classes)) == (705, 192, 3)
    assert (len(waste.train), len(waste.test), len(waste.classes)) == (1256, 350, 6)
    assert (len(emoji.test), len(emoji.classes), emoji.dropped) == (276, 8, {"Flags": 5})
    assert len(emoji.train) == 1112 - emoji.straddling
    for task in (xray, waste, emoji):
        assert not set(task.groups[task.train]) & set(task.groups[task.test])
        drawn = claim.subsample(task.labels[task.train], task.groups[task.train], claim.MOST_ROWS, 0)
        assert 540 <= len(drawn) <= claim.MOST_ROWS


def test_the_kept_result_agrees_with_its_numbers() -> None:
    kept = read(claim.SLUG)
    if kept is None:
        pytest.skip("no kept result of this claim yet")
    assert kept["version"] == claim.VERSION, "numbers of another version: run python -m claims off-the-shelf"
    assert kept["rule"] == claim.RULE
    numbers = kept["numbers"]
    verdict, parts = claim.verdict_of(numbers["differences"])
    assert (kept["verdict"], kept["parts"]) == (verdict, parts)
    for key, cells in numbers["differences"].items():
        a, b = key.split(" - ")
        values = [numbers["arms"][a][task]["value"] - numbers["arms"][b][task]["value"] for task in numbers["arms"][a]]
        np.testing.assert_allclose([c["value"] for c in cells], values, atol=1e-9)
        assert all(c["low"] <= c["value"] <= c["high"] for c in cells)
    for arm, by_task in numbers["by_seed"].items():
        for task, by_seed in by_task.items():
            assert len(by_seed) == len(claim.SEEDS)
            assert np.mean(by_seed) == pytest.approx(numbers["arms"][arm][task]["value"])
    rebuilt = claim.record({k: v for k, v in numbers.items() if k != "backbone"}, numbers["backbone"])
    for key in ("sentence", "setting", "table", "notes"):
        assert kept[key] == rebuilt[key], key
    assert all(len(row) == len(kept["table"]["header"]) for row in kept["table"]["rows"])
    assert kept["verdict"] in markdown(kept)
