"""What the pages find around them: a folder of pictures, a table over it, and some new pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PATIENTS = 12
KINDS = ("across", "down", "disc")


def draw(kind: str, seed: int) -> Image.Image:
    """Stripes across, stripes down, or a disc, under noise; 48 x 48 pixels."""
    rows, columns = np.mgrid[:48, :48]
    shapes = {"across": np.sin(rows / 3), "down": np.sin(columns / 3), "disc": np.hypot(rows - 24, columns - 24) < 12}
    pixels = 110 + 60 * shapes[kind] + np.random.default_rng([seed, KINDS.index(kind)]).normal(0, 25, (48, 48))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``photos/`` (three classes, twelve patients, a table) and ``new/``, made the current one."""
    table = ["path,label,patient"]
    for kind in KINDS:
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for patient in range(PATIENTS):
            path = f"{kind}/p{patient:02d}-1.png"
            draw(kind, patient).save(tmp_path / "photos" / path)
            table.append(f"{path},{kind},p{patient:02d}")
    (tmp_path / "photos" / "patients.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "new").mkdir()
    for number, kind in enumerate(KINDS):
        draw(kind, 100 + number).save(tmp_path / "new" / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path
