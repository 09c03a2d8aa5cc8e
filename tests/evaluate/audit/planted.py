"""Folders of small structured pictures, sound or with one thing wrong, so that what a check finds can be counted."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from offshelf.data.sources import open_dataset
from offshelf.engine.console import Console
from offshelf.evaluate.audit.material import Material, gather
from offshelf.evaluate.audit.near_duplicates import find_copies
from offshelf.evaluate.groups import united

BACKBONE = "test_byobnet.offshelf_finetune_cifar10"
CLASSES = ("bars", "disc", "rings")


def scene(kind: int, number: int, side: int = 64) -> np.ndarray:
    """A picture (side, side, 3) uint8: a landscape of waves, all its own, and the class's figure in its middle."""
    draws = np.random.default_rng([kind, number, 5])
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    ground = sum(
        draws.normal(0, 9) * np.sin(draws.uniform(-9, 9) * rows + draws.uniform(-9, 9) * columns + draws.uniform(0, 6))
        for _ in range(12)
    )
    centre = draws.uniform(-0.12, 0.12, 2)
    radius = np.hypot(rows - centre[0], columns - centre[1])
    inside = radius < 0.5
    # Light and dark in equal parts, so that the classes differ neither in brightness nor in contrast.
    figure = [np.sin(14 * (columns - centre[1])), 0.354 - radius, np.sin(25 * radius)][kind]
    picture = 120 + draws.uniform(-8, 8) + ground + inside * 70 * np.sign(figure)
    noise = draws.normal(0, 4, (side, side, 3))
    return (picture[..., None] + draws.uniform(-12, 12, 3) + noise).clip(0, 255).astype(np.uint8)


def resized(picture: Image.Image) -> Image.Image:
    return picture.resize((48, 48), Image.Resampling.BICUBIC)


def recompressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=45)
    return Image.open(buffer)


def cropped(picture: Image.Image) -> Image.Image:
    return picture.crop((2, 1, 63, 62))


def brightened(picture: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * 0.85 + 25).clip(0, 255).astype(np.uint8))


CHANGES: Sequence[Callable[[Image.Image], Image.Image]] = (resized, recompressed, cropped, brightened)


def write(
    root: Path,
    per_class: int = 60,
    *,
    classes: Sequence[str] = CLASSES,
    change: Callable[[np.ndarray, int, int], np.ndarray] = lambda picture, kind, number: picture,
) -> Path:
    """Class folders; ``change(picture, class, number)`` plants what is to be found."""
    for kind, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            picture = change(scene(kind, number), kind, number)
            Image.fromarray(picture).save(root / name / f"{kind * per_class + number:04d}.png")
    return root


def material_of(source: Path, **columns: str) -> tuple[Material, np.ndarray, int]:
    """What the checks take: the material with its units, the copies, and how many pictures were compared."""
    origin = columns.pop("source_column", None)
    material = gather(open_dataset(source, **columns), str(source), BACKBONE, 0, Console(quiet=True), origin)  # type: ignore[arg-type]
    pairs, compared = find_copies(material)
    material.units = united(len(material), material.groups, pairs)
    return material, pairs, compared
