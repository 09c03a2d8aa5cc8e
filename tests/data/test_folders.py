"""Folders of pictures: what becomes a class, what a split, and that nothing vanishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.data.columns import class_names, label_array, notes
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, UsageError


def draw(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(path)
    return root


def rows(dataset) -> dict[str, tuple]:
    texts = [None if k < 0 else class_names(dataset)[k] for k in label_array(dataset)]
    splits = dataset["split"][:] if "split" in dataset.column_names else [None] * len(dataset)
    return dict(zip(dataset["id"][:], zip(texts, splits)))


def test_class_folders(tmp_path: Path) -> None:
    draw(tmp_path, "dog/1.png", "cat/1.png", "cat/2.PNG", "cat/.hidden.png", ".git/x/1.png")
    dataset = open_dataset(tmp_path)
    assert rows(dataset) == {"cat/1.png": ("cat", None), "cat/2.PNG": ("cat", None), "dog/1.png": ("dog", None)}
    assert dataset[0]["image"] == {"bytes": None, "path": str(tmp_path / "cat" / "1.png")}
    assert class_names(dataset) == ["cat", "dog"] and notes(dataset) == []


def test_splits_above_classes_in_their_order(tmp_path: Path) -> None:
    draw(tmp_path, "test/a/1.png", "train/a/1.png", "train/b/1.png", "val/b/1.png")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "docs").mkdir()
    dataset = open_dataset(tmp_path)
    assert list(rows(dataset).values()) == [("a", "train"), ("b", "train"), ("b", "validation"), ("a", "test")]
    assert any("labels.csv was not read" in note for note in notes(dataset))
    assert any("2 files are not pictures" in note for note in notes(dataset))
    assert open_dataset(tmp_path, "valid")["id"][:] == ["val/b/1.png"]
    assert class_names(open_dataset(tmp_path, "valid")) == ["a", "b"]
    assert notes(open_dataset(tmp_path, "train")) == notes(dataset)


def test_class_named_train(tmp_path: Path) -> None:
    draw(tmp_path, "train/1.png", "car/1.png", "test_images/1.png")
    dataset = open_dataset(tmp_path)
    assert class_names(dataset) == ["car", "test_images", "train"] and "split" not in dataset.column_names
    assert len(dataset) == 3 and any("train is read as a class, since car" in note for note in notes(dataset))


def test_words_in_file_names_do_not_matter(tmp_path: Path) -> None:
    names = ["1.png", "img_test_3.png", "val-4.png", "train_5.png", "test.png"]
    draw(tmp_path, *[f"{kind}/{name}" for kind in ("a", "b") for name in names])
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 10 and "split" not in dataset.column_names


def test_first_level_is_the_label(tmp_path: Path) -> None:
    draw(tmp_path, "cat/siteA/1.png", "cat/siteB/deep/2.png", "dog/3.png")
    dataset = open_dataset(tmp_path)
    assert rows(dataset)["cat/siteB/deep/2.png"] == ("cat", None) and class_names(dataset) == ["cat", "dog"]
    assert any("first level" in note for note in notes(dataset))


def test_empty_class_folder_stays(tmp_path: Path) -> None:
    draw(tmp_path, "train/a/1.png", "test/a/1.png")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "notes").mkdir()
    (tmp_path / "train" / "notes" / "x.txt").write_text("not a class: it holds other files only")
    dataset = open_dataset(tmp_path)
    assert class_names(dataset) == ["a", "b"]
    assert any("No picture in the class b" in note for note in notes(dataset))


def test_number_names_are_in_order(tmp_path: Path) -> None:
    draw(tmp_path, *[f"{n}/x.png" for n in (10, 9, 0, 1)])
    assert class_names(open_dataset(tmp_path)) == ["0", "1", "9", "10"]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    draw(tmp_path, "b.png", "a.jpg")
    (tmp_path / "empty").mkdir()
    dataset = open_dataset(str(tmp_path) + "/")
    assert dataset["id"][:] == ["a.jpg", "b.png"] and "label" not in dataset.column_names


def test_unlabelled_test_split(tmp_path: Path) -> None:
    draw(tmp_path, "train/a/1.png", "train/b/1.png", "test/9.png")
    assert rows(open_dataset(tmp_path))["test/9.png"] == (None, "test")
    draw(tmp_path / "flat", "train/1.png", "test/2.png")
    assert open_dataset(tmp_path / "flat").column_names == ["image", "id", "split"]


@pytest.mark.parametrize(
    "names", [("1.png", "cat/1.png"), ("train/1.png", "train/cat/1.png"), ("1.png", "train/a/1.png")]
)
def test_mixed_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"loose pictures \(1, such as 1.png\) beside folders.*Move"):
        open_dataset(draw(tmp_path, *names))


def test_one_class_and_one_picture(tmp_path: Path) -> None:
    dataset = open_dataset(draw(tmp_path, "only/1.png"))
    assert class_names(dataset) == ["only"] and label_array(dataset).tolist() == [0]


def test_links_in_circles_and_dangling(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert sorted(open_dataset(tmp_path)["id"][:]) == ["a/1.png", "b/1.png", "b/gone.png"]


def test_linked_class_folder(tmp_path: Path) -> None:
    draw(tmp_path / "store", "cats/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "store" / "cats")
    assert open_dataset(tmp_path / "set")["id"][:] == ["cat/1.png"]


def test_empty_folder_and_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is empty; expected a folder of class folders"):
        open_dataset(tmp_path)
    (tmp_path / "table.csv").write_text("path\n")
    with pytest.raises(DataError, match=r"no picture in this folder.*point to it: .*table.csv"):
        open_dataset(tmp_path)


def test_columns_for_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no columns"):
        open_dataset(draw(tmp_path, "a/1.png"), label_column="x")


def test_name_that_is_not_text(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png")
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "\udcff.png")
    with pytest.raises(DataError, match="not valid UTF-8"):
        open_dataset(tmp_path)
