from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.data.columns import class_names
from offshelf.data.sources import notes, open_dataset
from offshelf.errors import DataError, UsageError

CELLS = ["Edema|Effusion", "No Finding", "Effusion", "", "Mass | Edema"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number in range(len(CELLS)):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
    rows = [f'{number}.png,"{cell}",{number % 2}' for number, cell in enumerate(CELLS)]
    (tmp_path / "table.csv").write_text("\n".join(["path,Finding Labels,odd", *rows]) + "\n")
    return tmp_path / "table.csv"


def test_names_between_a_sign_become_a_table_of_yes_and_no(table: Path) -> None:
    found = open_dataset(table, label_column="Finding Labels", label_separator="|")
    assert class_names(found) == ["Edema", "Effusion", "Mass"]
    answers = np.array(found["labels"][:], dtype=float)
    nothing = [np.nan] * 3
    assert np.array_equal(answers, [[1, 1, 0], [0, 0, 0], [0, 1, 0], nothing, [1, 0, 1]], equal_nan=True)
    said = " ".join(notes(found))
    assert "names between '|'" in said
    assert "1 rows say 'No Finding' and have none of the 3 labels." in said
    assert "1 of 5 rows have an empty label and count as unknown." in said


def test_without_a_sign_a_cell_is_one_class(table: Path) -> None:
    assert class_names(open_dataset(table, label_column="Finding Labels")) == sorted(set(filter(None, CELLS)))


def test_another_sign_is_taken_as_asked(table: Path) -> None:
    table.write_text(table.read_text().replace("|", ";"))
    found = open_dataset(table, label_column="Finding Labels", label_separator=";")
    assert class_names(found) == ["Edema", "Effusion", "Mass"]


def test_what_does_not_go_together_is_refused(table: Path) -> None:
    with pytest.raises(UsageError, match="label_separator='|' with 2 label columns: a separator belongs to one"):
        open_dataset(table, label_column=["Finding Labels", "odd"], label_separator="|")
    with pytest.raises(UsageError, match="label_separator=' ': expected a sign or word"):
        open_dataset(table, label_column="Finding Labels", label_separator=" ")
    with pytest.raises(DataError, match="no column 'Finding Label' for the labels; did you mean 'Finding Labels'"):
        open_dataset(table, label_column="Finding Label", label_separator="|")
    with pytest.raises(UsageError, match="label_separator, group_column and allow_outside belong to tables"):
        open_dataset("digits", label_separator="|")


def test_a_column_of_nothing_but_no_finding_is_read_without_labels(table: Path) -> None:
    rows = [f"{number}.png,No Finding" for number in range(len(CELLS))]
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    found = open_dataset(table, label_separator="|")
    assert "labels" not in found.column_names
    assert "names no label" in " ".join(notes(found))
