"""A finished classifier of pictures: what a run keeps, and what `predict` uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from offshelf.backbones.card import card_of
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import Samples
from offshelf.engine.files import read_json, write_json
from offshelf.errors import ImageError, RunError
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.finetune import FineTune
from offshelf.transfer.persistence import load_head, save_head


@dataclass
class Answers:
    """Of n pictures: probabilities (n, K), NaN where unreadable; class (n,), -1 there; and why, by row.

    Where a picture may have several labels, ``predicted`` is (n, K): 1 from a probability of one half on, else 0.

    ``predicted`` is the classifier's own decision, the one that was measured. A support vector machine's can differ
    from the most probable class, since its probabilities are calibrated afterwards.
    """

    probabilities: np.ndarray
    predicted: np.ndarray
    errors: dict[int, ImageError]
    features: np.ndarray | None = None  # (n, D), mean over copies, where the classifier rests on frozen features


SETTINGS = ("grid", "readout", "copies", "copy_pooling", "resize", "input_size", "blank_area", "exact", "batch_size")


class FeatureClassifier:
    """Frozen features and a fitted pipeline: pictures in, class probabilities out."""

    multi_label = False

    def __init__(
        self, features: DeepFeatures, pipeline: Pipeline, classes: list[str], arm: str, random: list[str] | None = None
    ) -> None:
        self.features = features
        self.pipeline = pipeline
        self.classes = classes
        self.arm = arm
        self.random = random or []  # names of the backbones whose weights were random when it was fitted

    def notes(self) -> list[str]:
        """What whoever reads its answers should know."""
        return [f"These answers rest in part on random weights: {', '.join(self.random)}."] if self.random else []

    def predict(self, samples: Samples, advance: Callable[[int], None] = lambda n: None) -> Answers:
        """What the classifier says of every picture, in the order of ``samples``."""
        found = self.features.extract(samples, advance)
        table = np.full((len(samples), len(self.classes)), np.nan)
        predicted = np.full(len(samples), -1)
        good = np.array([row for row in range(len(samples)) if row not in found.errors], dtype=int)
        if len(good):
            rows = self.features.pool(found.features[good])
            spread = np.zeros((len(good), len(self.classes)))
            spread[:, self.pipeline.classes_] = self.pipeline.predict_proba(rows)
            table[good] = spread
            predicted[good] = self.pipeline.predict(rows)
        return Answers(table, predicted, found.errors, found.features.mean(axis=1))

    def save(self, folder: Path) -> None:
        """Write ``classifier.json`` and ``head.skops``; weights that cannot be fetched again are kept beside them."""
        self.features.fit()
        kept: dict[str, str] = {}
        for number, card in enumerate(self.features.cards_):
            if card.weights in ("random", "folder", "run"):
                kept[str(number)] = f"backbones/{number}"
                model = load_backbone(card.name, num_classes=None if self.features.readout == "logits" else 0)
                save_backbone(model, folder / kept[str(number)])
        save_head(self.pipeline, folder / "head.skops")
        write_json(
            folder / "classifier.json",
            {
                "kind": "features",
                "arm": self.arm,
                "classes": self.classes,
                "settings": {name: getattr(self.features, name) for name in SETTINGS},
                "backbones": [card.to_dict() for card in self.features.cards_],
                "kept": kept,
            },
        )

    @classmethod
    def load(cls, folder: Path, record: dict[str, Any]) -> FeatureClassifier:
        """Read what `save` wrote; refuses weights other than the ones the head was fitted on."""
        names = [
            str(folder / record["kept"][str(number)]) if str(number) in record["kept"] else card["name"]
            for number, card in enumerate(record["backbones"])
        ]
        settings = record["settings"] | {"grid": tuple(record["settings"]["grid"])}
        features = DeepFeatures(names, **settings).fit()
        for card, then in zip(features.cards_, record["backbones"]):
            if card.weights_hash != then["weights_hash"]:
                raise RunError(
                    f"{then['name']}: these weights are not the ones the run was fitted on (their hash differs), "
                    "so its numbers would not hold. Fit again, or restore the weights."
                )
        random = [card["name"] for card in record["backbones"] if card["weights"] == "random"]
        return cls(features, load_head(folder / "head.skops"), record["classes"], record["arm"], random)


class FinetunedClassifier:
    """A fine-tuned network: pictures in, class probabilities out."""

    def __init__(self, estimator: FineTune, classes: list[str]) -> None:
        self.estimator = estimator
        self.classes = classes
        self.arm = "finetuned"
        self.multi_label = estimator.multi_label

    def notes(self) -> list[str]:
        """What whoever reads its answers should know: nothing beyond the run's report."""
        return []

    def predict(self, samples: Samples, advance: Callable[[int], None] = lambda n: None) -> Answers:
        """What the network says of every picture, in the order of ``samples``."""
        size = self.estimator.store_size or self.estimator.image_size
        table = np.full((len(samples), len(self.classes)), np.nan)
        errors: dict[int, ImageError] = {}
        for first in range(0, len(samples), 1024):  # windows, so that memory does not grow with the inputs
            part = samples.take(np.arange(first, min(first + 1024, len(samples))))
            pixels, refused = load_pixels(part, size, advance)
            good = np.array([row for row in range(len(part)) if row not in refused], dtype=int)
            if len(good):
                table[first + good] = self.estimator.probabilities_of(pixels[good])
            errors |= {first + row: error for row, error in refused.items()}
        read = np.isfinite(table).all(axis=1)
        predicted = np.full(table.shape if self.multi_label else len(table), -1)
        predicted[read] = table[read] >= 0.5 if self.multi_label else table[read].argmax(axis=1)
        return Answers(table, predicted, errors)

    def save(self, folder: Path) -> None:
        """Write a plain timm folder with the class names, and ``classifier.json``."""
        save_backbone(self.estimator.model_, folder, label_names=self.classes)
        write_json(
            folder / "classifier.json",
            {
                "kind": "finetuned",
                "classes": self.classes,
                "settings": {key: value for key, value in self.estimator.get_params().items()},
            },
        )

    @classmethod
    def load(cls, folder: Path, record: dict[str, Any]) -> FinetunedClassifier:
        """Read what `save` wrote."""
        estimator = FineTune(**record["settings"])
        estimator.model_ = load_backbone(str(folder), num_classes=None)
        estimator.card_ = card_of(estimator.model_)
        estimator.classes_ = np.arange(len(record["classes"]))
        return cls(estimator, record["classes"])


def load_classifier(folder: Path) -> FeatureClassifier | FinetunedClassifier:
    """The classifier in a run's ``model/`` folder.

    Raises
    ------
    RunError
        When there is none, or of a kind this version does not know.
    """
    record = read_json(folder / "classifier.json")
    kinds = {"features": FeatureClassifier, "finetuned": FinetunedClassifier}
    if record.get("kind") not in kinds:
        raise RunError(
            f"{folder / 'classifier.json'}: kind {record.get('kind')!r}, expected one of {', '.join(kinds)}."
        )
    return kinds[record["kind"]].load(folder, record)  # type: ignore[attr-defined]
