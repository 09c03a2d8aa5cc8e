"""COVID screening by transfer learning (arXiv 2003.13145; IEEE Access 8, 2020): a recipe for fine-tuning on X-rays.

Chowdhury et al. fine-tune networks that were pre-trained on everyday pictures on small sets of chest X-rays, with and
without geometric augmentation, and cross-validate them in five folds. Their claim: with pre-trained weights even a
small set is enough, and augmentation raises the accuracy further. This file holds the recipe for one network; the
study over networks, folds and schemes is `offshelf.evaluate.screening`.

Departures. The paper enlarges the training part on disk before training, until the classes are of similar size; here
every picture is turned, scaled and moved anew each time it is shown, and rare classes are drawn more often, so that no
copy of a picture can ever reach a test part. The epoch is chosen, as there, on a fifth of the training part, here by
the lowest loss and with groups whole. AdamW with a cosine takes the place of SGD, and the step of the new head
is ten times that of the trunk. The amounts are inside the ranges of the paper's operations. Pictures are not mirrored,
as in the paper: the heart lies on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin

from offshelf.errors import UsageError
from offshelf.transfer.finetune import FineTune


class CovidScreening(ClassifierMixin, BaseEstimator):
    """A classifier over X-rays: all weights of ``backbone`` and a new K-way head, trained by the study's recipe.

    Parameters
    ----------
    backbone : str
        As `offshelf.backbones.load.load_backbone` takes it; ``ARCH.random`` trains from scratch.
    image_size : int
        Side in pixels that pictures are resized to and the network sees. The paper: 224, or what the network asks for.
    epochs, batch_size : int
    learning_rate : float
        Largest step of a pre-trained trunk. The new head moves ``head_scale`` times as fast, and so does a trunk with
        random weights.
    head_scale : float
    weight_decay : float
    augment : bool
        Turn, scale and move each training picture by an own draw. Pictures that are judged are left as they are.
    oversample_to_balance : bool
        Show every class equally often; otherwise every picture once an epoch.
    rotation : float
        Largest turn either way, in degrees.
    scale : float
        Largest change of size: factors from 1 - scale to 1 + scale.
    translation : float
        Largest move along each axis, as a share of the side; what comes in from outside is black.
    validation_share : float
        Share of the training pictures on which the epoch is chosen; with 0 all are trained on and the last is kept.
    random_state : int

    Attributes
    ----------
    finetuner_ : FineTune
        The trained fine-tuner; its ``model_`` is a plain timm network.
    classes_ : ndarray (K,)
    """

    def __init__(
        self,
        backbone: str = "test_byobnet.offshelf_finetune_cifar10",
        image_size: int = 128,
        epochs: int = 10,
        batch_size: int = 32,
        learning_rate: float = 3e-4,
        head_scale: float = 10.0,
        weight_decay: float = 0.01,
        augment: bool = True,
        oversample_to_balance: bool = True,
        rotation: float = 10.0,
        scale: float = 0.1,
        translation: float = 0.1,
        validation_share: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.image_size = image_size
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_scale = head_scale
        self.weight_decay = weight_decay
        self.augment = augment
        self.oversample_to_balance = oversample_to_balance
        self.rotation = rotation
        self.scale = scale
        self.translation = translation
        self.validation_share = validation_share
        self.random_state = random_state

    def finetuner(self) -> FineTune:
        """The fine-tuner that these settings stand for, not yet trained.

        Raises
        ------
        UsageError
            When ``head_scale`` is not above 0, or ``validation_share`` is no share.
        """
        if not self.head_scale > 0:
            raise UsageError(f"head_scale={self.head_scale}: expected a number above 0; 10 is the default.")
        if not 0 <= self.validation_share < 1:
            raise UsageError(
                f"validation_share={self.validation_share}: expected from 0 to below 1; 0.2 is the default."
            )
        return FineTune(
            backbone=self.backbone,
            image_size=self.image_size,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate * self.head_scale,
            trunk_scale=1 / self.head_scale,
            weight_decay=self.weight_decay,
            label_smoothing=0.0,
            shift=0.0,
            flip=False,
            rotation=self.rotation if self.augment else 0.0,
            scale=self.scale if self.augment else 0.0,
            translation=self.translation if self.augment else 0.0,
            balanced=self.oversample_to_balance,
            early_stopping=self.epochs if self.validation_share else None,  # never early: the best of all epochs
            validation_share=self.validation_share or 0.1,
            random_state=self.random_state,
        )

    def fit(
        self,
        X: Any,
        y: Any,
        groups: Any = None,
        *,
        after_epoch: Callable[[int, dict[str, Any]], None] = lambda epoch, numbers: None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> CovidScreening:
        """Train on pictures ``X`` (n), or on a ``(n, 3, S, S)`` uint8 table of them, with labels ``y`` (n,).

        ``groups`` (n,), such as patients, are never divided between training and validation share.

        Raises
        ------
        DataError
            When a picture cannot be read, or there are fewer than two classes.
        UsageError
            When a number is out of its range.
        """
        self.finetuner_ = self.finetuner().fit(X, y, groups, after_epoch=after_epoch, advance=advance)
        self.classes_ = self.finetuner_.classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, K) in fp32, columns as ``classes_``."""
        return self.finetuner_.predict_proba(X)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each picture (n,)."""
        return self.finetuner_.predict(X)

    def inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """``(n, 3, S, S)`` uint8 as the trained network takes it: ``(n, 3, image_size, image_size)`` float32."""
        return self.finetuner_.views().plain(pixels)
