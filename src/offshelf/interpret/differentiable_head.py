"""A fitted head as layers of torch, so that what it says can be followed back to the pixels.

The layers give the scores ``(B, K)`` that the head's probabilities are made from, and the same function turns both into
probabilities. Two classes with one score s between them get -s and s (a softmax over one score: -s / 2 and s / 2), so
that either can be explained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from offshelf.errors import UsageError
from offshelf.transfer.early_stopping import activation_named
from offshelf.transfer.kernel_svm import KernelSVM
from offshelf.transfer.logistic_path import LogisticPath
from offshelf.transfer.off_the_shelf import OffTheShelf
from offshelf.transfer.perceptron import Perceptron
from offshelf.transfer.reproductive_features import ReproductiveFeatures
from offshelf.transfer.ridge_path import RidgePath

EXPLAINABLE = ("logistic", "ridge", "svm-linear", "slp", "mlp", "off-the-shelf")
Probability = Callable[[torch.Tensor], torch.Tensor]


class Layers(NamedTuple):
    """A head in torch: ``module`` gives scores ``(B, K)`` from features ``(B, D)``, ``probability`` what they mean."""

    module: nn.Module
    probability: Probability


def differentiable_head(pipeline: Pipeline, arm: str) -> Layers:
    """The fitted steps of a pipeline as torch layers.

    Parameters
    ----------
    pipeline : as `offshelf.transfer.pipelines.make_pipeline` makes it, fitted.
    arm : what to call it in an error.

    Raises
    ------
    UsageError
        For a head without a gradient that would mean something (nearest neighbours, Gaussian kernels), with what to do.
    """
    layers: list[nn.Module] = []
    for _, step in pipeline.steps[:-1]:
        if isinstance(step, StandardScaler):
            layers.append(_Standardised(step.mean_, step.scale_))
        elif isinstance(step, ReproductiveFeatures):
            named = [step.activation, step.code_activation]
            layers += _affine_layers(step.mean_, step.encoder_coefs_, step.encoder_intercepts_, named)
        else:
            raise _refusal(arm)
    found = _last(pipeline.steps[-1][1], arm)
    return Layers(nn.Sequential(*layers, found.module).eval(), found.probability)


def _last(head: Any, arm: str) -> Layers:
    if isinstance(head, LogisticPath):
        weight, bias = head.coef_, head.intercept_
        if len(head.classes_) == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return Layers(_linear(weight, bias), _softmax)
    if isinstance(head, RidgePath):
        temperature = head.temperature_
        return Layers(_linear(head.coef_, head.intercept_), lambda scores: _softmax(scores / temperature))
    if isinstance(head, Perceptron):
        named = [head.activation] * (len(head.coefs_) - 1) + [None]
        return Layers(nn.Sequential(*_affine_layers(head.mean_, head.coefs_, head.intercepts_, named)), _softmax)
    if isinstance(head, KernelSVM) and head.kernel == "linear" and head.probability:
        return Layers(_linear(*head.linear_margins()), _calibrated(head))
    if isinstance(head, OffTheShelf) and (head.multi_class == "ovr" or len(head.classes_) == 2):
        weight, bias = head.coef_, head.intercept_
        if len(head.classes_) == 2:
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        # The sum over copies is their number times the score of the mean copy.
        layers = [_UnitCopies(head.copies, head.power), _linear(weight * head.copies, bias * head.copies)]
        return Layers(nn.Sequential(*layers), _calibrated(head))
    raise _refusal(arm)


def _refusal(arm: str) -> UsageError:
    return UsageError(
        f"the head of {arm!r} cannot be explained: its score cannot be followed back to the pixels. Heads that can be "
        f"are {', '.join(EXPLAINABLE)}; fit one with `offshelf fit DATA --heads logistic`, or fine-tune a network."
    )


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(dim=1)


def _calibrated(head: Any) -> Probability:
    weight, bias = (torch.from_numpy(np.asarray(one)) for one in (head.calibration_weight_, head.calibration_bias_))

    def probability(scores: torch.Tensor) -> torch.Tensor:
        return (scores.double() @ weight.double().T + bias.double()).softmax(dim=1).to(scores.dtype)

    return probability


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.asarray(weight)))
        layer.bias.copy_(torch.from_numpy(np.asarray(bias)))
    return layer


def _affine_layers(
    mean: np.ndarray, weights: list[np.ndarray], biases: list[np.ndarray], activations: list[str | None]
) -> list[nn.Module]:
    layers: list[nn.Module] = [_Standardised(mean, np.ones_like(mean))]
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        layers.append(_linear(weight, bias))
        if activation is not None:
            layers.append(_Applied(activation_named(activation)))
    return layers


class _Standardised(nn.Module):
    """``(z - mean) / scale``."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.asarray(mean)).float())
        self.register_buffer("scale", torch.from_numpy(np.asarray(scale)).float())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z - self.mean) / self.scale


class _UnitCopies(nn.Module):
    """Copies of a picture ``(B, copies * d)`` to unit length, signed power, and their mean ``(B, d)``."""

    def __init__(self, copies: int, power: float) -> None:
        super().__init__()
        self.copies, self.power = copies, power

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        unit = nn.functional.normalize(z.view(len(z), self.copies, -1), dim=2)
        return (unit if self.power == 1 else unit.sign() * unit.abs() ** self.power).mean(dim=1)


class _Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.function(z)
