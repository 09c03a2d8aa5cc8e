from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from offshelf.data.augment import shift_and_flip
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset


def batch(n: int = 64, side: int = 16) -> np.ndarray:
    ramp = np.arange(side, dtype=np.uint8)
    return np.broadcast_to(ramp[None, None, None, :] * 8, (n, 3, side, side)).copy()


def test_every_sample_gets_its_own_draw() -> None:
    moved = shift_and_flip(batch(), np.random.default_rng(0), shift=0.25, flip=True)
    assert len({m.numpy().tobytes() for m in moved}) > 10


def test_amplitude_zero_is_the_identity_and_the_input_is_untouched() -> None:
    given = batch()
    kept = given.copy()
    assert torch.equal(shift_and_flip(given, np.random.default_rng(0), shift=0, flip=False), torch.from_numpy(kept))
    shift_and_flip(given, np.random.default_rng(0), shift=0.2, flip=True)
    assert np.array_equal(given, kept)


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge() -> None:
    moved = shift_and_flip(batch(200), np.random.default_rng(1), shift=0.125, flip=False).numpy()
    offsets = set()
    for picture in moved:
        row = picture[0, 0].astype(int)
        offset = int(np.argmin([np.abs(row - np.clip(np.arange(16) + o, 0, 15) * 8).sum() for o in range(-2, 3)])) - 2
        assert np.array_equal(row, np.clip(np.arange(16) + offset, 0, 15) * 8)
        offsets.add(offset)
    assert offsets == {-2, -1, 0, 1, 2}


def test_flips_are_about_half() -> None:
    moved = shift_and_flip(batch(400), np.random.default_rng(2), shift=0, flip=True).numpy()
    share = np.mean([picture[0, 0, 0] > picture[0, 0, -1] for picture in moved])
    assert 0.4 < share < 0.6


def test_pictures_become_one_table_and_bad_ones_are_reported(folder: Path) -> None:
    (folder / "disc" / "000.jpg").write_bytes(b"no picture")
    data = open_dataset(folder)
    table, errors = load_pixels(as_samples(data), 24)
    assert table.shape == (36, 3, 24, 24)
    (row,) = errors
    assert Path(errors[row].path).name == "000.jpg"
    assert not table[row].any()
    assert table[np.arange(36) != row].reshape(35, -1).std(axis=1).min() > 10
