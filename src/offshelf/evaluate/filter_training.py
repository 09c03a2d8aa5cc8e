"""One arm of the study of filters: a network with designed filters, trained and followed.

Arms that are compared share the recipe, the pictures and their order; with equal seeds they share the random weights of
all other layers too, so that nothing but what is studied differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.data.augment import normalised, resized
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Training, Watch, train
from offshelf.engine.undisturbed import undisturbed
from offshelf.interpret.filter_design import Design
from offshelf.interpret.filter_quality import layer_quality
from offshelf.interpret.layer_inputs import looked_at, normalisation
from offshelf.transfer.classification import Classification, ClassificationViews, LabelledPictures

JUDGED = 500  # pictures at once
LOOKED_AT = 256  # pictures of the first step's activations and of dead filters
FLAT = 1e-6  # range of a channel, against the largest of its layer, below which its filter is dead
KEPT_FILTERS = 512  # of a layer, for drawing


@dataclass(frozen=True)
class FilterRecipe:
    """How every arm is trained: AdamW with warm-up and cosine, shifts and mirrors."""

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    shift: float = 0.125
    flip: bool = True


@dataclass
class Pictures:
    """Pictures ``(n, 3, S, S)`` uint8 with class numbers, in three parts; the test part never chooses anything."""

    train: np.ndarray
    train_labels: np.ndarray
    validation: np.ndarray
    validation_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    n_classes: int


@dataclass
class Followed:
    """What one training gave.

    validation : predictions ``(n,)`` after each epoch. first, last : predictions of the test pictures after the first
    epoch and at the end. losses : mean of each epoch. variances : of each convolution's output in the first step.
    travelled, dead, quality, filters : by designed layer; the last three as pairs (before, after).
    """

    model: nn.Module
    validation: list[np.ndarray] = field(default_factory=list)
    first: np.ndarray | None = None
    last: np.ndarray | None = None
    losses: list[float] = field(default_factory=list)
    variances: dict[str, float] = field(default_factory=dict)
    travelled: dict[str, float] = field(default_factory=dict)
    dead: dict[str, tuple[float, float]] = field(default_factory=dict)
    quality: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    filters: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    seconds: float = 0.0


class DesignedClassification(Classification):
    """A classification in which the loop's freeze of the "trunk" holds the designed layers, and only those."""

    held: frozenset[str] = frozenset()

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The groups of a classification, with the held layers in groups of their own."""
        inside = {id(parameter) for name in self.held for parameter in self.backbone.get_submodule(name).parameters()}
        found = []
        for group in super().parameter_groups(learning_rate, weight_decay):
            for held in (True, False):
                chosen = [parameter for parameter in group["params"] if (id(parameter) in inside) is held]
                if chosen:
                    found.append(group | {"params": chosen, "trunk": held})
        return found


def follow(
    model: nn.Module,
    layers: Sequence[str],
    pictures: Pictures,
    recipe: FilterRecipe,
    *,
    design: Design | None = None,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
    validate: bool = True,
) -> Followed:
    """Train ``model``, whose ``layers`` were designed, in place, and measure on the way.

    Parameters
    ----------
    model
        A network with a classifier; what is frozen in it stays so.
    layers
        Convolutions to measure.
    design
        Says for how many epochs they are frozen; None trains them.
    seed
        Of the order and the draws of the pictures.
    validate
        Predict the validation pictures after each epoch; else only at the end.

    Raises
    ------
    OffshelfError
        When the loss stops being a number.
    """
    started = time.perf_counter()
    size = pictures.train.shape[-1]
    mean, std = normalisation(model)
    views = ClassificationViews(size, mean, std, shift=recipe.shift, flip=recipe.flip)
    data = LabelledPictures(pictures.train, pictures.train_labels, views, pictures.n_classes, seed=seed)
    module = DesignedClassification(model, label_smoothing=recipe.label_smoothing)
    frozen = design.frozen_epochs if design is not None else 0
    batch = min(recipe.batch_size, len(data))
    steps_an_epoch = max(1, len(data) // batch)
    if design is not None and frozen:  # the loop holds them for so long and then lets them go
        design.release(model, frozen)
        module.held = frozenset(layers)
    plan = Training(
        Recipe(
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            batch_size=batch,
            epochs=recipe.epochs,
            clip=1.0,
        ),
        steps=recipe.epochs * steps_an_epoch,
        batch_size=batch,
        seed=seed,
        freeze_trunk=(frozen or 0) * steps_an_epoch,
    )
    before = _weights(model, layers)
    found = Followed(model)
    look = views.plain(pictures.train[np.random.default_rng([seed, 26]).permutation(len(data))[:LOOKED_AT]])
    found.variances = output_variances(model, look)
    dead = {name: dead_share(model, name, look) for name in layers}

    def judge(step: int, _: Any) -> dict[str, Any]:
        if not step:
            return {}
        if validate or step == plan.steps:
            found.validation.append(predicted(model, pictures.validation))
        if step == steps_an_epoch:
            found.first = predicted(model, pictures.test)
        if step == plan.steps:
            found.last = found.first if step == steps_an_epoch else predicted(model, pictures.test)
        return {}

    trained = train(module, data, plan, watch=Watch(advance=advance, probe=judge, probe_every=steps_an_epoch))
    found.losses = [float(record["loss"]) for record in trained.history]
    model.eval()
    after = _weights(model, layers)
    for name in layers:
        start, end = before[name], after[name]
        length = float(np.linalg.norm(start))
        found.travelled[name] = float(np.linalg.norm(end - start)) / length if length else float("nan")
        found.dead[name] = dead[name], dead_share(model, name, look)
        found.quality[name] = layer_quality(start).as_dict(), layer_quality(end).as_dict()
        found.filters[name] = start[:KEPT_FILTERS], end[:KEPT_FILTERS]
    found.seconds = time.perf_counter() - started
    return found


def predicted(model: nn.Module, table: np.ndarray) -> np.ndarray:
    """The class numbers ``(n,)`` that a network gives pictures ``(n, 3, S, S)`` uint8."""
    mean, std = normalisation(model)
    answers = []
    with undisturbed(model):
        for first in range(0, len(table), JUDGED):
            part = torch.from_numpy(np.ascontiguousarray(table[first : first + JUDGED]))
            batch = normalised(resized(part, table.shape[-1]), mean, std).contiguous(memory_format=torch.channels_last)
            answers.append(model(batch).argmax(dim=1))
    return torch.cat(answers).numpy() if answers else np.empty(0, np.int64)


def output_variances(model: nn.Module, batch: torch.Tensor) -> dict[str, float]:
    """Variance of each convolution's output over a batch ``(B, 3, H, W)``, by name, as a first step would find it."""
    found: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.__setitem__(name, float(output.var()))

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with looked_at(model):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def dead_share(model: nn.Module, layer: str, batch: torch.Tensor) -> float:
    """Share of a layer's filters that give the same everywhere in a batch, once the next non-linearity has passed.

    Where no module of its own is the non-linearity, the layer's own output counts.
    """
    seen: list[torch.Tensor] = []
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    width = conv.out_channels

    def own(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen[:] = [output]

    def next_one(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if len(seen) == 1 and output.ndim == 4 and output.shape[1] == width:
            seen.append(output)

    handles = [conv.register_forward_hook(own)]
    handles += [module.register_forward_hook(next_one) for module in model.modules() if _is_activation(module)]
    try:
        with looked_at(model):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    reach = seen[-1].amax(dim=(0, 2, 3)) - seen[-1].amin(dim=(0, 2, 3))
    return float((reach <= FLAT * reach.max().clamp_min(1e-30)).float().mean())


def _is_activation(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__ in ("torch.nn.modules.activation", "timm.layers.activations") or kind.__name__.endswith(
        "Act2d"
    )


def _weights(model: nn.Module, layers: Sequence[str]) -> dict[str, np.ndarray]:
    found = {}
    for name in layers:
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        found[name] = conv.weight.detach().cpu().double().numpy().copy()
    return found
