"""Fine-tuning: a backbone and a new linear head, trained together on labelled pictures.

The plain supervised form: AdamW, warm-up and cosine, a smaller step for the pre-trained trunk than for the new head,
label smoothing, and shifts and flips with an own draw for every picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from offshelf.backbones.card import card_of, weights_hash
from offshelf.backbones.load import load_backbone
from offshelf.backbones.route import has_bf16
from offshelf.data.augment import shift_and_flip
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.engine.loop import Schedule, train
from offshelf.errors import DataError, UsageError


class FineTune(ClassifierMixin, BaseEstimator):
    """A classifier over pictures: ``backbone`` with a new K-way linear head, all weights trained.

    Parameters
    ----------
    backbone : str
        As `offshelf.backbones.load.load_backbone` takes it; ``ARCH.random`` trains from scratch.
    image_size : int
        Side in pixels that pictures are resized to and the network sees.
    epochs, batch_size : int
    learning_rate : float
        Largest step of the head (and of the trunk from random weights).
    trunk_scale : float
        Factor of the trunk's step when it is pre-trained.
    weight_decay : float
        On matrices and kernels only; norms and biases do not decay.
    label_smoothing : float
    shift : float
        Largest shift as a share of the side.
    flip : bool
        Mirror half the pictures; switch off where left and right have a meaning.
    store_size : int, optional
        Side at which pictures are kept in memory, enlarged batch by batch; ``image_size`` by default. For pictures
        that are smaller than ``image_size`` this saves memory and changes nothing else.
    random_state : int

    Attributes
    ----------
    model_ : nn.Module
        The network with its head, in evaluation mode.
    classes_ : ndarray (K,)
    history_ : list of dict
        One record an epoch.
    """

    def __init__(
        self,
        backbone: str = "test_byobnet.random",
        image_size: int = 64,
        epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        trunk_scale: float = 0.1,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.1,
        shift: float = 0.125,
        flip: bool = False,
        store_size: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.image_size = image_size
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.trunk_scale = trunk_scale
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.shift = shift
        self.flip = flip
        self.store_size = store_size
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        after_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, numbers: None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> FineTune:
        """Train on pictures ``X`` (n) with labels ``y`` (n,).

        Raises
        ------
        DataError
            When a picture cannot be read, or there are fewer than two classes.
        UsageError
            When a number is out of its range.
        """
        for name in ("epochs", "batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: expected 1 or more.")
        self.classes_, targets = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"one class only ({self.classes_.tolist()}): a classifier needs at least two.")
        pixels = self._pixels(X)
        with torch.random.fork_rng(devices=[]):  # the new head's weights hang on the seed, and nothing outside moves
            torch.manual_seed(self.random_state)
            model = load_backbone(self.backbone, num_classes=len(self.classes_))
            self.card_ = card_of(model)
            self.model_ = model.to(memory_format=torch.channels_last).requires_grad_(True)
            self.history_ = train(
                self.model_,
                self._parameter_groups(),
                Schedule(len(targets), self.epochs, min(self.batch_size, len(targets)), seed=self.random_state),
                lambda rows, draws: (self._augmented(pixels[rows], draws), torch.from_numpy(targets[rows])),
                lambda output, target: F.cross_entropy(output, target, label_smoothing=self.label_smoothing),
                bf16=has_bf16(),
                after_epoch=after_epoch,
                advance=advance,
            )
        self.model_.requires_grad_(False).eval()
        began = "random weights" if self.card_.weights == "random" else self.card_.name
        self.model_.card = replace(  # type: ignore[assignment]
            self.card_,
            weights="run",
            weights_hash=weights_hash(self.model_),
            input_size=(self.image_size, self.image_size),
            crop_pct=1.0,
            interpolation="bilinear",
            note=f"trained from {began} on {len(targets)} pictures of {len(self.classes_)} classes",
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, K) in fp32, columns as ``classes_``."""
        return self.probabilities_of(self._pixels(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each picture (n,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def probabilities_of(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities of pictures already decoded: ``(n, 3, S, S)`` uint8."""
        found = []
        self.model_.eval()
        with torch.inference_mode():
            for first in range(0, len(pixels), 256):
                batch = self._normalised(torch.from_numpy(np.ascontiguousarray(pixels[first : first + 256])))
                found.append(self.model_(batch).float().softmax(dim=1))
        return torch.cat(found).numpy() if found else np.empty((0, len(self.classes_)), np.float32)

    def _pixels(self, X: Any) -> np.ndarray:
        if isinstance(X, np.ndarray) and X.ndim == 4 and X.shape[1] == 3 and X.dtype == np.uint8:
            return X  # decoded already, by `load_pixels`
        pixels, errors = load_pixels(as_samples(X), self.store_size or self.image_size)
        if errors:
            raise DataError(
                f"{len(errors)} pictures cannot be read, first {next(iter(errors.values()))}. Leave them out."
            )
        return pixels

    def _augmented(self, batch: np.ndarray, draws: np.random.Generator) -> torch.Tensor:
        return self._normalised(shift_and_flip(batch, draws, shift=self.shift, flip=self.flip))

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.shape[-1] != self.image_size:
            batch = F.interpolate(batch, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean = torch.tensor(self.card_.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.card_.std).view(1, 3, 1, 1)
        return ((batch.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        head = {id(p) for p in _classifier(self.model_).parameters()}
        trunk_rate = self.learning_rate * (1.0 if self.card_.weights == "random" else self.trunk_scale)
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.model_.parameters():
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.learning_rate if is_head else trunk_rate,
                "weight_decay": self.weight_decay if decays else 0.0,
            }
            for (is_head, decays), parameters in sorted(groups.items())
        ]


def _classifier(model: nn.Module) -> nn.Module:
    found = model.get_classifier()  # type: ignore[operator]
    if isinstance(found, tuple):  # DeiT's distilled form: one on each of two tokens, whose logits are averaged
        found = nn.ModuleList(found)
    if not isinstance(found, nn.Module):
        raise UsageError(
            f"{type(model).__name__} has no single classifier layer to fine-tune; choose another backbone."
        )
    return found
