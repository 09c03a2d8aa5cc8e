"""Short cuts, label errors and origins: planted ones are found, and the clean twin raises nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.data.sources import open_dataset
from offshelf.evaluate.audit.balance import balance
from offshelf.evaluate.audit.fingerprints import fingerprints
from offshelf.evaluate.audit.ground import Ground, ground_of
from offshelf.evaluate.audit.label_errors import (
    confident_joint,
    contradicted_when_sure,
    estimated_joint,
    label_errors,
    suspected,
    thresholds,
)
from offshelf.evaluate.audit.more_labels import doubled_gain, more_labels
from offshelf.evaluate.audit.origins import cramers_v, guesses, name_form, origins
from offshelf.evaluate.audit.overall import overall
from offshelf.evaluate.audit.shortcuts import shortcuts
from offshelf.evaluate.audit.study import audit_results
from tests.evaluate.audit.planted import BACKBONE, CLASSES, material_of, scene, write

FLIPS_RECALL, FLIPS_PRECISION = 0.8, 0.7  # of labels exchanged on data that the probe separates


def ground(root: Path) -> Ground:
    found = ground_of(material_of(root)[0])
    assert isinstance(found, Ground)
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clean") / "pictures", 60)


def test_the_clean_twin_raises_no_alarm(clean: Path) -> None:
    results = audit_results(open_dataset(clean), "clean", BACKBONE)
    levels = {check["key"]: check["level"] for check in results["checks"]}
    assert "alarm" not in levels.values() and results["level"] != "alarm", levels
    assert {
        key: levels[key] for key in ("files", "near_duplicates", "leaks", "balance", "fingerprints")
    } == dict.fromkeys(("files", "near_duplicates", "leaks", "balance", "fingerprints"), "fine")
    assert levels["label_errors"] == "fine" and levels["shortcuts"] in ("fine", "warning")


def corner(picture: np.ndarray, kind: int, number: int) -> np.ndarray:
    """A coloured mark in a corner, another colour for each class."""
    picture = picture.copy()
    picture[1:9, 1:9] = [(220, 30, 30), (30, 200, 30), (40, 40, 220)][kind]
    return picture


def test_a_corner_mark_by_class_is_a_short_cut(tmp_path: Path) -> None:
    told = shortcuts(ground(write(tmp_path / "pictures", 60, change=corner)))
    assert told["level"] == "alarm"
    rows = {row["name"]: row for row in told["rows"]}
    assert rows["border"]["level"] == "alarm" and rows["border"]["retained"] > 0.8
    assert rows["border"]["score"]["low"] > 0.8


def test_brightness_by_class_is_a_fingerprint(tmp_path: Path) -> None:
    def light(picture: np.ndarray, kind: int, number: int) -> np.ndarray:
        return (picture * 0.6 + 45 * kind).clip(0, 255).astype(np.uint8)

    told = _fingerprints(write(tmp_path / "pictures", 60, change=light))
    assert told["level"] == "alarm" and told["levels"] == {"file": "fine", "light": "alarm"}
    assert told["rows"][0]["trait"] in ("brightness", "brightness of the border")
    assert told["light"]["low"] > 0.85


def test_size_by_class_is_a_fingerprint(tmp_path: Path) -> None:
    def size(picture: np.ndarray, kind: int, number: int) -> np.ndarray:
        side = 64 + 8 * (kind == 2) + number % 3
        return np.asarray(Image.fromarray(picture).resize((side, 64 + number % 3)))

    told = _fingerprints(write(tmp_path / "pictures", 60, change=size))
    assert told["level"] == "alarm" and told["levels"]["file"] == "alarm" and told["levels"]["light"] != "alarm"
    assert told["rows"][0]["trait"] in ("width", "aspect ratio")
    # Bars and discs share their sizes, rings are apart: two thirds are told.
    assert told["file"]["value"] == pytest.approx(2 / 3, abs=0.1)
    assert told["ranges"]["sizes"] == 6


def _fingerprints(root: Path) -> dict:  # type: ignore[type-arg]
    found = ground(root)
    return fingerprints(found.material.looks, found)


def test_exchanged_labels_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", 80)
    draws = np.random.default_rng(1)
    flipped = set()
    lines = ["path,label"]
    for kind, name in enumerate(CLASSES):
        wrong = draws.choice(80, 8, replace=False)  # 10 %
        for number in range(80):
            path = f"{name}/{kind * 80 + number:04d}.png"
            given = CLASSES[(kind + 1 + number % 2) % 3] if number in wrong else name
            lines.append(f"{path},{given}")
            if number in wrong:
                flipped.add(path)
    (root / "table.csv").write_text("\n".join(lines))
    told = label_errors(ground(root / "table.csv"))
    found = {one["path"] for one in told["suspects"]}
    assert len(found & flipped) / len(flipped) >= FLIPS_RECALL
    assert len(found & flipped) / len(found) >= FLIPS_PRECISION
    assert told["level"] == "alarm" and told["sure"]["n"] == 60
    assert told["estimated"] == pytest.approx(24, abs=8)
    kinds = {name: kind for kind, name in enumerate(CLASSES)}
    right = [one["suggested"] == one["path"].split("/")[0] for one in told["suspects"] if one["path"] in flipped]
    assert np.mean(right) > 0.9 and set(kinds) >= {one["label"] for one in told["suspects"]}
    assert told["suspects"][0]["thumbnail"]


def test_hard_pictures_are_not_called_wrong(clean: Path) -> None:
    """Classes that overlap, with labels as they should be; then with one in ten exchanged."""
    material = material_of(clean)[0]
    draws = np.random.default_rng(0)
    n = len(material)
    centres = 1.8 * np.eye(3)[material.labels]
    mixed = np.concatenate([centres, np.zeros((n, 2))], axis=1) + draws.normal(size=(n, 5))
    found = ground_of(replace(material, features=mixed.astype(np.float32)))
    assert isinstance(found, Ground)
    told = label_errors(found)
    assert told["level"] == "fine" and told["share"] > 0.03 and told["score"]["value"] < 0.9
    wrong = draws.random(n) < 0.12
    labels = np.where(wrong, (material.labels + draws.integers(1, 3, n)) % 3, material.labels)
    found = ground_of(replace(material, features=mixed.astype(np.float32), labels=labels))
    assert isinstance(found, Ground)
    assert label_errors(found)["level"] == "alarm"


def test_what_is_contradicted_among_the_surest_by_hand() -> None:
    labels, predicted = np.array([0, 1, 0, 1, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0, 1, 1])
    p = np.array([0.7, 0.99, 0.98, 0.6, 0.9, 0.8, 0.55, 0.65])
    told = contradicted_when_sure(labels, predicted, np.stack([p, 1 - p], axis=1))
    assert told["n"] == 2 and told["value"] == 0.5  # rows 1 and 2, of which 1 is contradicted
    assert (round(told["low"], 3), round(told["high"], 3)) == (0.095, 0.905)  # Wilson, 1 of 2


def test_confident_joint_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([0.9, 0.8, 0.1, 0.3, 0.2, 0.85])
    both = np.stack([p, 1 - p], axis=1)
    # Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6; class 1 (0.7 + 0.8 + 0.15) / 3 = 0.55.
    assert thresholds(labels, both) == pytest.approx([0.6, 0.55])
    assert confident_joint(labels, both).tolist() == [[2, 1], [1, 2]]
    assert estimated_joint(labels, both) == pytest.approx(np.array([[2, 1], [1, 2]]) / 6)
    assert suspected(labels, both) == [(2, 1), (5, 0)]  # margins -0.8 and -0.7


def test_the_estimated_number_is_named_where_thresholds_are_too_strict() -> None:
    labels = np.array([0] * 6 + [1] * 6)
    p = np.array([0.95] * 3 + [0.4, 0.05, 0.05] + [0.05] * 5 + [0.45])
    both = np.stack([p, 1 - p], axis=1)
    # Thresholds 0.558 and 0.883: row 3 reaches neither with 0.4 and 0.6, nor does row 11 with 0.45 and 0.55.
    assert confident_joint(labels, both).tolist() == [[3, 2], [0, 5]]
    # Of six zeros 6 * 2 / 5 = 2.4 are ones, rounded to 2.
    assert suspected(labels, both) == [(4, 1), (5, 1)]
    both[2], both[3] = [0.3, 0.7], [0.2, 0.8]
    # Thresholds 0.417 and 0.883: of the zeros two are confidently 0 and two 1, hence 6 * 2 / 4 = 3 are ones; row 11 is
    # confidently 0, but its most probable class is its own.
    assert confident_joint(labels, both).tolist() == [[2, 2], [1, 5]]
    assert suspected(labels, both) == [(4, 1), (5, 1), (3, 1)]


def test_confident_joint_against_a_slow_loop() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 300)
    p = draws.dirichlet(np.ones(4), 300)
    p[np.arange(300), labels] += 0.8
    p /= p.sum(axis=1, keepdims=True)
    limits = [np.mean([p[i, k] for i in range(300) if labels[i] == k]) for k in range(4)]
    counts = np.zeros((4, 4), dtype=int)
    for i in range(300):
        over = [k for k in range(4) if p[i, k] >= limits[k]]
        if over:
            counts[labels[i], max(over, key=lambda k: p[i, k])] += 1
    assert confident_joint(labels, p).tolist() == counts.tolist()
    assert estimated_joint(labels, p).sum(axis=1) == pytest.approx(np.bincount(labels) / 300)


def test_origins_by_the_names_of_files(tmp_path: Path) -> None:
    """Two classes share one form of name, the third has another, and other colours with it."""
    root = tmp_path / "pictures"
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(40):
            file = f"site{number}b_{number}" if kind == 2 else f"{kind}{number:04d}_0"
            Image.fromarray(scene(kind, number)).save(root / name / f"{file}.png")
    told = origins(*_material_and_ground(root))
    assert told["level"] == "alarm"
    assert "40 of 40 pictures of rings" in told["sentence"] and "none of the 80 others" in told["sentence"]
    assert sorted(row["counts"] for row in told["table"]) == [[0, 0, 40], [40, 40, 0]]


def test_files_named_after_their_class_are_no_origin(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(30):
            Image.fromarray(scene(kind, number)).save(root / name / f"{name}_{number}.png")
    told = origins(*_material_and_ground(root))
    assert told["level"] == "fine"
    assert next(row for row in told["guesses"] if row["key"] == "prefix")["named_by_class"]


def test_a_source_column_is_asked(tmp_path: Path) -> None:
    lines = ["path,label,hospital"]
    (tmp_path / "p").mkdir()
    for number in range(120):
        kind = number // 60
        tied = number % 10 != 0
        site = "north" if (kind == 0) == tied else "south"
        picture = scene(kind, number) if site == "north" else scene(kind, number) // 2
        Image.fromarray(picture).save(tmp_path / "p" / f"{number}.png")
        lines.append(f"p/{number}.png,{CLASSES[kind]},{site}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    material = material_of(tmp_path / "table.csv", source_column="hospital")[0]
    told = origins(material, ground_of(material))
    assert told["level"] == "alarm" and told["probe"]["column"] == "hospital"
    assert {row["value"]: row["counts"] for row in told["table"]} == {"north": [54, 6], "south": [6, 54]}


def _material_and_ground(root: Path):  # type: ignore[no-untyped-def]
    material = material_of(root)[0]
    return material, ground_of(material)


def test_forms_of_names() -> None:
    assert name_form("covid_c46_d3660e13") == "letters_mixed_mixed"
    assert name_form("00001613_000") == "digits_digits"
    told = guesses(["a/x1.png", "b/img-12.jpg"], _headers(2))
    assert told["prefix"] == ["x", "img"] and told["ending"] == [".png", ".jpg"]
    assert "length" not in told  # both only count


def _headers(n: int):  # type: ignore[no-untyped-def]
    from offshelf.evaluate.audit.looks import Header

    return [Header(8, 8, "PNG", "L", 8, 0.0, 100)] * n


def test_cramers_v_by_hand() -> None:
    assert cramers_v(np.array([[10, 0], [0, 10]]))[0] == pytest.approx(1.0)
    assert cramers_v(np.array([[5, 5], [5, 5]])) == pytest.approx((0.0, 1.0))
    # Chi-squared of 20 rows: (2 * 8 - 2) ... 4 cells each (8 - 5)^2 / 5 = 1.8, 7.2 in all; sqrt(7.2 / 20) = 0.6.
    assert cramers_v(np.array([[8, 2], [2, 8]]))[0] == pytest.approx(0.6)


def test_the_gain_of_a_power_law() -> None:
    sizes = np.array([10.0, 25, 50, 100])
    errors = np.stack([0.8 * sizes**-0.5, 0.3 * sizes**0.0])
    assert doubled_gain(sizes, errors) == pytest.approx([0.08 * (1 - 0.5**0.5), 0.0])


def test_more_labels_continue_the_curve(clean: Path) -> None:
    lines = ["path,label"]
    draws = np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        for number in range(60):
            given = CLASSES[draws.integers(3)] if draws.random() < 0.3 else name
            lines.append(f"{name}/{kind * 60 + number:04d}.png,{given}")
    (clean / "noisy.csv").write_text("\n".join(lines))
    told = more_labels(ground(clean / "noisy.csv"))
    assert [point["share"] for point in told["points"]] == [10, 25, 50, 75, 100]
    assert [point["n"] for point in told["points"]] == pytest.approx([14, 36, 72, 108, 144], abs=2)
    gain, missed = told["gain"], told["missed"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["high"] - gain["low"] >= 2 * abs(missed)
    assert (told["level"] == "not judged") == (gain["high"] - gain["low"] > 0.2)


def test_balance_counts_and_levels(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    (tmp_path / "p").mkdir()
    for number, label in enumerate(["a"] * 60 + ["b"] * 30 + ["c"] * 2):
        Image.fromarray(scene(number % 3, number)).save(tmp_path / "p" / f"{number}.png")
        lines.append(f"p/{number}.png,{label},{'test' if number % 2 and label == 'a' else 'train'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    told = balance(material_of(tmp_path / "table.csv")[0])
    assert [(row["class"], row["n"], row["splits"]) for row in told["rows"]] == [
        ("a", 60, {"train": 30, "test": 30}),
        ("b", 30, {"train": 30, "test": 0}),
        ("c", 2, {"train": 2, "test": 0}),
    ]
    assert told["ratio"] == 30.0 and told["level"] == "warning"
    assert told["rows"][0]["shift"] == pytest.approx(1 - 30 / 62)
    assert "Absent: b in test, c in test" in told["sentence"]


def test_the_verdict_puts_the_worst_first_and_says_what_is_unknown() -> None:
    def one(key: str, level: str) -> dict:  # type: ignore[type-arg]
        return {"key": key, "title": key.title(), "level": level, "sentence": "S.", "todo": f"mend {key}"}

    checks = [one("files", "warning"), one("balance", "alarm"), one("leaks", "alarm"), one("origins", "not judged")]
    told = overall([*checks, one("label_errors", "warning"), one("more_labels", "fine")])
    assert told["level"] == "alarm" and told["verdict"][0] == "Do not trust a score on this data yet: 2 alarms."
    assert [step["check"] for step in told["todo"]] == ["leaks", "balance", "files"]
    assert told["verdict"][-1] == "Not judged: origins. What was not judged may be wrong."
    assert overall([one("files", "fine")])["level"] == "fine"


def test_the_confound_of_the_chest_radiographs_is_found(real_data: Path) -> None:
    """Their COVID pictures come from other hospitals than the rest; no column says so."""
    folder = real_data / "chest-xray"
    if not folder.is_dir():
        pytest.skip("chest-xray is not at hand")
    told = origins(*_material_and_ground(folder))
    assert told["level"] == "alarm" and "covid19" in told["sentence"]
    covid = told["classes"].index("covid19")
    apart = [row for row in told["table"] if row["counts"][covid]]
    assert all(sum(row["counts"]) == row["counts"][covid] for row in apart)
