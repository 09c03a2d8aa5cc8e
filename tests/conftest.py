"""Shared by all tests: a private cache, one thread, small folders of pictures, and where the real data sets lie."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of each test go to a folder of its own, and nothing is ever looked up on a hub."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OFFSHELF_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    return folder


def draw(kind: int, number: int, side: int = 48) -> np.ndarray:
    """A noisy picture (side, side, 3) uint8 of one of three kinds: horizontal stripes, vertical stripes, or a disc."""
    random = np.random.default_rng([kind, number])
    rows, columns = np.mgrid[:side, :side]
    shape = [np.sin(rows / 3), np.sin(columns / 3), np.hypot(rows - side / 2, columns - side / 2) < side / 4][kind]
    picture = 110 + 60 * shape[..., None] + random.normal(0, 25, (side, side, 3))
    return picture.clip(0, 255).astype(np.uint8)


def write_folder(root: Path, per_class: int = 12, names: tuple[str, ...] = ("across", "down", "disc")) -> Path:
    """Class folders of small pictures, half PNG and half JPEG."""
    for kind, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            ending = "png" if number % 2 else "jpg"
            Image.fromarray(draw(kind % 3, number)).save(root / name / f"{number:03d}.{ending}")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of twelve pictures."""
    return write_folder(tmp_path / "pictures")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped, saying so, where it is not at hand."""
    named = os.environ.get("OFFSHELF_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data sets are not at hand; set OFFSHELF_DATA to their folder")
    return folder
