"""A finished classifier as one network that can be differentiated, with its way from files to its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from offshelf.backbones.preprocess import to_input
from offshelf.data.augment import normalised
from offshelf.data.geometry import blank_centre
from offshelf.data.images import decode_image, read_bytes
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import Samples
from offshelf.errors import ImageError, UsageError
from offshelf.interpret.differentiable_head import differentiable_head
from offshelf.interpret.feature_reader import FeatureReader
from offshelf.transfer.classifier import FeatureClassifier, FinetunedClassifier
from offshelf.transfer.finetune import FineTune

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Explainable:
    """What explanations need of a classifier.

    model : from ``inputs`` to logits ``(B, K)``; classes : names of the K, in order; pixels : from files to
    ``(n, 3, H, W)`` uint8 and the errors by row; inputs : from such pixels to what ``model`` takes; probability : from
    logits to probabilities; size : height and width of ``inputs``; multi_label : each class is answered by itself.
    """

    model: nn.Module
    classes: list[str]
    pixels: Callable[[Samples, Advance], tuple[np.ndarray, dict[int, ImageError]]]
    inputs: Callable[[np.ndarray], torch.Tensor]
    probability: Callable[[torch.Tensor], torch.Tensor]
    size: tuple[int, int]
    multi_label: bool = False

    def example(self) -> torch.Tensor:
        """An input ``(1, 3, H, W)`` to try methods on: noise, the same at every call."""
        noise = np.random.default_rng(0).integers(0, 256, (1, 3, *self.size), dtype=np.uint8)
        return self.inputs(noise)

    def logits(self, pixels: np.ndarray, at_once: int = 64) -> torch.Tensor:
        """What the network says of ``pixels`` (n, 3, h, w): float32 (n, K)."""
        self.model.eval()
        parts = (pixels[first : first + at_once] for first in range(0, len(pixels), at_once))
        with torch.no_grad():
            return torch.cat([self.model(self.inputs(part)).float() for part in parts])


def explainable(classifier: FeatureClassifier | FinetunedClassifier) -> Explainable:
    """A run's classifier, to be explained.

    Raises
    ------
    UsageError
        When its head has no gradient; the message names heads that have one.
    """
    if isinstance(classifier, FinetunedClassifier):
        return of_network(classifier.estimator, classifier.classes)
    return of_features(classifier)


def of_network(estimator: FineTune, classes: list[str]) -> Explainable:
    """A fine-tuned network; ``classes`` in the order of its outputs."""
    size = estimator.store_size or estimator.image_size
    return Explainable(
        estimator.model_,
        list(classes),
        lambda samples, advance: load_pixels(samples, size, advance),
        estimator.views().plain,
        torch.sigmoid if estimator.multi_label else _softmax,
        (estimator.image_size, estimator.image_size),
        estimator.multi_label,
    )


def of_features(classifier: FeatureClassifier) -> Explainable:
    """Frozen features and a head; see `offshelf.interpret.feature_reader` for how it differs from two steps."""
    features = classifier.features.fit()
    if features.resize != "squash":
        raise UsageError(f"resize={features.resize!r}: only pictures that are squashed to the input can be explained.")
    head = differentiable_head(classifier.pipeline, classifier.arm)
    reader = FeatureReader(features, head.module)
    card = replace(reader.cards[0], input_size=reader.input_size)

    def pixels(samples: Samples, advance: Advance) -> tuple[np.ndarray, dict[int, ImageError]]:
        table, errors = np.zeros((len(samples), 3, *card.input_size), np.uint8), {}
        plain = replace(card, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
        for row in range(len(samples)):
            try:
                picture = decode_image(read_bytes(samples.image(row)), name=samples.name(row))
                if features.blank_area is not None:
                    picture = blank_centre(picture, area=features.blank_area)
                table[row] = to_input(picture, plain).round().byte().numpy()
            except ImageError as error:
                errors[row] = error
            advance(1)
        return table, errors

    return Explainable(
        reader,
        [classifier.classes[k] for k in classifier.pipeline.classes_],
        pixels,
        lambda table: normalised(torch.from_numpy(table).float() / 255, card.mean, card.std),
        head.probability,
        card.input_size,
    )


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=1)
