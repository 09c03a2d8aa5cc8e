"""What the survey of filter design (arXiv 2410.21644) calls for, measured, small, on CIFAR-10.

The claim: filters of the first layer that were learned without labels (PCA, K-means) or taken from a fixed bank (DCT,
Gabor) beat random ones where the layer is frozen and labels are few, and the advantage shrinks to nothing once
everything is trained on plenty of labels.

Rule, fixed before running (``RULE``):
Difference of accuracy on held-out pictures, the mean of PCA, K-means, DCT and Gabor minus He, with a 95 % interval by
drawing test pictures and seeds again. Part i: with the layer frozen and few labels it is above 0; shown when its
interval lies above 0 and contradicted when below. Part ii: with everything trained on many labels it is nothing; shown
when its interval lies within 0.015 of 0 either way and contradicted when it lies wholly outside. The claim is shown
when both are, contradicted when any is. A control must hold, or the claim is not shown: with filters of zeros, frozen,
the interval of the accuracy holds chance.

Every arm has the same network, recipe, pictures and order; with equal seeds also the same random weights in all other
layers. The filters are learned anew for each seed, from the pictures without labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.cifar import Pictures, balanced, load_pictures, shown
from claims.common import NOT_SHOWN, Clock, alike, better, keep, mean_interval, together
from offshelf.backbones.architectures import register_architectures
from offshelf.evaluate import filter_training
from offshelf.evaluate.filter_training import FilterRecipe, Followed, follow
from offshelf.interpret.filter_design import design_filters

SLUG, VERSION = "filter-design", 1
MARGIN = 0.015
RULE = (
    "Difference of accuracy on held-out pictures, the mean of PCA, K-means, DCT and Gabor minus He, with a 95 % "
    "interval by drawing test pictures and seeds again. Part i: with the layer frozen and few labels it is above 0; "
    "shown when its interval lies above 0 and contradicted when below. Part ii: with everything trained on many labels "
    "it is nothing; shown when its interval lies within 0.015 of 0 either way and contradicted when it lies wholly "
    "outside. "
    "The claim is shown when both are, contradicted when any is. A control must hold, or the claim is not shown: with "
    "filters of zeros, frozen, the interval of the accuracy holds chance."
)
ARCHITECTURE, LAYER = "plain_cnn", "stem.0"
NETWORK: dict[str, Any] = {"filters": 48, "size": 5, "stride": 2, "widths": [64, 96, 128]}
DESIGNED = {"pca": "PCA", "k-means": "K-means", "dct": "DCT", "gabor": "Gabor"}
ARMS = {"he": "He (random)", **DESIGNED}
FEW_FROZEN, MANY_TRAINED = "few labels, frozen", "many labels, trained"
REGIMES = (FEW_FROZEN, MANY_TRAINED)


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 32
    many: int = 10_000
    few: int = 2_000
    test: int = 4_000
    many_epochs: int = 4
    few_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    patches: int = 30_000
    seeds: tuple[int, ...] = (0, 1, 2)

    def recipe(self, regime: str) -> FilterRecipe:
        """The training of one regime."""
        epochs = self.many_epochs if regime == MANY_TRAINED else self.few_epochs
        return FilterRecipe(epochs, self.batch_size, self.learning_rate)


def network(seed: int, n_classes: int) -> nn.Module:
    """The network with random weights drawn from ``seed``."""
    import timm

    register_architectures()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE, num_classes=n_classes, **NETWORK)


def trained(rule: str, regime: str, pictures: Pictures, sizes: Sizes, seed: int) -> Followed:
    """One network, its first layer designed by ``rule``, after its training in ``regime``."""
    n_classes = len(np.unique(pictures.train_labels))
    rows = np.arange(len(pictures.train))
    if regime != MANY_TRAINED:
        rows = balanced(pictures.train_labels, rows, sizes.few, seed)
    model = network(seed, n_classes)
    design = design_filters(
        model,
        rule,
        LAYER,
        pictures.train,
        train="freeze" if regime == FEW_FROZEN else "train",
        patches=sizes.patches,
        seed=seed,
    )
    parts = filter_training.Pictures(
        pictures.train[rows],
        pictures.train_labels[rows],
        pictures.test[:0],  # nothing is chosen, so there is nothing to validate
        pictures.test_labels[:0],
        pictures.test,
        pictures.test_labels,
        n_classes,
    )
    return follow(model, [LAYER], parts, sizes.recipe(regime), design=design, seed=seed)


def answers(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Which test pictures every arm gets right ``(seeds, n)``, after the first epoch and at the end, and more."""
    right: dict[str, dict[str, list[np.ndarray]]] = {}
    early: dict[str, dict[str, list[np.ndarray]]] = {}
    told: list[dict[str, Any]] = []
    for seed in sizes.seeds:
        for regime in REGIMES:
            arms = [*ARMS, "zero"] if regime == FEW_FROZEN else list(ARMS)
            for rule in arms:
                one = trained(rule, regime, pictures, sizes, seed)
                assert one.first is not None and one.last is not None
                right.setdefault(regime, {}).setdefault(rule, []).append(one.last == pictures.test_labels)
                early.setdefault(regime, {}).setdefault(rule, []).append(one.first == pictures.test_labels)
                told.append(_told(regime, rule, seed, one))
    return {"right": _stacked(right), "early": _stacked(early), "told": told}


def _told(regime: str, rule: str, seed: int, one: Followed) -> dict[str, Any]:
    before, after = one.quality[LAYER]
    kept = ("entropy", "orthogonality", "sparsity")
    return {
        "regime": regime,
        "rule": rule,
        "seed": seed,
        "seconds": round(one.seconds, 1),
        "travelled": one.travelled[LAYER],
        "variance": one.variances[LAYER],
        "dead": list(one.dead[LAYER]),
        "before": {name: before[name] for name in kept},
        "after": {name: after[name] for name in kept},
    }


