from __future__ import annotations

from pathlib import Path

import numpy as np

from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset


def test_pictures_become_one_table_and_bad_ones_are_reported(folder: Path) -> None:
    (folder / "disc" / "000.jpg").write_bytes(b"no picture")
    data = open_dataset(folder)
    table, errors = load_pixels(as_samples(data), 24)
    assert table.shape == (36, 3, 24, 24)
    (row,) = errors
    assert Path(errors[row].path).name == "000.jpg"
    assert not table[row].any()
    assert table[np.arange(36) != row].reshape(35, -1).std(axis=1).min() > 10
