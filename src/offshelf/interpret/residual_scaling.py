"""How the stream of a residual network grows with depth, and what a factor on its branches changes while it learns.

A residual block adds to its input, so what flows through the network grows from block to block. Szegedy et al. (2016,
arXiv 1602.07261, section 3.3) saw very wide residual networks "die" early: the layer before the pooling gave zeros
only. A lower learning rate did not help; a factor of 0.1 to 0.3 on every branch did. Here that is measured: the root
mean square (RMS) of the stream after each block, the norm of the gradient, and the share of zeros before the pooling.

Where a branch ends in a projection of normalised maps, as here, its size does not depend on the stream's, and the mean
square at the start grows by a constant times s^2 a block: linearly with depth, and not exponentially.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.backbones.residual_scale import residual_blocks, set_residual_scale
from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe
from offshelf.engine.undisturbed import same_random_states
from offshelf.errors import BackboneError, UsageError
from offshelf.transfer.classification import ClassificationViews, LabelledPictures
from offshelf.transfer.watched_training import Course, predicted_classes, watched_training

LAST = 10  # steps at the end whose mean is the loss that a training came to


def residual_growth(model: nn.Module, pictures: torch.Tensor, training: bool = True) -> dict[str, Any]:
    """RMS of the residual stream before the first block and after each.

    Parameters
    ----------
    model : a network with residual blocks; left as it was, its batch statistics too.
    pictures : float (B, 3, H, W), normalised as the network expects.
    training : use the statistics of this batch in batch norms, as training does; at the start those that are stored say
        nothing yet.

    Returns
    -------
    dict
        ``blocks`` (names), ``entry`` (RMS of the first block's input), ``rms`` (of each block's output), ``growth``
        (last over entry; None where it is no number), and ``zero_share`` (of the last map or tokens before pooling).

    Raises
    ------
    BackboneError
        For a network without residual blocks.
    """
    blocks = residual_blocks(model)
    if not blocks:
        raise BackboneError(
            f"{type(model).__name__} has no residual blocks, so there is no residual stream to measure; expected a "
            "network that adds branches to its input."
        )
    entry: list[float] = []
    rms: dict[str, float] = {}
    handles = [next(iter(blocks.values())).register_forward_pre_hook(lambda _, x: entry.append(_rms(x[0])))]
    for name, block in blocks.items():
        handles.append(block.register_forward_hook(lambda _, x, y, name=name: rms.update({name: _rms(y)})))
    network: Any = model
    try:
        with _as_in_training(model, training), torch.no_grad():
            last = network.forward_features(pictures)
    finally:
        for handle in handles:
            handle.remove()
    values = list(rms.values())
    growth = values[-1] / entry[0] if entry[0] > 0 else math.nan
    return {
        "blocks": list(rms),
        "entry": entry[0],
        "rms": values,
        "growth": growth if math.isfinite(growth) else None,
        "zero_share": float((last == 0).float().mean()),
    }


def residual_scaling_study(
    make_model: Callable[[int], nn.Module],
    scales: Sequence[float],
    learning_rates: Sequence[float],
    pixels: np.ndarray,
    labels: np.ndarray,
    views: ClassificationViews,
    *,
    test_pixels: np.ndarray | None = None,
    steps: int = 150,
    batch_size: int = 64,
    every: int = 25,
    seeds: Sequence[int] = (0, 1, 2),
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    launch: Launch | None = None,
    told: Callable[[dict[str, Any]], None] = lambda run: None,
) -> list[dict[str, Any]]:
    """Train one network with each scale, learning rate and seed, by plain SGD, and watch its residual stream.

    Parameters
    ----------
    make_model : seed -> a network with residual blocks and a classifier of as many outputs as there are classes; the
        same weights for the same seed.
    scales : factors of all residual branches. learning_rates : constant ones.
    pixels, labels : uint8 (n, 3, S, S) and class numbers (n,) from 0.
    views : what a picture goes through on its way to the network.
    test_pixels : uint8 (m, 3, S, S), to be named by each trained network.
    steps, batch_size : of each training. every : steps between two looks at the stream.
    told : called with each run as it ends.

    Returns
    -------
    list of dict
        One a run, in the order seed, learning rate, scale: ``scale``, ``learning_rate``, ``seed``, ``stream`` (what
        `residual_growth` gives, with ``step``), ``growth_at_start``, ``largest_growth``, ``largest_gradient`` (norm),
        ``spike`` (largest over median), ``last_loss``, ``diverged_at``, ``above_chance`` (the loss is no number, or
        above ln K at the end, so that nothing was learnt), ``died`` (only zeros before the pooling), ``seconds``, and
        ``predicted`` (m,) where there are test pictures.

    References
    ----------
    Szegedy et al. 2016, arXiv 1602.07261, section 3.3.
    """
    if not scales or not learning_rates or not seeds:
        raise UsageError("expected at least one scale, one learning rate and one seed.")
    classes = int(labels.max()) + 1
    looked_at = views.plain(pixels[: min(batch_size, len(pixels))])
    runs = []
    for seed in seeds:
        data = LabelledPictures(pixels, labels, views, classes, seed=seed)
        for rate in learning_rates:
            recipe = Recipe(
                optimiser="sgd", learning_rate=rate, weight_decay=weight_decay, betas=(momentum, 0.999),
                batch_size=batch_size, warmup=0.0, final_rate=1.0,
            )  # fmt: skip
            for scale in scales:
                model = make_model(seed)
                set_residual_scale(model, scale)
                course = watched_training(
                    model, data, recipe, steps, seed=seed, launch=launch, probe_every=every,
                    probe=lambda network: residual_growth(network, looked_at.to(next(network.parameters()).device)),
                )  # fmt: skip
                run = {"scale": scale, "learning_rate": rate, "seed": seed} | _summary(course, classes)
                if test_pixels is not None:
                    run["predicted"] = predicted_classes(model, test_pixels, views)
                runs.append(run)
                told(run)
    return runs


def _summary(course: Course, classes: int) -> dict[str, Any]:
    """One run in numbers."""
    growths = [one["growth"] for one in course.probes]
    last = float(np.mean(course.losses[-LAST:])) if course.losses and course.diverged_at is None else math.nan
    norms = np.array(course.gradient_norms or [math.nan])
    largest, middle = float(norms.max()), float(np.median(norms))
    return {
        "stream": course.probes,
        "growth_at_start": growths[0],
        "largest_growth": None if None in growths else max(growths),
        "largest_gradient": largest if math.isfinite(largest) else None,
        "spike": largest / middle if math.isfinite(largest) and middle > 0 else None,
        "last_loss": last if math.isfinite(last) else None,
        "diverged_at": course.diverged_at,
        "above_chance": not last <= math.log(classes),
        "died": course.probes[-1]["zero_share"] == 1.0,
        "seconds": course.seconds,
    }


def _rms(value: Any) -> float:
    """Root mean square of a map, or of the first of several."""
    tensor = value[0] if isinstance(value, tuple) else value
    return float(tensor.detach().float().square().mean().sqrt())


@contextmanager
def _as_in_training(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside, ``model`` is in training mode (or not); its flags, buffers and all random states are put back."""
    flags = [(part, part.training) for part in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with same_random_states():
        try:
            model.train(training)
            yield
        finally:
            for part, flag in flags:
                part.training = flag
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
