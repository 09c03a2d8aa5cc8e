"""Fine-tuning: a backbone and a new linear head, trained together on labelled pictures.

The plain supervised form by default: AdamW, warm-up and cosine, a smaller step for the pre-trained trunk than for the
new head, label smoothing, and shifts with an own draw for every picture. What recipes add to it can be switched on one
by one: layer-wise decay of the rates, a frozen start, stochastic depth, RandAugment, crops, mixed pictures, balanced
classes, averaged weights, and the choice of the epoch on a validation share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from offshelf.backbones.b_cosification import BCosNetwork
from offshelf.backbones.card import card_of, weights_hash
from offshelf.backbones.input_size import set_input_size
from offshelf.backbones.load import load_backbone
from offshelf.backbones.route import has_bf16
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Trained, Training, Watch, train
from offshelf.engine.undisturbed import same_random_states, undisturbed
from offshelf.errors import DataError, UsageError
from offshelf.transfer.b_cos_recipe import BCosClassification, b_cos_network, optimisation, settle
from offshelf.transfer.best_epoch import BestEpoch, left_out, rarest_class
from offshelf.transfer.classification import Classification, ClassificationViews, LabelledPictures, Mixing
from offshelf.transfer.finetune_settings import check_settings

AfterEpoch = Callable[[int, dict[str, Any]], None]
JUDGED = 256  # pictures judged at once


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
        Share of the target that is spread over all classes; with ``multi_label`` over yes and no.
    shift : float
        Largest shift as a share of the side.
    flip : bool
        Mirror half the pictures; switch off where left and right have a meaning.
    store_size : int, optional
        Side at which pictures are kept in memory, enlarged batch by batch; ``image_size`` by default. For pictures
        that are smaller than ``image_size`` this saves memory and changes nothing else.
    random_state : int
    warm_head : float
        Share of the steps, at the start, in which only the head moves (Kumar et al. 2022).
    layer_decay : float, optional
        Factor of the step from each layer of the trunk to the one before it (Bao et al. 2022), stages in place of
        layers in deep networks.
    drop_path : float
        Largest chance with which a residual path is left out in training (Huang et al. 2016).
    rand_augment : str, optional
        RandAugment as timm writes it, such as ``"rand-m6-mstd0.5-inc1"`` (Cubuk et al. 2020).
    crop : float, optional
        Lowest share of the area of a randomly resized crop; None takes whole pictures.
    mixup, cutmix : float
        Parameters of the beta distributions of mixing shares (Zhang et al. 2018; Yun et al. 2019); 0 is off.
    balanced : bool
        Show every class equally often, in as many pictures an epoch as there are.
    rotation : float
        Largest turn either way, in degrees; black comes in from outside, as with ``scale`` and ``translation``.
    scale : float
        Largest change of size: factors from 1 - scale to 1 + scale.
    translation : float
        Largest move along each axis, as a share of the side.
    multi_label : bool
        ``y`` is (n, K) of 0, 1 and NaN (unknown), K independent answers trained by binary cross-entropy.
    average : float, optional
        Decay of a moving average of the weights, which is then the product.
    early_stopping : int, optional
        Stop after so many epochs without a lower loss on the validation share; the best epoch's weights are kept. As
        many as ``epochs`` chooses the best epoch and never stops.
    validation_share : float
        Share of the pictures left out for that, stratified by class, groups whole. Without early stopping: none.
    head_std : float, optional
        Standard deviation of the new head's weights (truncated normal, biases 0); as timm draws them by default.
    b_cos : float, optional
        Rewrite the backbone into a B-cos network of this exponent, such as 2, whose answers explain themselves
        (`offshelf.backbones.b_cosification`), and train it by its own recipe: binary cross-entropy, adaptive clipping,
        no weight decay, no label smoothing. A backbone that is a B-cos network is trained so in any case.
    precision : {"auto", "bf16", "fp32"}
        Of the forward passes in training; "auto" takes bfloat16 where the processor computes with it.

    Attributes
    ----------
    model_ : nn.Module
        The network with its head, in evaluation mode.
    classes_ : ndarray (K,)
        With ``multi_label`` the numbers of the columns.
    history_ : list of dict
        One record an epoch: ``epoch``, ``loss``, ``learning_rate``, ``samples_per_second``, ``validation_loss``.
    card_ : BackboneCard
        Of the backbone as it was loaded.
    best_epoch_ : int
        The epoch, from 1, whose weights are kept.
    validation_rows_ : ndarray
        Rows of ``X`` that were left out to choose it.
    status_ : {"complete", "stopped", "diverged"}
        "stopped" when the time was up or the process was asked to end; the same call with the same ``checkpoints`` goes
        on. "diverged" when the loss stopped being a number and the weights are those of the last checkpoint.
    notes_ : list of str
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
        warm_head: float = 0.0,
        layer_decay: float | None = None,
        drop_path: float = 0.0,
        rand_augment: str | None = None,
        crop: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        balanced: bool = False,
        rotation: float = 0.0,
        scale: float = 0.0,
        translation: float = 0.0,
        multi_label: bool = False,
        average: float | None = None,
        early_stopping: int | None = None,
        validation_share: float = 0.1,
        head_std: float | None = None,
        b_cos: float | None = None,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
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
        self.warm_head = warm_head
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.rand_augment = rand_augment
        self.crop = crop
        self.mixup = mixup
        self.cutmix = cutmix
        self.balanced = balanced
        self.rotation = rotation
        self.scale = scale
        self.translation = translation
        self.multi_label = multi_label
        self.average = average
        self.early_stopping = early_stopping
        self.validation_share = validation_share
        self.head_std = head_std
        self.b_cos = b_cos
        self.precision = precision

    def fit(
        self,
        X: Any,
        y: Any,
        groups: Any = None,
        *,
        after_epoch: AfterEpoch = lambda epoch, numbers: None,
        advance: Callable[[int], None] = lambda n: None,
        checkpoints: Path | None = None,
        minutes: float | None = None,
        launch: Launch | None = None,
        workers: int = 0,
    ) -> FineTune:
        """Train on pictures ``X`` (n) with labels ``y``: (n,), or (n, K) with ``multi_label``.

        Parameters
        ----------
        groups : (n,), optional
            Rows of one group (a patient) are never divided between training and validation share.
        after_epoch : called with the epoch (from 0) and its record.
        advance : called with a number of steps done.
        checkpoints : folder to save into and to go on from; equal calls end with equal bytes however often they were
            killed in between. Whoever keeps the product removes it.
        minutes : stop after so long.
        launch : on which device; the processor by default. One process.
        workers : processes that prepare pictures.

        Raises
        ------
        DataError
            When a picture cannot be read, or labels do not suit.
        UsageError
            When a setting is out of its range.
        BackboneError
            For backbones that cannot be had, or have no paths to drop.
        RunError
            For checkpoints of another training.
        """
        check_settings(self.get_params())
        launch = launch or Launch(accelerator="cpu")
        if launch.world > 1:
            raise UsageError(f"{launch.world} processes: fine-tuning runs in one. Give --devices 1.")
        targets = self._targets(y)
        pixels = self._pixels(X)
        if len(pixels) != len(targets):
            raise UsageError(f"{len(pixels)} pictures and {len(targets)} labels: expected one label a picture.")
        kept, self.validation_rows_ = self._divided(targets, groups)
        steps_an_epoch = max(1, len(kept) // self.batch_size)
        with same_random_states():  # the new head's weights hang on the seed, and nothing outside moves
            module = self._module(round(self.warm_head * self.epochs * steps_an_epoch))
            data = self._data(pixels, targets, kept)
            if isinstance(module.backbone, BCosNetwork):
                settle(module.backbone, pixels, kept, self.views())
            best = BestEpoch(self.early_stopping or self.epochs, checkpoints)
            aside = self.validation_rows_
            judge = partial(self._validation_loss, pixels=pixels, targets=targets) if len(aside) else None
            teller = _Teller(best, judge, steps_an_epoch, after_epoch, advance)
            trained = train(
                module,
                data,
                self._training(len(kept), steps_an_epoch, module),
                launch=launch,
                watch=teller.watch(),
                workers=workers,
                checkpoints=checkpoints,
                identity=None if checkpoints is None else self._identity(pixels, targets, kept),
                minutes=minutes,
            )
        self._conclude(module, trained, best, len(kept))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, K) in fp32, columns as ``classes_``; with ``multi_label`` each of its own."""
        return self.probabilities_of(self._pixels(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each picture (n,); with ``multi_label`` 0 or 1 (n, K), 1 from one half on."""
        found = self.predict_proba(X)
        return (found >= 0.5).astype(np.int64) if self.multi_label else self.classes_[found.argmax(axis=1)]

    def probabilities_of(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities of pictures already decoded: ``(n, 3, S, S)`` uint8."""
        self.model_.eval()
        views, found = self.views(), []
        with torch.inference_mode():
            for first in range(0, len(pixels), JUDGED):
                batch = views.plain(pixels[first : first + JUDGED]).contiguous(memory_format=torch.channels_last)
                logits = self.model_(batch).float()
                found.append(logits.sigmoid() if self.multi_label else logits.softmax(dim=1))
        return torch.cat(found).numpy() if found else np.empty((0, len(self.classes_)), np.float32)

    def views(self) -> ClassificationViews:
        """What a training picture goes through; of a fitted estimator."""
        return ClassificationViews(
            size=self.image_size,
            mean=tuple(self.card_.mean),
            std=tuple(self.card_.std),
            shift=self.shift,
            flip=self.flip,
            rand_augment=self.rand_augment,
            crop=self.crop,
            rotation=self.rotation,
            scale=self.scale,
            translation=self.translation,
        )

    # -- before the training -------------------------------------------------------------------------------------------

    def _targets(self, y: Any) -> np.ndarray:
        """Class numbers (n,) or multi-hot floats (n, K); sets ``classes_``."""
        if not self.multi_label:
            labels = np.asarray(y)
            if labels.ndim != 1:
                raise UsageError(
                    f"labels of shape {labels.shape}: expected (n,), a class each; multi_label=True takes (n, K)."
                )
            self.classes_, codes = np.unique(labels, return_inverse=True)
            if len(self.classes_) < 2:
                raise DataError(f"one class only ({self.classes_.tolist()}): a classifier needs at least two.")
            return codes.astype(np.int64)
        table = np.asarray(y, dtype=np.float32)
        if table.ndim != 2 or not table.shape[1]:
            raise UsageError(f"labels of shape {table.shape}: expected (n, K) with multi_label=True.")
        odd = table[~(np.isnan(table) | (table == 0) | (table == 1))]
        if len(odd):
            raise DataError(f"a label of {odd[0]:g}: expected 0, 1 or NaN (unknown) with multi_label=True.")
        if len(table) < 2 or np.isnan(table).all():
            raise DataError(f"{len(table)} pictures, {int((~np.isnan(table)).sum())} known labels: expected 2 or more.")
        self.classes_ = np.arange(table.shape[1])
        return table

    def _divided(self, targets: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows to choose the epoch on."""
        everything = np.arange(len(targets))
        if groups is not None and len(groups) != len(targets):
            raise UsageError(f"groups has {len(groups)} entries, expected {len(targets)}: one for each picture.")
        if self.early_stopping is None:
            return everything, everything[:0]
        codes = rarest_class(targets) if self.multi_label else targets
        aside = left_out(
            codes, None if groups is None else np.asarray(groups), self.validation_share, self.random_state
        )
        return np.setdiff1d(everything, aside), aside

    def _module(self, frozen_steps: int) -> Classification:
        """The network with its new head, and its loss."""
        torch.manual_seed(self.random_state)
        model = load_backbone(self.backbone, num_classes=len(self.classes_), drop_path=self.drop_path)
        model = b_cos_network(model, self.b_cos)
        self.card_ = card_of(model)
        if tuple(self.card_.input_size) != (self.image_size, self.image_size):
            set_input_size(model, self.image_size, self.image_size)
        head = _classifier(model)
        if self.head_std is not None:
            for name, parameter in head.named_parameters():
                if name.endswith("weight"):
                    nn.init.trunc_normal_(parameter, std=self.head_std)
                else:
                    nn.init.zeros_(parameter)
        kind = BCosClassification if isinstance(model, BCosNetwork) else Classification
        return kind(
            model.requires_grad_(True),
            multi_label=self.multi_label,
            label_smoothing=self.label_smoothing,
            layer_decay=self.layer_decay,
            trunk_scale=1.0 if self.card_.weights == "random" else self.trunk_scale,
            frozen_steps=frozen_steps,
        )

    def _data(self, pixels: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> LabelledPictures:
        return LabelledPictures(
            pixels,
            targets,
            self.views(),
            len(self.classes_),
            seed=self.random_state,
            mixing=Mixing(self.mixup, self.cutmix),
            balanced=self.balanced,
            rows=rows,
        )

    def _training(self, n: int, steps_an_epoch: int, module: Classification) -> Training:
        size = min(self.batch_size, n)
        recipe = Recipe(
            learning_rate=self.learning_rate,
            batch_size=size,
            epochs=self.epochs,
            **optimisation(module.backbone, self.weight_decay),
        )
        return Training(
            recipe,
            steps=self.epochs * steps_an_epoch,
            batch_size=size,
            seed=self.random_state,
            freeze_trunk=module.frozen_steps,
            average=self.average,
            bf16=has_bf16() if self.precision == "auto" else self.precision == "bf16",
        )

    def _identity(self, pixels: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        """What the checkpoints belong to: settings, weights and data."""
        content = hashlib.sha256(targets.tobytes() + rows.tobytes())
        for first in range(0, len(pixels), 4096):
            content.update(pixels[first : first + 4096].tobytes())
        return self.get_params() | {"weights": self.card_.weights_hash, "content": content.hexdigest()}

    def _validation_loss(self, module: Classification, pixels: np.ndarray, targets: np.ndarray) -> float:
        """Loss on the validation share, pictures as they are, nothing smoothed."""
        views, rows, logits = self.views(), self.validation_rows_, []
        device = next(module.parameters()).device
        with undisturbed(module):
            for first in range(0, len(rows), JUDGED):
                batch = views.plain(pixels[rows[first : first + JUDGED]])
                logits.append(module.backbone(batch.to(device, memory_format=torch.channels_last)).float().cpu())
            return float(module.loss(torch.cat(logits), torch.from_numpy(targets[rows])))

    # -- after it ------------------------------------------------------------------------------------------------------

    def _conclude(self, module: Classification, trained: Trained, best: BestEpoch, n: int) -> None:
        self.history_, self.notes_ = trained.history, trained.notes
        self.status_ = "complete" if trained.status == "collapsed" else trained.status
        self.best_epoch_ = len(self.history_)
        if trained.average is not None:
            module.load_state_dict(trained.average)
        if best.epoch:
            module.load_state_dict(best.weights)
            self.best_epoch_ = best.epoch
            if best.stopped:
                self.history_ = best.history
        self.model_ = module.backbone.requires_grad_(False).eval()
        kind = f" as a B-cos network (B = {self.model_.b:g})" if isinstance(self.model_, BCosNetwork) else ""
        began = "random weights" if self.card_.weights == "random" else self.card_.name
        self.model_.card = replace(  # type: ignore[assignment]
            self.card_,
            weights="run",
            weights_hash=weights_hash(self.model_),
            input_size=(self.image_size, self.image_size),
            crop_pct=1.0,
            interpolation="bilinear",
            note=f"trained from {began} on {n} pictures of {len(self.classes_)} classes{kind}",
        )

    def _pixels(self, X: Any) -> np.ndarray:
        if isinstance(X, np.ndarray) and X.ndim == 4 and X.shape[1] == 3 and X.dtype == np.uint8:
            return X  # decoded already, by `load_pixels`
        pixels, errors = load_pixels(as_samples(X), self.store_size or self.image_size)
        if errors:
            raise DataError(
                f"{len(errors)} pictures cannot be read, first {next(iter(errors.values()))}. Leave them out."
            )
        return pixels


class _Teller:
    """What is said while a network is trained, and the loss on the validation share."""

    def __init__(
        self,
        best: BestEpoch,
        judge: Callable[[Classification], float] | None,
        steps_an_epoch: int,
        after_epoch: AfterEpoch,
        advance: Callable[[int], None],
    ) -> None:
        self.best, self.judge, self.steps_an_epoch = best, judge, steps_an_epoch
        self.after_epoch, self.advance = after_epoch, advance
        self.history: list[dict[str, Any]] = []

    def watch(self) -> Watch:
        """What the training loop calls."""
        probe = None if self.judge is None else self.probe
        return Watch(self.log, self.advance, probe, self.steps_an_epoch, True, self.restarted)

    def restarted(self, history: list[dict[str, Any]]) -> None:
        """Tell again what an earlier process told."""
        self.history = list(history)
        if history:
            self.best.take_up()
        for record in history:
            self.after_epoch(record["epoch"] - 1, record)

    def log(self, record: dict[str, Any]) -> None:
        """Take in an epoch's record; it is told once it is complete."""
        record["epoch"] = round(record["epoch"])
        self.history.append(record)
        if self.judge is None:
            self.after_epoch(record["epoch"] - 1, record)

    def probe(self, step: int, module: Classification) -> dict[str, Any]:
        """Judge an epoch; the record says whether to stop."""
        if not step:
            return {}
        assert self.judge is not None
        epoch, loss = step // self.steps_an_epoch, self.judge(module)
        self.history[-1]["validation_loss"] = loss
        stop = self.best.told(epoch, loss, module.state_dict(), list(self.history))
        self.after_epoch(epoch - 1, self.history[-1])
        said = f"stopped after epoch {epoch}: the lowest validation loss was that of epoch {self.best.epoch}"
        return {"validation_loss": loss} | ({"stop": said} if stop else {})


def _classifier(model: nn.Module) -> nn.Module:
    found = model.get_classifier()  # type: ignore[operator]
    if isinstance(found, tuple):  # DeiT's distilled form: one on each of two tokens, whose logits are averaged
        found = nn.ModuleList(found)
    if not isinstance(found, nn.Module):
        raise UsageError(
            f"{type(model).__name__} has no single classifier layer to fine-tune; choose another backbone."
        )
    return found
