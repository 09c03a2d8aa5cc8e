"""What all checks of an audit share: the readable pictures, what is known of them, their features and their copies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from offshelf.backbones.card import BackboneCard
from offshelf.data.columns import class_names, label_array
from offshelf.data.samples import Samples, as_samples
from offshelf.data.summary import label_texts
from offshelf.engine.console import Console
from offshelf.errors import DataError, near
from offshelf.evaluate.audit.looks import Looks, look_at
from offshelf.evaluate.mistakes import thumbnail
from offshelf.evaluate.rows import check_finite, text_column
from offshelf.transfer.deep_features import DeepFeatures

THUMBNAIL = 104  # pixels


@dataclass(eq=False)
class Material:
    """Of the n readable pictures; columns that the source does not have are None.

    labels : ``(n,)`` class numbers, -1 where there is none; several : whether a picture may have several labels (then
    ``labels`` are all -1 and ``label_texts`` hold the names joined by ``|``); units : ``(n,)`` what must stay on one
    side of a fold, set when the copies are known.
    """

    samples: Samples
    names: list[str]
    labels: np.ndarray
    label_texts: list[str | None]
    classes: list[str]
    several: bool
    groups: np.ndarray | None
    splits: np.ndarray | None
    sources: np.ndarray | None
    source_column: str
    keys: list[bytes]
    looks: Looks
    features: np.ndarray
    card: BackboneCard
    backbone: str
    n_found: int
    bad: list[dict[str, str]]
    seed: int = 0
    units: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    seconds: dict[str, float] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(quiet=True))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether there is one class a picture, for some of them."""
        return not self.several and bool((self.labels >= 0).any())

    def picture(self, row: int, **more: Any) -> dict[str, Any]:
        """One picture as the report shows it."""
        found: dict[str, Any] = {"path": self.names[row], "label": self.label_texts[row]}
        found["split"] = None if self.splits is None else self.splits[row]
        found["group"] = None if self.groups is None else self.groups[row]
        return found | more | {"thumbnail": thumbnail(self.samples.image(int(row)), THUMBNAIL)}


def gather(
    dataset: Dataset, source: str, backbone: str, seed: int, console: Console, source_column: str | None = None
) -> Material:
    """Read every picture once, compute its features, and keep what can be read.

    Raises
    ------
    DataError
        When not one picture can be read, or the source column is not there.
    """
    origin = _source_column(dataset, source, source_column)
    samples = as_samples(dataset)
    extractor = DeepFeatures([backbone]).fit()
    card = extractor.cards_[0]
    console.say(f"  {card.label}")
    with console.progress("reading", len(dataset)) as advance:
        looks, errors = look_at(samples, advance)
    with console.progress("features", len(dataset)) as advance:
        found = extractor.extract(samples, advance)
    errors = errors | found.errors
    for error in list(errors.values())[:5]:
        console.warn(f"cannot be read: {error}")
    good = np.array([row for row in range(len(dataset)) if row not in errors], dtype=np.int64)
    if not len(good):
        first = next(iter(errors.values()))
        raise DataError(f"{source}: none of {len(dataset)} pictures can be read; the first: {first}")
    kept = dataset.select(good)
    readable = as_samples(kept)
    features = extractor.pool(found.features[good])
    check_finite(features[:, None], readable, extractor)
    several = "labels" in dataset.column_names
    return Material(
        samples=readable,
        names=[readable.name(row) for row in range(len(good))],
        labels=np.full(len(good), -1) if several else label_array(kept),
        label_texts=label_texts(kept),
        classes=class_names(dataset),
        several=several,
        groups=text_column(kept, "group"),
        splits=text_column(kept, "split"),
        sources=None if origin is None else text_column(kept, origin),
        source_column=origin or "source",
        keys=[found.keys[row] or b"" for row in good],
        looks=looks.take(good),
        features=features,
        card=card,
        backbone=backbone,
        n_found=len(dataset),
        bad=[{"path": error.path, "error": error.reason} for _, error in sorted(errors.items())],
        seed=seed,
        units=np.arange(len(good)),
        seconds={"features": found.seconds},
        console=console,
    )


def _source_column(dataset: Dataset, source: str, wanted: str | None) -> str | None:
    if wanted is None:
        return "source" if "source" in dataset.column_names else None
    if wanted not in dataset.column_names:
        columns = [name for name in dataset.column_names if name != "image"]
        raise DataError(
            f"{source}: no column {wanted!r} for the source{near(wanted, columns) or '.'} It has: {', '.join(columns)}."
        )
    return wanted
