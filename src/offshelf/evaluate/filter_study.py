"""The study of filters: arms that differ in one thing, trained alike over several seeds, compared with intervals.

Which arm is best is chosen on a validation part; the test part is only measured. Intervals are over test pictures
(groups whole) and seeds, drawn again together, the same for all arms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from offshelf.backbones.card import card_of, weights_hash
from offshelf.backbones.export import save_backbone
from offshelf.backbones.input_size import set_input_size
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys
from offshelf.engine.console import Console
from offshelf.engine.metrics_log import MetricsLog
from offshelf.errors import DataError, UsageError
from offshelf.evaluate.cost import cost
from offshelf.evaluate.filter_arms import FilterArm, Question, arms_of, network
from offshelf.evaluate.filter_results import study_results
from offshelf.evaluate.filter_training import FilterRecipe, Followed, Pictures, follow
from offshelf.evaluate.label_subsets import LabelBudget, labelled_rows
from offshelf.evaluate.rows import Rows, usable_rows
from offshelf.interpret.filter_choice import untouched
from offshelf.interpret.filter_design import Design, design_filters
from offshelf.interpret.layer_inputs import convolutions
from offshelf.interpret.patch_filters import PATCHES
from offshelf.transfer.best_epoch import left_out

HELD_OUT = 5  # without given splits, one of so many parts is held out to test on
VALIDATION = 0.2  # of the others, to choose the best arm on
FEWEST = 2  # validation pictures of a class


@dataclass
class Material:
    """Rows, pixels ``(n, 3, S, S)`` uint8, and which rows learn, choose and test."""

    rows: Rows
    pixels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass
class FilterStudy:
    """Settings of a study; `run` does it.

    question : what is changed, and to what. layers : convolutions that a rule begins; the first by default. hold :
    "train", "freeze", or epochs for which they are frozen. labels : how many training pictures count as labelled; all
    of them are learned from where a rule learns without labels. seeds : trainings of every arm.
    """

    question: Question
    dataset: Dataset
    source: str
    console: Console
    recipe: FilterRecipe = FilterRecipe()
    layers: Sequence[str] | None = None
    hold: Literal["train", "freeze"] | int = "train"
    labels: LabelBudget = field(default_factory=lambda: LabelBudget("100%", share=1.0))
    seeds: int = 3
    image_size: int = 32
    patches: int = PATCHES
    seed: int = 0

    def run(self, folder: Path) -> dict[str, Any]:
        """Do the study; writes ``model/`` and ``metrics.jsonl``, and returns the results.

        Raises
        ------
        DataError
            For pictures without labels, or too few of them.
        UsageError
            For arms that cannot be built or compared; see `offshelf.evaluate.filter_arms.arms_of`.
        """
        started = time.perf_counter()
        arms = arms_of(self.question, self.image_size, self.layers)
        material = self._material()
        decoded, clock = time.perf_counter() - started, time.perf_counter()
        for arm in arms:
            self.console.say(
                f"{arm.name}: {arm.cost.parameters:,} parameters, {arm.cost.multiply_adds:,} multiply-adds"
            )
        seeds = [self.seed + k for k in range(self.seeds)]
        log = MetricsLog(folder)
        tried: dict[str, list[Followed]] = {}
        designs: dict[str, Design | None] = {}
        log.restart([])
        total = sum(self._steps(material, seed) for seed in seeds) * len(arms)
        with self.console.progress("train", total, unit="steps") as advance:
            for arm in arms:
                tried[arm.name] = []
                for seed in seeds:
                    one, design = self._train(arm, material, seed, advance)
                    if seed != self.seed:  # of the others only the numbers are wanted
                        one.model = None  # type: ignore[assignment]
                    tried[arm.name].append(one)
                    designs.setdefault(arm.name, design)
                    for epoch, loss in enumerate(one.losses, start=1):
                        log.log({"arm": arm.name, "seed": seed, "epoch": epoch, "loss": loss})
                    right = float((one.last == material.rows.labels[material.test]).mean())
                    self.console.say(f"  {arm.name}, seed {seed}: test accuracy {right:.3f}, {one.seconds:.0f} s")
        results = study_results(self.question, arms, tried, designs, material, seeds, self._about(material))
        self._save(tried[results["best"]][0], results["best"], material, folder)
        seconds = time.perf_counter() - clock
        shown = len(arms) * sum(len(self._labelled(material, seed)) for seed in seeds) * self.recipe.epochs
        results["cost"] = cost(decoded, seconds, shown / seconds, 0.0)
        return results

    # -- before the trainings ------------------------------------------------------------------------------------------

    def _material(self) -> Material:
        samples = as_samples(self.dataset)
        with self.console.progress("decode", len(samples)) as advance:
            pixels, errors = load_pixels(samples, self.image_size, advance)
        for error in list(errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        keys, _ = content_keys(self.dataset)
        rows = usable_rows(self.dataset, self.source, errors, keys, False)
        fold = rows.outer_folds(HELD_OUT, self.seed)[0]
        inside = np.asarray(fold.train)
        aside = left_out(rows.labels[inside], rows.clusters(inside), VALIDATION, self.seed)
        train, validation = np.delete(inside, aside), inside[aside]
        counts = np.bincount(rows.labels[validation], minlength=len(rows.classes))
        tested = np.unique(rows.labels[fold.test])
        if (counts[tested] < FEWEST).any():
            few = rows.classes[int(tested[np.argmin(counts[tested])])]
            raise DataError(
                f"{self.source}: {int(counts.min())} pictures of class {few!r} to choose the best arm on; expected "
                f"{FEWEST} or more, which takes about {round(FEWEST / VALIDATION * HELD_OUT / (HELD_OUT - 1)) + 1} of "
                "every class. Add pictures, or leave the class out."
            )
        self.console.say(
            f"{len(rows.labels):,} pictures, {len(rows.classes)} classes: {len(train):,} to train on, "
            f"{len(validation):,} to choose on, {len(fold.test):,} to test on ({fold.name})"
        )
        return Material(rows, pixels[rows.positions], train, validation, np.asarray(fold.test))

    def _labelled(self, material: Material, seed: int) -> np.ndarray:
        rows, train = material.rows, material.train
        return train[labelled_rows(rows.labels[train], rows.clusters(train), self.labels, seed)]

    def _steps(self, material: Material, seed: int) -> int:
        n = len(self._labelled(material, seed))
        if n < 2:
            raise UsageError(f"--labels {self.labels.text}: {n} pictures; training needs two or more.")
        return self.recipe.epochs * max(1, n // self.recipe.batch_size)

    def _about(self, material: Material) -> dict[str, Any]:
        return {
            "recipe": dict(self.recipe.__dict__),
            "hold": self.hold,
            "labels": self.labels.text,
            "labelled": len(self._labelled(material, self.seed)),
            "image_size": self.image_size,
            "patches": self.patches,
        }

    # -- the trainings -------------------------------------------------------------------------------------------------

    def _train(self, arm: FilterArm, material: Material, seed: int, advance: Any) -> tuple[Followed, Design | None]:
        rows, pixels = material.rows, material.pixels
        model = network(self.question, arm.settings, len(rows.classes), seed)
        set_input_size(model, self.image_size, self.image_size)
        layers, design = convolutions(model, self.layers), None
        if arm.rule is not None:
            design = design_filters(
                model,
                arm.rule,
                layers,
                pixels[material.train],  # without their labels, all of them
                train=self.hold,
                patches=self.patches,
                seed=seed,
            )
        elif self.hold != "train":
            frozen = None if self.hold == "freeze" else int(self.hold)
            design = Design("unchanged", "own", frozen, [untouched(model, name) for name in layers])
            design.release(model, -1)
        chosen = self._labelled(material, seed)
        parts = Pictures(
            pixels[chosen],
            rows.labels[chosen],
            pixels[material.validation],
            rows.labels[material.validation],
            pixels[material.test],
            rows.labels[material.test],
            len(rows.classes),
        )
        return follow(model, layers, parts, self.recipe, design=design, seed=seed, advance=advance), design

    # -- after them ----------------------------------------------------------------------------------------------------

    def _save(self, best: Followed, name: str, material: Material, folder: Path) -> None:
        model = best.model
        began = card_of(model)
        card = replace(
            began,
            weights="run",
            weights_hash=weights_hash(model),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            width=int(model.head_hidden_size),  # type: ignore[arg-type]
            input_size=(self.image_size, self.image_size),
            crop_pct=1.0,
            interpolation="bilinear",
            note=f"filters {name} (--study {self.question.study}), trained from {began.label} on "
            f"{len(self._labelled(material, self.seed))} pictures of {len(material.rows.classes)} classes",
        )
        save_backbone(model.requires_grad_(False).eval(), folder / "model", card=card)
