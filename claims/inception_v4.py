"""Inception-v4 and Inception-ResNet (arXiv 1602.07261), two claims measured again, small, on CIFAR-10.

The claims: residual connections make an Inception network of equal size learn sooner, and it ends about as good; and in
a wide residual network a factor s of 0.1 to 0.3 on the branches keeps activations and gradients bounded where s = 1
does not, and costs no accuracy.

Rule, fixed before running (``RULE``):
Sooner: the plain network's steps to come below each of two training losses (mean of the last 40 steps), divided by the
residual one's, seed by seed; the plain one has the better of two learning rates for each loss and seed. The 95 %
interval over seeds (Student's, of the logarithm) of both ratios must lie above 1; a plain network that never gets
there counts as if it had at the last step. As good: test accuracy of the residual network less that of the plain one
(the learning rate of the higher mean), interval above -0.02. Bounded: growth is the RMS after the last block over that
before the first; growth with s = 1 over the larger one with s = 0.1 or 0.3, at the start and at its largest, at each of
two learning rates, interval over seeds above 1.5. Spikes: the largest gradient norm with s = 1 over the larger one with
s = 0.1 or 0.3, at each learning rate, interval above 1. No cost: test accuracy with s = 0.1 and 0.3 less that with
s = 1, mean over the learning rates, interval above -0.02. Every part is shown when its interval lies above its bound
and contradicted when below; the claim is shown when all parts are, contradicted when any is.

All networks of one seed see the same pictures in the same order. Sizes and losses were chosen by one training of each
network with a seed that is not used here, in which the residual one was the quicker: the direction of "sooner" was
known when the losses were fixed, its size was not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import ClassifierHead
from torch import nn

from claims.cifar import Pictures, load_pictures, shown
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, Clock, better, keep, mean_interval, together
from offshelf.backbones.inception_layers import ResidualBlock, conv
from offshelf.backbones.inception_v4 import inception_resnet
from offshelf.backbones.inception_widths import Branches
from offshelf.engine.recipe import Recipe
from offshelf.evaluate.convergence_race import first_below, over_seeds_cell, smoothed, step_ratio
from offshelf.interpret.residual_scaling import residual_scaling_study
from offshelf.transfer.classification import ClassificationViews, LabelledPictures
from offshelf.transfer.watched_training import Course, predicted_classes, watched_training

SLUG, VERSION = "inception-v4", 1
RULE = (
    "Sooner: the plain network's steps to come below each of two training losses (mean of the last 40 steps), divided "
    "by the residual one's, seed by seed; the plain one has the better of two learning rates for each loss and seed. "
    "The 95 % interval over seeds (Student's, of the logarithm) of both ratios must lie above 1; a plain network that "
    "never gets there counts as if it had at the last step. As good: test accuracy of the residual network less that "
    "of the plain one (the learning rate of the higher mean), interval above -0.02. Bounded: growth is the RMS after "
    "the last block over that before the first; growth with s = 1 over the larger one with s = 0.1 or 0.3, at the "
    "start and at its largest, at each of two learning rates, interval over seeds above 1.5. Spikes: the largest "
    "gradient norm with s = 1 over the larger one with s = 0.1 or 0.3, at each learning rate, interval above 1. No "
    "cost: test accuracy with s = 0.1 and 0.3 less that with s = 1, mean over the learning rates, interval above "
    "-0.02. Every part is shown when its interval lies above its bound and contradicted when below; the claim is shown "
    "when all parts are, contradicted when any is."
)
MARGIN, GROWTH = 0.02, 1.5
FULL, SCALED = 1.0, (0.3, 0.1)
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10's training pictures


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 16
    train: int = 5_000
    test: int = 3_000
    steps: int = 400
    smoothing: int = 40
    batch_size: int = 32
    learning_rate: float = 0.05
    plain_learning_rates: tuple[float, ...] = (0.05, 0.0125)
    losses: tuple[float, ...] = (1.9, 1.7)
    channels: int = 1024
    blocks: int = 10
    scale_steps: int = 50
    scale_batch: int = 16
    scale_test: int = 600
    scale_learning_rates: tuple[float, ...] = (0.05, 0.3)
    every: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)


class WideStack(nn.Module):
    """Residual blocks of stage C with many channels, on a quarter of the picture's side, and a classifier."""

    def __init__(self, channels: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        half: Branches = (((96, 1),), ((96, 1), (112, (1, 3)), (128, (3, 1))))  # half the widths of the paper's
        self.stem = nn.Sequential(conv(3, 64, 3, stride=2), conv(64, channels, 3, stride=2))
        self.blocks = nn.Sequential(*[ResidualBlock(channels, half) for _ in range(blocks)])
        self.head = ClassifierHead(channels, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The map before the pooling."""
        return self.blocks(self.stem(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc


def network(version: str, classes: int, seed: int) -> nn.Module:
    """One of the small pair, drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return inception_resnet(version, num_classes=classes)  # type: ignore[arg-type]


def wide_stack(sizes: Sizes, classes: int, seed: int) -> nn.Module:
    """The wide network, drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WideStack(sizes.channels, sizes.blocks, classes)


def views_of(sizes: Sizes) -> ClassificationViews:
    """Pictures, half of them mirrored, and normalised."""
    return ClassificationViews(sizes.side, MEAN, STD, flip=True)


def arms_of(sizes: Sizes) -> dict[str, tuple[str, float]]:
    """Name -> version and learning rate; the residual network has one, the plain one several."""
    plain = {f"plain, learning rate {rate:g}": ("mini-plain", rate) for rate in sizes.plain_learning_rates}
    return {"residual": ("mini", sizes.learning_rate)} | plain


# ---- the two measurements ------------------------------------------------------------------------


def race(pictures: Pictures, sizes: Sizes, classes: int) -> dict[str, Any]:
    """Train every arm with every seed: steps to each loss ``(losses, seeds)``, answers ``(seeds, n)``, and courses."""
    views, arms = views_of(sizes), arms_of(sizes)
    courses: dict[str, list[Course]] = {name: [] for name in arms}
    right: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for seed in sizes.seeds:
        data = LabelledPictures(pictures.train, pictures.train_labels, views, classes, seed=seed)
        for name, (version, rate) in arms.items():
            recipe = Recipe(
                optimiser="sgd", learning_rate=rate, weight_decay=5e-4, betas=(0.9, 0.999),
                batch_size=sizes.batch_size, warmup=0.0, final_rate=1.0,
            )  # fmt: skip
            model = network(version, classes, seed)
            courses[name].append(watched_training(model, data, recipe, sizes.steps, seed=seed))
            right[name].append(predicted_classes(model, pictures.test, views) == pictures.test_labels)
    curves = {name: [smoothed(course.losses, sizes.smoothing) for course in found] for name, found in courses.items()}
    return {
        "reached": {n: [[first_below(c, loss) for c in found] for loss in sizes.losses] for n, found in curves.items()},
        "last_loss": {n: [_last(curve) for curve in found] for n, found in curves.items()},
        "largest_gradient": {n: [max(one.gradient_norms) for one in found] for n, found in courses.items()},
        "seconds": {n: float(np.mean([one.seconds for one in found])) for n, found in courses.items()},
        "right": {name: np.stack(rows) for name, rows in right.items()},
        "parameters": {
            version: sum(p.numel() for p in network(version, classes, 0).parameters())
            for version in ("mini", "mini-plain")
        },
    }


def _last(curve: np.ndarray) -> float:
    return float(curve[-1]) if len(curve) else math.nan


def scaling(pictures: Pictures, sizes: Sizes, classes: int) -> list[dict[str, Any]]:
    """The wide network with every scale, learning rate and seed."""
    runs = residual_scaling_study(
        lambda seed: wide_stack(sizes, classes, seed),
        (FULL, *SCALED),
        sizes.scale_learning_rates,
        pictures.train,
        pictures.train_labels,
        views_of(sizes),
        test_pixels=pictures.test[: sizes.scale_test],
        steps=sizes.scale_steps,
        batch_size=sizes.scale_batch,
        every=sizes.every,
        seeds=sizes.seeds,
    )
    for run in runs:
        run["right"] = run.pop("predicted") == pictures.test_labels[: sizes.scale_test]
    return runs


# ---- from numbers to a verdict -------------------------------------------------------------------


def above(cell: dict[str, Any], bound: float) -> str:
    """Verdict on a ratio whose interval must lie above ``bound``; not shown where there is none."""
    if cell["value"] is None or cell["low"] is None:
        return NOT_SHOWN
    return SHOWN if cell["low"] > bound else CONTRADICTED if cell["high"] < bound else NOT_SHOWN


def sooner(found: dict[str, Any], sizes: Sizes) -> list[dict[str, Any]]:
    """Ratio of steps, plain over residual, for each loss; the plain network has its best learning rate."""
    plain = [name for name in found["reached"] if name != "residual"]
    cells = []
    for place, loss in enumerate(sizes.losses):
        tries = [found["reached"][name][place] for name in plain]
        best = [min((step for step in steps if step is not None), default=None) for steps in zip(*tries)]
        residual = found["reached"]["residual"][place]
        cells.append({"loss": loss, "plain": best, "residual": residual} | step_ratio(best, residual, sizes.steps))
    return cells


def accuracy_difference(found: dict[str, Any]) -> dict[str, Any]:
    """Residual less the better of the plain arms."""
    plain = max((name for name in found["right"] if name != "residual"), key=lambda n: found["right"][n].mean())
    return {"against": plain} | mean_interval(found["right"]["residual"] * 1.0 - found["right"][plain])


def ratios(runs: list[dict[str, Any]], key: str, rate: float, seeds: tuple[int, ...]) -> dict[str, Any]:
    """``key`` with s = 1 over the larger one with the smaller scales, seed by seed; no cell where one is no number."""
    value = {(run["seed"], run["scale"]): run[key] for run in runs if run["learning_rate"] == rate}
    found = []
    for seed in seeds:
        full, small = value[seed, FULL], [value[seed, scale] for scale in SCALED]
        found.append(None if full is None or None in small else full / max(small))
    return {"by_seed": found} | over_seeds_cell(found)


def no_cost(runs: list[dict[str, Any]], sizes: Sizes) -> dict[str, float]:
    """Accuracy with the smaller scales less that with s = 1, mean over the learning rates."""

    def mean(scales: tuple[float, ...], seed: int) -> np.ndarray:
        return np.mean([run["right"] for run in runs if run["seed"] == seed and run["scale"] in scales], axis=0)

    return mean_interval(np.stack([mean(SCALED, seed) - mean((FULL,), seed) for seed in sizes.seeds]))


def numbers_of(found: dict[str, Any], runs: list[dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    """All that the verdict and the table rest on."""
    rates = sizes.scale_learning_rates
    growths = {"growth_at_start": "growth at the start", "largest_growth": "largest growth"}
    return {
        "sooner": sooner(found, sizes),
        "as_good": accuracy_difference(found),
        "accuracy": {name: mean_interval(rows * 1.0) for name, rows in found["right"].items()},
        "bounded": [
            {"what": words, "learning_rate": rate} | ratios(runs, key, rate, sizes.seeds)
            for key, words in growths.items()
            for rate in (rates if key == "largest_growth" else rates[:1])  # the start knows no learning rate
        ],
        "spikes": [{"learning_rate": rate} | ratios(runs, "largest_gradient", rate, sizes.seeds) for rate in rates],
        "no_cost": no_cost(runs, sizes),
        "race": {key: found[key] for key in ("reached", "last_loss", "largest_gradient", "seconds", "parameters")},
        "runs": [{key: value for key, value in run.items() if key != "right"} for run in runs],
    }


def verdict_of(numbers: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its parts."""
    parts = {
        "sooner": together([_sooner(cell) for cell in numbers["sooner"]]),
        "as good": better(numbers["as_good"]["low"], numbers["as_good"]["high"], MARGIN),
        "bounded": together([above(cell, GROWTH) for cell in numbers["bounded"]]),
        "spikes": together([above(cell, 1.0) for cell in numbers["spikes"]]),
        "no cost": better(numbers["no_cost"]["low"], numbers["no_cost"]["high"], MARGIN),
    }
    return together(list(parts.values())), parts


def _sooner(cell: dict[str, Any]) -> str:
    """A bound from above says nothing for the residual network: it did not get there."""
    return NOT_SHOWN if cell["bound"] == "at most" else above(cell["ratio"], 1.0)


# ---- the record ----------------------------------------------------------------------------------


def ratio_text(cell: dict[str, Any], bound: str | None = None) -> str:
    """``2.10 [1.60, 2.75]``, with what it is a bound of."""
    if cell["value"] is None:
        return "not defined"
    interval = "[no interval]" if cell["low"] is None else f"[{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{bound + ' ' if bound else ''}{cell['value']:.2f} {interval}"


def record(numbers: dict[str, Any], sizes: Sizes, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers)
    rows = [
        [
            f"steps to loss {cell['loss']:g}, plain over residual (in the rule)",
            ratio_text(cell["ratio"], cell["bound"]),
        ]
        for cell in numbers["sooner"]
    ]
    rows += [[f"accuracy, {name}", _value(cell)] for name, cell in numbers["accuracy"].items()]
    against = numbers["as_good"]["against"]
    rows.append([f"accuracy, residual minus {against} (in the rule)", shown(numbers["as_good"])])
    for cell in numbers["bounded"]:
        rate = "" if cell["what"].endswith("start") else f" at learning rate {cell['learning_rate']:g}"
        rows.append([f"{cell['what']}{rate}, s = 1 over s = 0.1 or 0.3 (in the rule)", ratio_text(cell)])
    rows += [
        [f"largest gradient norm at learning rate {c['learning_rate']:g}, s = 1 over s = 0.1 or 0.3 (in the rule)",
         ratio_text(c)]
        for c in numbers["spikes"]
    ]  # fmt: skip
    rows.append(["accuracy, s = 0.1 and 0.3 minus s = 1 (in the rule)", shown(numbers["no_cost"])])
    first = numbers["sooner"][-1]
    growth = numbers["bounded"][-1]
    parameters = numbers["race"]["parameters"]
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"Small Inception networks on CIFAR-10, with 95 % intervals: the plain one takes "
        f"{ratio_text(first['ratio'], first['bound'])} times as many steps to a training loss of {first['loss']:g} as "
        f"the residual one (sooner: {parts['sooner']}), whose accuracy differs by {shown(numbers['as_good'])} (as "
        f"good: {parts['as good']}). In a residual network of {sizes.channels:,} channels the stream grows "
        f"{ratio_text(growth)} times as much with s = 1 as with 0.1 or 0.3 at learning rate "
        f"{growth['learning_rate']:g} (bounded: {parts['bounded']}; gradient spikes: {parts['spikes']}), and the "
        f"smaller scales change the accuracy by {shown(numbers['no_cost'])} (no cost: {parts['no cost']}).",
        "rule": RULE,
        "setting": f"CIFAR-10 at {sizes.side} pixels, {sizes.train:,} training and {sizes.test:,} test pictures, "
        f"mirrored at random, SGD with Nesterov momentum 0.9, constant learning rates, {len(sizes.seeds)} seeds, "
        f"chance {1 / classes:.3f}. Race: inception_resnet_mini (s = 0.2, {parameters['mini']:,} parameters) and "
        f"inception_mini ({parameters['mini-plain']:,}), {sizes.steps} steps of {sizes.batch_size} pictures, weight "
        f"decay 5e-4, learning rate {sizes.learning_rate:g}, for the plain one also others. Scaling: {sizes.blocks} "
        f"blocks of stage C with half the paper's branch widths on 4 x 4 maps of {sizes.channels:,} channels, "
        f"{sizes.scale_steps} steps of {sizes.scale_batch}, {sizes.scale_test} test pictures. 2,000 resamples.",
        "table": {"header": ["Measured", "value"], "rows": rows},
        "notes": _notes(numbers, sizes),
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def _value(cell: dict[str, float]) -> str:
    return shown({"value": cell["difference"], "low": cell["low"], "high": cell["high"]})


def _notes(numbers: dict[str, Any], sizes: Sizes) -> list[str]:
    runs = numbers["runs"]
    deaths = [run for run in runs if run["died"] or run["diverged_at"] is not None]
    said = "; ".join(f"s = {run['scale']:g}, learning rate {run['learning_rate']:g}" for run in deaths)

    def mean(scale: float, key: str) -> str:
        found = [run[key] for run in runs if run["scale"] == scale and run[key] is not None]
        return f"{np.mean(found):.2f}" if found else "no number"

    growth = ", ".join(f"{mean(s, 'growth_at_start')} for s = {s:g}" for s in (FULL, *SCALED))
    largest = ", ".join(f"{mean(s, 'largest_growth')} for s = {s:g}" for s in (FULL, *SCALED))
    reached = "; ".join(
        f"{name}: {', '.join(str(step) if step else 'never' for step in steps[-1])}"
        for name, steps in numbers["race"]["reached"].items()
    )
    return [
        f"Growth of the stream over {sizes.blocks} blocks, mean over runs: at the start {growth}; at its largest "
        f"{largest}. In this design the branch ends in a projection of normalised maps, so the mean square grows by a "
        "constant times s squared a block, not exponentially.",
        f"Of {len(runs)} runs, {len(deaths)} died (only zeros before the pooling) or gave no number any more"
        f"{': ' + said if said else ''}. The paper saw deaths after tens of thousands of steps; this measurement is "
        f"over after {sizes.scale_steps}.",
        f"Steps to loss {sizes.losses[-1]:g}, seed by seed: {reached}.",
        "Sizes and losses were chosen by one training of each small network with a seed that is not used here, so the "
        'direction of "sooner" was known when they were fixed.',
        "The paper compares networks of 40 and more million parameters on ImageNet. The plain network is not tuned "
        "beyond its learning rates, and nothing here says how either would end after a long training.",
    ]


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Both measurements, and the record."""
    classes = len(np.unique(pictures.train_labels))
    found, runs = race(pictures, sizes, classes), scaling(pictures, sizes, classes)
    return record(numbers_of(found, runs, sizes), sizes, classes)


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claims and keep the result."""
    clock = Clock.start()
    return keep(SLUG, VERSION, compare(load_pictures(sizes.side, sizes.train, sizes.test), sizes), clock)
