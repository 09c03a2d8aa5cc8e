"""The arms of the four studies of filters: each changes one thing, at one cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from offshelf.backbones.card import card_of
from offshelf.backbones.kernel_shapes import check_shape
from offshelf.backbones.load import load_backbone
from offshelf.backbones.names import resolve
from offshelf.backbones.plain_cnn import PlainCNN
from offshelf.engine.undisturbed import same_random_states
from offshelf.errors import UsageError
from offshelf.evaluate.filter_shapes import TOLERANCE, Cost, Matched, cost_of, field_of, matched
from offshelf.interpret.filter_choice import check_rule
from offshelf.interpret.layer_inputs import convolutions

Study = Literal["initialisation", "size", "shape", "number"]
STUDY_NET = "plain_cnn.random"
UNCHANGED = "unchanged"
RULES = ("he", "orthogonal", "dct", "gabor", "pca", "k-means")
SIZES, NUMBERS = (1, 3, 5, 7), (12, 24, 48, 96)
SHAPES = ("square", "factorised", "stacked", "dilated", "cross", "ring", "separable")
BASE_FILTERS, BASE_SIZE = 48, 3


@dataclass(frozen=True)
class FilterArm:
    """One arm: its name, the rule that begins its filters (None: as the network has them), and the network's settings.

    ``field`` is the side in pixels that one value of the last map sees, where it is known.
    """

    name: str
    cost: Cost
    rule: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    field: int | None = None


@dataclass(frozen=True)
class Question:
    """What a study asks.

    values : rules, sizes, shapes or numbers of filters, the baseline first; None for the usual ones. size : of the
    kernels in the study of shapes. norm : of the study network. match, tolerance : which cost is equal, and how nearly.
    """

    study: Study
    values: tuple[Any, ...] | None = None
    backbone: str = STUDY_NET
    size: int = 5
    norm: Literal["batch", "none"] = "batch"
    match: Matched = "parameters"
    tolerance: float = TOLERANCE


def arms_of(question: Question, side: int, layers: Sequence[str] | None = None) -> list[FilterArm]:
    """The arms, the first of them the baseline.

    Raises
    ------
    UsageError
        For an unknown rule, layer or kernel, fewer than two arms, a network whose kernels cannot be chosen, or a cost
        that cannot be matched.
    BackboneError
        For a backbone that cannot be had.
    """
    values = question.values or usual(question)
    if len(set(values)) < max(2, len(values)):
        said = ", ".join(str(one) for one in values)
        raise UsageError(f"--study {question.study}: {said}: expected two or more, each once, to compare.")
    if question.study == "initialisation":
        for rule in values:
            if rule != UNCHANGED:
                check_rule(rule)
        model = network(question, {}, 2, 0)
        convolutions(model, layers)
        seen = field_of(model) if isinstance(model, PlainCNN) else None
        cost = cost_of(model, side)
        return [FilterArm(rule, cost, None if rule == UNCHANGED else rule, {}, seen) for rule in values]
    if question.backbone != STUDY_NET:
        raise UsageError(
            f"--backbone {question.backbone} with --study {question.study}: a finished backbone's kernels cannot be "
            "chosen; expected the study's own network (leave --backbone out), or --study initialisation."
        )
    if layers is not None:
        raise UsageError(f"--layers with --study {question.study}: all layers get the same kernel; leave it out.")
    return _matched_arms(question, values, side)


def usual(question: Question) -> tuple[Any, ...]:
    """The values of a study when none are named."""
    every: dict[str, tuple[Any, ...]] = {"initialisation": RULES, "shape": SHAPES, "size": SIZES, "number": NUMBERS}
    first = {"size": BASE_SIZE, "number": BASE_FILTERS}.get(question.study)
    values = every[question.study]
    return values if first is None else (first, *[one for one in values if one != first])


def _matched_arms(question: Question, values: tuple[Any, ...], side: int) -> list[FilterArm]:
    found: list[FilterArm] = []
    for value in values:
        settings = _settings(question, value)
        if found:  # the first is the baseline, whose cost the others have
            keep = question.study == "number"
            settings, cost = matched(
                settings,
                found[0].cost,
                side,
                what=question.match,
                tolerance=question.tolerance,
                keep_filters=keep,
            )
        else:
            cost = cost_of(PlainCNN(**settings), side)
        name = {"size": f"{value} x {value}", "number": f"{value} filters"}.get(question.study, str(value))
        found.append(FilterArm(name, cost, None, settings, field_of(PlainCNN(**settings))))
    return found


def _settings(question: Question, value: Any) -> dict[str, Any]:
    norm = {"norm": question.norm}
    if question.study == "number":
        if int(value) < 1:
            raise UsageError(f"--numbers {value}: expected 1 or more.")
        return norm | {"filters": int(value), "size": BASE_SIZE}
    size, shape = (int(value), "square") if question.study == "size" else (question.size, str(value))
    check_shape(shape, size)
    return norm | {"filters": BASE_FILTERS, "size": size, "shape": shape, "stage_size": size, "stage_shape": shape}


def network(question: Question, settings: dict[str, Any], n_classes: int, seed: int) -> nn.Module:
    """A network with a classifier, all of it trainable; random weights and the classifier hang on ``seed``."""
    with same_random_states():
        torch.manual_seed(seed)
        if question.backbone == STUDY_NET:
            import timm

            card = card_of(load_backbone(STUDY_NET))
            torch.manual_seed(seed)
            model = timm.create_model("plain_cnn", num_classes=n_classes, **({"norm": question.norm} | settings))
            model.card = card  # type: ignore[assignment]
        else:
            source = resolve(question.backbone)
            random = source.kind == "random" and seed
            name = f"{source.architecture}.random_{source.seed + seed}" if random else question.backbone
            model = load_backbone(name, num_classes=n_classes)
    return model.requires_grad_(True)