def _stacked(found: dict[str, dict[str, list[np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    return {regime: {rule: np.stack(one) for rule, one in arms.items()} for regime, arms in found.items()}


def designed_minus_he(arms: dict[str, np.ndarray]) -> np.ndarray:
    """``(seeds, n)``: mean of the designed arms minus He's."""
    return np.mean([arms[rule] for rule in DESIGNED], axis=0) - arms["he"].astype(float)


def numbers_of(right: dict[str, dict[str, np.ndarray]], early: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Accuracies and differences with intervals."""
    return {
        "arms": {
            regime: {rule: mean_interval(one * 1.0, "value") for rule, one in arms.items()}
            for regime, arms in right.items()
        },
        "first_epoch": {
            regime: {rule: mean_interval(one * 1.0, "value") for rule, one in arms.items()}
            for regime, arms in early.items()
        },
        "differences": {regime: mean_interval(designed_minus_he(arms)) for regime, arms in right.items()},
        "first_epoch_differences": {regime: mean_interval(designed_minus_he(arms)) for regime, arms in early.items()},
        "each": {
            regime: {rule: mean_interval(arms[rule] * 1.0 - arms["he"]) for rule in DESIGNED}
            for regime, arms in right.items()
        },
    }


def verdict_of(numbers: dict[str, Any], chance: float) -> tuple[str, dict[str, str]]:
    """The claim's verdict, those of its two parts, and whether the control held."""
    few, many = (numbers["differences"][regime] for regime in (FEW_FROZEN, MANY_TRAINED))
    zero = numbers["arms"][FEW_FROZEN]["zero"]
    held = zero["low"] <= chance <= zero["high"]
    parts = {
        "frozen, few labels: above 0": better(few["low"], few["high"]),
        "trained, many labels: nothing": alike(many["low"], many["high"], MARGIN),
    }
    verdict = together(list(parts.values())) if held else NOT_SHOWN
    return verdict, parts | {"control": "held" if held else "failed"}


def record(numbers: dict[str, Any], sizes: Sizes, n_classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    chance = 1 / n_classes
    verdict, parts = verdict_of(numbers, chance)
    gains = {regime: shown(numbers["differences"][regime]) for regime in REGIMES}
    rows = [[name, *[shown(numbers["arms"][regime][rule]) for regime in REGIMES]] for rule, name in ARMS.items()]
    rows.append(["zeros (control)", shown(numbers["arms"][FEW_FROZEN]["zero"]), ""])
    rows += [
        [f"{name} minus He", *[shown(numbers["each"][regime][rule]) for regime in REGIMES]]
        for rule, name in DESIGNED.items()
    ]
    rows.append(["mean of the four minus He (in the rule)", *gains.values()])
    rows.append(
        ["the same after one epoch", *[shown(numbers["first_epoch_differences"][regime]) for regime in REGIMES]]
    )
    few, many = f"{sizes.few:,} labels", f"{sizes.many:,} labels"
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"First layer of a small network on CIFAR-10; accuracy of PCA, K-means, DCT and Gabor filters, "
        f"their mean minus He, with 95 % intervals: frozen with {few} {gains[FEW_FROZEN]}, "
        f"{parts['frozen, few labels: above 0']}; all trained with {many} {gains[MANY_TRAINED]}, no difference beyond "
        f"{MARGIN:g}: {parts['trained, many labels: nothing']}.",
        "rule": RULE,
        "setting": f"{ARCHITECTURE} with {NETWORK} (batch norm, 0.2 million parameters), {sizes.side} pixels; filters "
        f"designed in {LAYER}, scaled to a squared norm of 2, learned from {sizes.patches:,} patches of {sizes.many:,} "
        f"pictures without labels. {few} for {sizes.few_epochs} epochs, {many} for {sizes.many_epochs}, batches of "
        f"{sizes.batch_size}, AdamW at {sizes.learning_rate:g}, shifts and mirrors, {len(sizes.seeds)} seeds; "
        f"{numbers['test_pictures']:,} test pictures, chance {chance:.3f}. 2,000 resamples.",
        "table": {"header": ["Filters of the first layer", *REGIMES], "rows": rows},
        "notes": _notes(numbers["told"]),
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def _notes(told: list[dict[str, Any]]) -> list[str]:
    def mean(regime: str, rule: str, key: str) -> float:
        return float(np.mean([one[key] for one in told if one["regime"] == regime and one["rule"] == rule]))

    moved = ", ".join(f"{name} {mean(MANY_TRAINED, rule, 'travelled'):.2f}" for rule, name in ARMS.items())
    varied = ", ".join(f"{name} {mean(MANY_TRAINED, rule, 'variance'):.2f}" for rule, name in ARMS.items())
    return [
        "The survey has no experiment to repeat: network, data and margin are ours. One network, with batch norm "
        "behind the layer, which hides most of what the scale of filters does.",
        f"How far the first layer travelled when trained on many labels, of its own length: {moved}. Variance of its "
        f"output at the first step: {varied}.",
        f"A training took {np.mean([one['seconds'] for one in told]):.0f} s.",
    ]


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Train all arms, and make the record."""
    found = answers(pictures, sizes)
    numbers = numbers_of(found["right"], found["early"])
    numbers |= {"told": found["told"], "test_pictures": len(pictures.test)}
    return record(numbers, sizes, len(np.unique(pictures.train_labels)))


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    return keep(SLUG, VERSION, compare(load_pictures(sizes.side, sizes.many, sizes.test), sizes), clock)
