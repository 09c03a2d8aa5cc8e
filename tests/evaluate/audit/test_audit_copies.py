"""Copies and leaks: planted ones are found, others are left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offshelf.evaluate.audit.files import files
from offshelf.evaluate.audit.leaks import guessed_groups, leaks
from offshelf.evaluate.audit.near_duplicates import find_copies, near_duplicates, proposals
from offshelf.evaluate.audit.overlay import agreement, overlaid
from offshelf.evaluate.groups import united
from tests.evaluate.audit.planted import CHANGES, material_of, scene, write

PRECISION, RECALL = 0.95, 0.9  # of planted copies


def test_planted_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", 40)
    planted = set()
    for number in range(40):
        original = root / "disc" / f"{40 + number:04d}.png"
        changed = CHANGES[number % 4](Image.open(original))
        changed.save(root / "disc" / f"copy{number:04d}.png")
        planted.add((f"disc/{40 + number:04d}.png", f"disc/copy{number:04d}.png"))
    material, pairs, compared = material_of(root)
    found = {tuple(sorted(material.names[row] for row in pair)) for pair in pairs}
    assert compared == 160
    assert len(found & planted) / len(found) >= PRECISION
    assert len(found & planted) / len(planted) >= RECALL
    for kind in range(4):  # each way of changing by itself
        of_kind = {pair for pair in planted if int(pair[1][9:13]) % 4 == kind}
        assert len(found & of_kind) / len(of_kind) >= 0.8, CHANGES[kind].__name__
    told = near_duplicates(material, pairs, compared)
    assert told["level"] == "alarm"  # a quarter of the pictures is half of a pair
    assert told["n_in_clusters"] >= 0.9 * 80 and len(told["shown"]) == 12
    assert told["shown"][0][0]["thumbnail"].startswith("data:image/jpeg;base64,")


def test_the_clean_twin_has_no_copies(tmp_path: Path) -> None:
    material, pairs, compared = material_of(write(tmp_path / "pictures", 40))
    assert len(pairs) == 0
    assert near_duplicates(material, pairs, compared)["level"] == "fine"
    assert files(material, pairs)["level"] == "fine"
    assert leaks(material, pairs)["level"] == "fine"


def test_equal_files_pixels_and_broken_files(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", 10)
    shutil.copy(root / "disc" / "0010.png", root / "disc" / "twin.png")
    Image.open(root / "bars" / "0000.png").save(root / "rings" / "same.bmp")  # other bytes, the same pixels
    (root / "bars" / "broken.png").write_bytes(b"no picture")
    Image.new("L", (40, 40), 7).save(root / "bars" / "flat.png")
    Image.new("RGB", (40, 40), (7, 7, 7)).save(root / "bars" / "flat.bmp")
    material, pairs, _ = material_of(root)
    told = files(material, pairs)
    assert [one["path"].rsplit("/", 1)[-1] for one in told["unreadable"]] == ["broken.png"]
    assert sorted(sorted(one["paths"]) for one in told["equal"]) == [
        ["bars/0000.png", "rings/same.bmp"],
        ["bars/flat.bmp", "bars/flat.png"],
        ["disc/0010.png", "disc/twin.png"],
    ]
    assert told["n_two_labels"] == 1 and told["n_across_splits"] == 0
    assert told["level"] == "alarm"  # one of 35 cannot be read
    assert "1 of 35 files cannot be read" in told["sentence"]


def test_leaks_across_splits_and_groups(tmp_path: Path) -> None:
    table = ["path,label,patient,split"]
    (tmp_path / "p").mkdir()
    for number in range(60):
        kind = number % 3
        picture = Image.fromarray(scene(kind, number))
        if number in (40, 43):  # pictures of the training part, again, smaller
            picture = Image.fromarray(scene(kind, number - 36)).resize((50, 50))
        picture.save(tmp_path / "p" / f"{number}.png")
        split = "test" if number >= 40 else "train"
        group = 5 if number == 50 else number  # patient 5 is in both
        table.append(f"p/{number}.png,{kind},n{group},{split}")
    (tmp_path / "table.csv").write_text("\n".join(table))
    material, pairs, _ = material_of(tmp_path / "table.csv", group_column="patient")
    told = leaks(material, pairs)
    assert told["level"] == "alarm"
    assert told["straddling"] == [{"group": "n5", "splits": {"train": 1, "test": 1}}]
    assert sorted(map(sorted, told["pairs_across_splits"])) == [["p/4.png", "p/40.png"], ["p/43.png", "p/7.png"]]
    assert told["n_across_groups"] == 2
    assert (told["n_seen"], told["n_tested"]) == (3, 20) and "3 of 20 pictures outside training (15.0%)" in told[
        "sentence"
    ]
    # Copies and groups stay together in the folds of every probe.
    units = {name: unit for name, unit in zip(material.names, material.units)}
    assert units["p/4.png"] == units["p/40.png"] and units["p/5.png"] == units["p/50.png"]
    assert len(set(units.values())) == 57


def test_subjects_in_file_names_are_noticed() -> None:
    subjects = [f"x/{patient:08d}_{number:03d}.jpg" for patient in range(10) for number in range(3)]
    assert guessed_groups(subjects) == {"groups": 10, "largest": 3, "example": "00000000_000"}
    assert guessed_groups([f"photo_{number:03d}.jpg" for number in range(30)]) is None
    assert guessed_groups([f"{number:05d}.jpg" for number in range(30)]) is None


def test_overlaying_finds_how_a_picture_was_moved() -> None:
    draws = np.random.default_rng(0)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(draws.normal(128, 60, (4, 1, 24, 24))).float(), (160, 160), mode="bicubic"
    )[:, 0]
    one, other = large[:, 16:144, 16:144], large[:, 20:140, 22:142]  # 120 of 128 pixels, from (4, 6)
    small = [torch.nn.functional.interpolate(x[:, None], (64, 64), mode="area")[:, 0] for x in (one, other)]
    told, move = overlaid(*small)
    # `one` at x shows `other` at x * 128/120 + shift; the crop's middle lies at (64, 66) of 128 pixels.
    assert (told > 0.98).all()
    assert move.numpy() == pytest.approx(np.tile([128 / 120 - 1, -4 / 120, 128 / 120 - 1, 0.0], (4, 1)), abs=0.02)
    shuffled = small[1][[1, 2, 3, 0]]
    assert (overlaid(small[0], shuffled)[0] < 0.7).all()


def test_agreement_does_not_mind_brightness_and_contrast() -> None:
    grey = np.stack([scene(1, number)[..., 0] for number in range(3)])
    changed = (grey * 0.6 + 40).astype(np.uint8)
    both = np.concatenate([grey, changed])
    same = agreement(both, np.array([[0, 3], [1, 4], [2, 5]]))
    other = agreement(both, np.array([[0, 4], [1, 5], [2, 3]]))
    assert (same > 0.99).all() and (other < 0.9).all()


def test_proposals_against_a_slow_loop() -> None:
    draws = np.random.default_rng(3)
    x = draws.normal(size=(40, 6)).astype(np.float32)
    x[20:] = x[:20] + draws.normal(0, 0.2, (20, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs, usual = proposals(x)
    expected = set()
    for row in range(40):
        order = sorted((one for one in range(40) if one != row), key=lambda one: -float(x[row] @ x[one]))
        limit = 1 - float(x[row] @ x[order[11]])
        for one in order[:3]:
            similarity = float(x[row] @ x[one])
            if similarity >= 0.4 and 1 - similarity <= 0.85 * limit:
                expected.add((min(row, one), max(row, one)))
        assert usual[row].tolist() == order[11:16]
    assert {tuple(pair) for pair in pairs.tolist()} == expected and len(expected) > 20


def test_units_join_groups_and_pairs() -> None:
    groups = np.array(["a", None, "b", "a", None, "b"], dtype=object)
    units = united(6, groups, np.array([[1, 2]]))
    assert units[0] == units[3] and units[1] == units[2] == units[5]
    assert len(set(units.tolist())) == 3


def test_ten_thousand_rows_need_no_table_of_all_pairs() -> None:
    x = np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float32)
    x[2999] = x[0] + 0.01
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs, usual = proposals(x)
    assert pairs[0].tolist() == [0, 2999]  # what stands out most comes first
    assert usual.shape == (3000, 5)


def test_two_pictures_are_enough_to_be_copies(tmp_path: Path) -> None:
    picture = Image.fromarray(scene(0, 1))
    picture.save(tmp_path / "a.png")
    picture.resize((50, 50)).save(tmp_path / "b.png")
    material, pairs, compared = material_of(tmp_path)
    assert compared == 2 and pairs.tolist() == [[0, 1]]
    assert find_copies(material)[0].tolist() == [[0, 1]]
