"""A race on a user's pictures: from a data set and names of backbones to results, sentences and a page's numbers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from offshelf.backbones.card import BackboneCard, card_of
from offshelf.backbones.input_size import set_input_size
from offshelf.backbones.load import load_backbone
from offshelf.backbones.names import resolve
from offshelf.backbones.residual_scale import residual_blocks, set_residual_scale
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys
from offshelf.engine.console import Console
from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe
from offshelf.errors import DataError, UsageError
from offshelf.evaluate.convergence_race import Racer, convergence_race
from offshelf.evaluate.cost import cost
from offshelf.evaluate.rows import usable_rows
from offshelf.transfer.classification import ClassificationViews
from offshelf.transfer.watched_training import Course

HELD_OUT = 5  # without given splits, one of so many parts is held out


@dataclass
class Race:
    """Settings of a race; `run` does it.

    backbones : two or more names; with ``residual_scales`` one is enough, and each with residual blocks races once a
    scale. Random weights are drawn anew for each seed; given weights are the same, with a new classifier.
    """

    dataset: Dataset
    source: str
    console: Console
    backbones: Sequence[str]
    recipe: Recipe
    residual_scales: Sequence[float] | None = None
    thresholds: Sequence[float] | None = None
    steps: int | None = None
    epochs: float = 5.0
    seeds: int = 3
    image_size: int = 64
    smoothing: int = 20
    flip: bool = False
    shift: float = 0.0
    strict: bool = False
    seed: int = 0
    launch: Launch | None = None

    def run(self, folder: Path) -> dict[str, Any]:
        """Do the race; writes ``metrics.jsonl`` with the loss of every step, and returns the results."""
        started = time.perf_counter()
        cards, racers, notes = self.racers()
        pixels, rows, fold = self._prepare()
        classes = len(rows.classes)
        size = min(self.recipe.batch_size, len(fold.train))
        recipe = Recipe(**{**vars(self.recipe), "batch_size": size})
        steps = self.steps or max(1, round(self.epochs * (len(fold.train) // size)))
        seeds = [self.seed + k for k in range(self.seeds)]
        for racer in racers:
            racer.make = self._with_classes(racer.make, classes)
        decoded, clock = time.perf_counter() - started, time.perf_counter()
        log = folder / "metrics.jsonl"
        log.unlink(missing_ok=True)

        def told(name: str, seed: int, course: Course) -> None:
            with log.open("a", encoding="utf-8") as handle:
                for step, (loss, norm) in enumerate(zip(course.losses, course.gradient_norms), start=1):
                    line = {"network": name, "seed": seed, "step": step, "loss": loss, "gradient_norm": norm}
                    handle.write(json.dumps(line) + "\n")
            end = f"diverged at step {course.diverged_at}" if course.diverged_at else f"loss {course.losses[-1]:.4f}"
            self.console.say(f"  {name}, seed {seed}: {end}, {course.seconds:.0f} s")

        self.console.say(f"{len(racers)} networks, {len(seeds)} seeds, {steps} steps of {size} pictures")
        with self.console.progress("train", steps * len(racers) * len(seeds), unit="steps") as advance:
            found = convergence_race(
                racers,
                pixels[fold.train],
                rows.labels[fold.train],
                pixels[fold.test],
                rows.labels[fold.test],
                recipe,
                steps=steps,
                thresholds=self.thresholds,
                seeds=seeds,
                smoothing=min(self.smoothing, steps),
                test_groups=rows.clusters(fold.test),
                launch=self.launch,
                advance=advance,
                told=told,
            )
        trained = time.perf_counter() - clock
        speed = size * steps * len(racers) * len(seeds) / trained
        results = {
            "title": f"{Path(self.source).name or self.source}: {len(racers)} networks in a race",
            "verb": "race",
            "classes": rows.classes,
            "data": rows.data | {"train": len(fold.train), "test": len(fold.test), "held_out": fold.name},
            "backbones": [card.to_dict() | {"label": card.label} for card in cards],
            "protocol": {
                "name": "race/v1",
                "optimiser": recipe.optimiser,
                "learning_rate": recipe.learning_rate,
                "weight_decay": recipe.weight_decay,
                "warmup": recipe.warmup,
                "final_rate": recipe.final_rate,
                "batch_size": size,
                "image_size": self.image_size,
                "flip": self.flip,
                "shift": self.shift,
                "interval": "Student's over the seeds, of the logarithm, for steps and ratios; percentiles over "
                "resampled test pictures (groups) and seeds together for accuracies",
            },
            "notes": notes + ([fold.note] if fold.note else []),
            "chance": float(np.bincount(rows.labels[fold.test]).max() / len(fold.test)),
            **found,
            "cost": cost(decoded, trained, speed, 0.0),
        }
        results["verdict"] = verdict(results)
        return results

    def racers(self) -> tuple[list[BackboneCard], list[Racer], list[str]]:
        """Cards, and the networks that race; what does not fit is refused before any work.

        Raises
        ------
        UsageError
            For a single network, and residual scales where no network has residual blocks.
        BackboneError
            For an unknown name.
        """
        cards, racers, without = [], [], []
        for name in dict.fromkeys(self.backbones):
            model = load_backbone(name)
            card = card_of(model)
            _fit_to(model, card, self.image_size)
            residual = bool(residual_blocks(model))
            views = ClassificationViews(self.image_size, card.mean, card.std, flip=self.flip, shift=self.shift)
            cards.append(card)
            if not residual and self.residual_scales:
                without.append(card.name)
            for scale in self.residual_scales if residual and self.residual_scales else [None]:
                shown = card.name if scale is None else f"{card.name}, s = {scale:g}"
                racers.append(Racer(shown, _maker(name, scale, card, self.image_size), views, residual))
        if self.residual_scales and len(without) == len(cards):
            raise UsageError(
                f"--residual-scales: {', '.join(without)} has no residual blocks to scale; expected at least one "
                "network that adds branches to its input, such as inception_resnet_mini.random or resnet18.random."
            )
        if len(racers) < 2:
            raise UsageError(
                f"--backbones {' '.join(self.backbones)}: one network in a race; expected two or more, or one with "
                "residual blocks and several --residual-scales."
            )
        notes = [f"{name} has no residual blocks and races as it is." for name in without]
        return cards, racers, notes

    def _prepare(self) -> tuple[np.ndarray, Any, Any]:
        """Pixels of the usable rows, the rows, and what is held out."""
        samples = as_samples(self.dataset)
        with self.console.progress("decode", len(samples)) as advance:
            pixels, errors = load_pixels(samples, self.image_size, advance)
        if self.strict and errors:
            raise DataError(
                f"{len(errors)} pictures cannot be read, and --strict was asked for: {next(iter(errors.values()))}."
            )
        for error in list(errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        keys, _ = content_keys(self.dataset)
        rows = usable_rows(self.dataset, self.source, errors, keys, False)
        fold = rows.outer_folds(HELD_OUT, self.seed)[0]
        return pixels[rows.positions], rows, fold

    def _with_classes(self, make: Callable[..., nn.Module], classes: int) -> Callable[[int], nn.Module]:
        return lambda seed: make(seed, classes)


def _maker(name: str, scale: float | None, card: BackboneCard, size: int) -> Callable[..., nn.Module]:
    """``(seed, classes) -> network``: random weights, or given ones with a classifier, drawn from the seed."""
    source = resolve(name)

    def make(seed: int, classes: int) -> nn.Module:
        again = f"{source.architecture}.random_{source.seed + seed}" if source.kind == "random" else name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = load_backbone(again, num_classes=classes)
        _fit_to(model, card, size)
        if scale is not None:
            set_residual_scale(model, scale)
        return model

    return make


def _fit_to(model: nn.Module, card: BackboneCard, size: int) -> None:
    """Make a network with a table of positions for this size; refuse one that does not take it."""
    if tuple(card.input_size) != (size, size):
        set_input_size(model, size, size)


def verdict(results: dict[str, Any]) -> list[str]:
    """Sentences that follow from the numbers: who is soonest, who ends best, what went wrong."""
    arms, limits = results["arms"], results["thresholds"]
    said = [_soonest(results, len(limits) - 1)]
    best = max(arms, key=lambda arm: arm["accuracy"]["value"])
    cell = best["accuracy"]
    bounds = "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    said.append(
        f"The highest accuracy on {cell['n']:,} held-out pictures is that of {best['name']}: "
        f"{cell['value']:.3f}{bounds}, where always naming the commonest class reaches {results['chance']:.3f}."
    )
    for pair in results["pairs"]:
        low, high = pair["accuracy"]["low"], pair["accuracy"]["high"]
        if low is not None and (low > 0 or high < 0):
            more = "more" if low > 0 else "less"
            said.append(
                f"{pair['other']} ends {more} accurate than {pair['first']}: {pair['accuracy']['value']:+.3f} "
                f"[{low:+.3f}, {high:+.3f}]."
            )
    for arm in arms:
        broken = [step for step in arm["diverged_at"] if step is not None]
        if broken:
            said.append(
                f"{arm['name']} diverged in {len(broken)} of {len(arm['diverged_at'])} trainings, first at step "
                f"{min(broken)}; lower --learning-rate or, in a residual network, --residual-scales."
            )
    if len(results["seeds"]) == 1:
        said.append(
            "One seed does not say how far another one would have moved the steps; take three or more (--seeds)."
        )
    return said


def _soonest(results: dict[str, Any], place: int) -> str:
    """Which network comes first below the last threshold that some network reaches in every seed."""
    while place >= 0:
        limit = results["thresholds"][place]
        there = [(arm["reached"][place]["steps"], arm) for arm in results["arms"]]
        there = [(cell, arm) for cell, arm in there if cell["value"] is not None]
        if there:
            cell, first = min(there, key=lambda one: one[0]["value"])
            equal = [arm["name"] for other, arm in there if other["value"] == cell["value"]]
            bounds = "" if cell["low"] is None else f" [{cell['low']:.0f}, {cell['high']:.0f}]"
            rest = len(results["arms"]) - len(there)
            never = f"; {rest} did not get there in every seed" if rest else ""
            if len(equal) > 1:
                names = f"{', '.join(equal[:-1])} and {equal[-1]}"
                steps = f"{cell['value']:.0f} steps"
                return f"{names} are first below a training loss of {limit:g} together, after {steps}{never}."
            told = _told_apart(results, first["name"], place)
            return (
                f"{first['name']} is first below a training loss of {limit:g}, after {cell['value']:.0f} steps{bounds}"
                f"{never}{told}."
            )
        place -= 1
    lowest = ", ".join(f"{limit:g}" for limit in results["thresholds"])
    return f"No network came below a training loss of {lowest} in every seed; train longer (--epochs) or ask for more."


def _told_apart(results: dict[str, Any], name: str, place: int) -> str:
    """What the paired ratios say where the soonest is in one: the first network against another."""
    for pair in results["pairs"]:
        one = pair["ratios"][place]
        cell = one["ratio"]
        if name not in (pair["first"], pair["other"]) or cell["value"] is None or len(results["arms"]) > 2:
            continue
        slower = pair["first"] if name == pair["other"] else pair["other"]
        turn = (lambda value: value) if name == pair["other"] else (lambda value: 1 / value)
        value = turn(cell["value"])
        bounds = sorted(turn(bound) for bound in (cell["low"], cell["high"]) if bound is not None)
        bound = "at least " if one["bound"] else ""
        shown = f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else ""
        apart = bool(bounds) and bounds[0] > 1
        doubt = "" if apart or math.isclose(value, 1) and not bounds else ", which the seeds do not tell from 1"
        return f"; {slower} takes {bound}{value:.2f}{shown} times as many{doubt}"
    return ""
