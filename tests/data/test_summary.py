"""Counts, fingerprint, duplicates and groups on sets small enough to count by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from offshelf.data.hf import datasets
from offshelf.data.sources import open_dataset
from offshelf.data.summary import check_groups, content_keys, duplicates, fingerprint, summarise
from offshelf.errors import DataError


def write(root: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = root / (name.replace("__", "/") + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_summary(tmp_path: Path) -> None:
    write(
        tmp_path,
        train__a__1=b"one",
        train__a__2=b"two",
        train__b__1=b"one",
        test__a__1=b"two",
        test__b__9=b"",
        test__b__8=b"eight",
    )
    summary = summarise(open_dataset(tmp_path))
    assert (
        summary.n == 6
        and summary.class_counts == {"a": 3, "b": 3}
        and summary.unlabelled == 0
        and summary.groups is None
    )
    assert summary.splits == {"train": {"a": 2, "b": 1}, "test": {"a": 1, "b": 2}}
    assert [bad["path"].endswith("test/b/9.png") and "empty" in bad["error"] for bad in summary.bad_files] == [True]
    assert summary.duplicates == [
        {"paths": ["train/a/1.png", "train/b/1.png"], "splits": ["train", "train"], "labels": ["a", "b"]},
        {"paths": ["train/a/2.png", "test/a/1.png"], "splits": ["train", "test"], "labels": ["a", "a"]},
    ]
    pairs = [(b"one", "a"), (b"two", "a"), (b"one", "b"), (b"two", "a"), (b"eight", "b")]
    lines = sorted(hashlib.sha256(data).hexdigest() + "\t" + label for data, label in pairs)
    assert summary.fingerprint == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert set(summary.to_dict()) == {
        "n", "class_counts", "splits", "groups", "unlabelled", "fingerprint", "bad_files", "duplicates", "notes",
    }  # fmt: skip


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one = summarise(open_dataset(write(tmp_path / "x", a__1=b"one", b__1=b"two"))).fingerprint
    moved = summarise(open_dataset(write(tmp_path / "y", b__zz=b"two", a__yy=b"one"))).fingerprint
    other_label = summarise(open_dataset(write(tmp_path / "z", a__1=b"two", b__1=b"one"))).fingerprint
    other_bytes = summarise(open_dataset(write(tmp_path / "w", a__1=b"one", b__1=b"tvo"))).fingerprint
    assert one == moved and len({one, other_label, other_bytes}) == 3
    assert fingerprint([b"x"], [None]) != fingerprint([b"x"], ["a"])


def test_content_keys(tmp_path: Path) -> None:
    write(tmp_path, **{f"n{k:04d}": str(k % 700).encode() for k in range(1500)})
    dataset = open_dataset(tmp_path)
    (tmp_path / "n0003.png").unlink()
    keys, errors = content_keys(dataset)
    assert len(keys) == 1500 and list(errors) == [3] and keys[3] is None and "no such file" in str(errors[3])
    assert keys[1201] == hashlib.sha256(b"501").digest()
    assert len(duplicates(dataset, keys)) == 700  # 0..99 stand three times (3 twice, one file is gone), 100..699 twice
    assert duplicates(dataset, [b""] * 1500) == []


def split_set(groups: list[str | None], splits: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"group": groups, "split": splits})


def test_check_groups() -> None:
    check_groups(split_set(["p1", "p1", "p2", None, None], ["train", "train", "test", "train", "test"]))
    check_groups(datasets.Dataset.from_dict({"split": ["train"]}))
    with pytest.raises(DataError, match=r"1 group stands in more than one split \(p1 in test and train\).*--folds 5"):
        check_groups(split_set(["p1", "p1", "p2"], ["train", "test", "test"]))
    names = [f"p{k}" for k in range(5)]
    with pytest.raises(
        DataError, match=r"5 groups stand .*\(p0 in test and train; p1 in test and train; p2 in test and train\)"
    ):
        check_groups(split_set(names * 2, ["train"] * 5 + ["test"] * 5))


def test_multi_hot_counts(tmp_path: Path) -> None:
    write(tmp_path, x1=b"1", x2=b"2", x3=b"3")
    (tmp_path / "m.csv").write_text("path,a,b\nx1.png,1,1\nx2.png,0,1\nx3.png,,\n")
    summary = summarise(open_dataset(tmp_path / "m.csv", label_column="a,b"))
    assert summary.class_counts == {"a": 1, "b": 2} and summary.unlabelled == 1
