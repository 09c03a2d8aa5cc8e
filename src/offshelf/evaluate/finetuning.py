"""Fine-tuning, measured: trained on the training rows, judged on rows it never saw, and told as `fit` tells it.

One held-out part or several folds, all labels or a few of them, one label a picture or several: a study is a number of
trainings that share rows and folds, and the network that ships.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.base import clone

from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys
from offshelf.engine.console import Console
from offshelf.engine.files import write_atomic
from offshelf.engine.launch import Launch
from offshelf.errors import DataError
from offshelf.evaluate.baselines import baselines
from offshelf.evaluate.cost import cost
from offshelf.evaluate.label_efficiency import Attempt, efficiency_curve, passes
from offshelf.evaluate.label_subsets import LabelBudget, in_order, labelled_rows
from offshelf.evaluate.mistakes import confident_mistakes
from offshelf.evaluate.multi_label import (
    HALF,
    Measurable,
    confident_label_mistakes,
    evaluate_labels,
    label_baselines,
    measurable,
)
from offshelf.evaluate.predictions import Predictions, write_predictions
from offshelf.evaluate.protocols import (
    FINETUNE_FOLDS_V1,
    FINETUNE_V1,
    LABEL_EFFICIENCY_V1,
    MULTI_LABEL_FOLDS_V1,
    MULTI_LABEL_V1,
    Protocol,
)
from offshelf.evaluate.results import arm_result
from offshelf.evaluate.rows import Rows, usable_label_rows, usable_rows
from offshelf.evaluate.splits import Fold
from offshelf.evaluate.verdict import sentences
from offshelf.evaluate.where_it_looked import chosen_rows, where_it_looked
from offshelf.interpret.explainable import of_network
from offshelf.transfer.classifier import FinetunedClassifier
from offshelf.transfer.finetune import FineTune
from offshelf.transfer.pipelines import Arm

HEAD = "finetuned"
FEW_STEPS = 50  # below it a training has hardly begun, which a user with few pictures is told
HELD_OUT = 5  # without folds and without given splits, one of so many parts is held out


@dataclass
class Material:
    """What the trainings share: rows, pixels ``(n, 3, S, S)`` uint8, folds, and the labels that can be measured."""

    rows: Rows
    pixels: np.ndarray
    folds: list[Fold]
    measurable: Measurable | None

    @property
    def measured(self) -> np.ndarray | None:
        """``(K,)`` bool with several labels a picture."""
        return None if self.measurable is None else self.measurable.measured


@dataclass
class Finetuning:
    """Settings of a study; `run` does it.

    estimator : what is trained, settings and backbone. folds : cross-validate in so many parts, also where the data
    has splits of its own. labels : how many training pictures count as labelled; several give a curve, each over
    ``seeds`` seeds. launch : on which device.
    """

    estimator: FineTune
    dataset: Dataset
    source: str
    console: Console
    folds: int | None = None
    labels: list[LabelBudget] = field(default_factory=list)
    seeds: int = 3
    strict: bool = False
    seed: int = 0
    launch: Launch | None = None
    _advance: Callable[[int], None] = field(default=lambda n: None, repr=False)
    _speeds: list[float] = field(default_factory=list, repr=False)
    _looks: dict[str, Any] = field(default_factory=dict, repr=False)

    def run(self, folder: Path) -> dict[str, Any]:
        """Do the study; writes ``model/``, ``metrics.jsonl`` and ``predictions.parquet``, and returns the results."""
        started = time.perf_counter()
        material = self._prepare()
        budgets = self._budgets(material)
        n = len(material.folds[0].train)
        steps = self._steps_of(budgets[-1].of(n), n)
        if steps < FEW_STEPS:
            self.console.warn(f"{steps} steps are few for a training; lower --batch-size or raise --epochs")
        decoded, clock = time.perf_counter() - started, time.perf_counter()
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        seeds = [self.seed + k for k in range(self.seeds)] if self.curve else [self.seed]
        tried: list[tuple[LabelBudget, list[Attempt]]] = []
        trained = self.estimator
        with self.console.progress("train", self._steps(material, budgets, len(seeds)), unit="steps") as advance:
            self._advance = advance
            for budget in budgets:
                attempts = []
                for seed in seeds:
                    attempt, last = self._cross(material, budget, seed, folder)
                    attempts.append(attempt)
                    trained = last if seed == self.seed else trained  # the first seed of the most labels ships
                tried.append((budget, attempts))
            if len(material.folds) > 1:
                trained = self._last(material, budgets[-1], folder)
        classes = [material.rows.classes[k] for k in trained.classes_]
        FinetunedClassifier(trained, classes).save(folder / "model")
        seconds = time.perf_counter() - clock
        self._write(folder / "predictions.parquet", tried, material)
        results = self._results(trained, tried, material)
        results["cost"] = cost(decoded, seconds, float(np.median(self._speeds)), 0.0)
        results["verdict"] = sentences(results)
        return results

    @property
    def curve(self) -> bool:
        """Whether several numbers of labels were asked for."""
        return len(self.labels) > 1

    # -- before the trainings ------------------------------------------------------------------------------------------

    def _prepare(self) -> Material:
        several = self.estimator.multi_label
        samples = as_samples(self.dataset)
        size = self.estimator.store_size or self.estimator.image_size
        with self.console.progress("decode", len(samples)) as advance:
            pixels, errors = load_pixels(samples, size, advance)
        if self.strict and errors:
            raise DataError(
                f"{len(errors)} pictures cannot be read, and --strict was asked for: {next(iter(errors.values()))}."
            )
        for error in list(errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        keys, _ = content_keys(self.dataset)
        usable = usable_label_rows if several else usable_rows
        rows = usable(self.dataset, self.source, errors, keys, self.folds is not None)
        folds = rows.outer_folds(self.folds or HELD_OUT, self.seed)
        if self.folds is None:
            folds = folds[:1]
        what = "labels" if several else "classes"
        parts = f"{len(folds)} folds" if len(folds) > 1 else f"{len(folds[0].test)} held out ({folds[0].name})"
        self.console.say(f"{len(rows.labels)} pictures, {len(rows.classes)} {what}; {parts}")
        if folds[0].note:
            self.console.say(folds[0].note)
        found = measurable(rows.labels, folds, rows.classes, rows.together) if several else None
        for name, why in (found.left_out if found else {}).items():
            self.console.warn(f"{name} is not in the mean: {why}")
        return Material(rows, pixels[rows.positions], folds, found)

    def _budgets(self, material: Material) -> list[LabelBudget]:
        """From few to many; all labels where nothing was asked for. What cannot be had is refused before any work."""
        least = min(len(fold.train) for fold in material.folds)
        ordered = in_order(self.labels, least) if self.labels else [LabelBudget("100%", share=1.0)]
        for fold in material.folds:
            for seed in range(self.seed, self.seed + (self.seeds if self.curve else 1)):
                self._labelled(material.rows, fold.train, ordered[0], seed)
        return ordered

    def _steps(self, material: Material, budgets: list[LabelBudget], n_seeds: int) -> int:
        sizes = [len(fold.train) for fold in material.folds]
        total = sum(self._steps_of(budget.of(n), n) for budget in budgets for n in sizes) * n_seeds
        n = len(material.rows.labels)
        return total + (self._steps_of(budgets[-1].of(n), n) if len(sizes) > 1 else 0)

    def _steps_of(self, n: int, n_all: int) -> int:
        size = self.estimator.batch_size
        return passes(self.estimator.epochs, size, n, n_all) * max(1, n // size)

    # -- the trainings -------------------------------------------------------------------------------------------------

    def _cross(self, material: Material, budget: LabelBudget, seed: int, folder: Path) -> tuple[Attempt, FineTune]:
        """Predictions of every test part by a network trained on the labelled rows of its training part."""
        rows = material.rows
        shape = (len(rows.labels), len(rows.classes))
        predicted = np.full(shape if self.estimator.multi_label else shape[0], -1)
        arm = Arm(str(self.estimator.backbone), HEAD)
        item = Predictions(arm, np.full(shape, np.nan), predicted, np.full(len(rows.labels), -1))
        attempt = Attempt(seed, item)
        began = time.perf_counter()
        for number, fold in enumerate(material.folds):
            chosen = self._labelled(rows, fold.train, budget, seed)
            place = {"labels": budget.text, "seed": seed} if self.curve else {}
            if len(material.folds) > 1:
                place["fold"] = number + 1
            said = ", ".join(f"{key} {value}" for key, value in place.items())
            estimator = self._train(material, chosen, len(fold.train), seed, folder, place, said)
            spread = np.zeros((len(fold.test), shape[1]))
            spread[:, estimator.classes_] = estimator.probabilities_of(material.pixels[fold.test])
            item.probabilities[fold.test], item.fold[fold.test] = spread, number
            item.predicted[fold.test] = spread >= HALF if estimator.multi_label else spread.argmax(axis=1)
            if number == 0 and seed == self.seed:  # of the most labels, which come last, and of pictures not seen
                looked_at = chosen_rows(rows, fold.test)
                subject = of_network(estimator, [rows.classes[k] for k in estimator.classes_])
                self._looks = where_it_looked(subject, material.pixels[looked_at], rows, looked_at)
            attempt.pictures.append(len(chosen))
            attempt.epochs = max(attempt.epochs, estimator.epochs)
        item.arm = Arm(estimator.card_.name, HEAD)  # as it was loaded, with timm's tag written out
        item.seconds = time.perf_counter() - began
        return attempt, estimator

    def _last(self, material: Material, budget: LabelBudget, folder: Path) -> FineTune:
        """The network that ships after cross-validation: trained once more, on the rows of all folds."""
        every = np.arange(len(material.rows.labels))
        chosen = self._labelled(material.rows, every, budget, self.seed)
        said = "once more over all folds, for predict"
        return self._train(material, chosen, len(every), self.seed, folder, {"fold": "all"}, said)

    def _labelled(self, rows: Rows, train: np.ndarray, budget: LabelBudget, seed: int) -> np.ndarray:
        return np.asarray(train)[labelled_rows(rows.labels[train], rows.clusters(np.asarray(train)), budget, seed)]

    def _train(
        self,
        material: Material,
        chosen: np.ndarray,
        n_all: int,
        seed: int,
        folder: Path,
        place: dict[str, Any],
        said: str,
    ) -> FineTune:
        """One training, with a line in ``metrics.jsonl`` for each epoch."""
        estimator: FineTune = clone(self.estimator)
        epochs = passes(self.estimator.epochs, self.estimator.batch_size, len(chosen), n_all)
        estimator.set_params(random_state=seed, epochs=epochs)

        def told(epoch: int, numbers: dict[str, Any]) -> None:
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
                handle.write("\n" + json.dumps(place | numbers) + "\n")
            if not place:
                validation = f", validation {numbers['validation_loss']:.4f}" if "validation_loss" in numbers else ""
                self.console.say(
                    f"epoch {epoch + 1} of {epochs}: loss {numbers['loss']:.4f}{validation}, "
                    f"{numbers['samples_per_second']:,.0f} images/s"
                )

        rows = material.rows
        kept = folder / "checkpoints" / (re.sub(r"[^\w.]+", "-", said).strip("-") or "training")
        estimator.fit(
            material.pixels[chosen],
            rows.labels[chosen],
            rows.clusters(chosen),
            after_epoch=told,
            advance=self._advance,
            checkpoints=kept,
            launch=self.launch,
        )
        if estimator.status_ == "stopped":  # asked to end from outside; the same command goes on
            raise KeyboardInterrupt
        if place:
            shutil.rmtree(kept)  # of many trainings only the one under way is kept
        else:
            lines = "".join("\n" + json.dumps(numbers) + "\n" for numbers in estimator.history_)
            write_atomic(folder / "metrics.jsonl", lines)  # with the epochs from before it went on
        self._speeds += [record["samples_per_second"] for record in estimator.history_]
        if said:
            self.console.say(f"  {said}: {len(chosen)} pictures, loss {estimator.history_[-1]['loss']:.4f}")
        return estimator

    # -- after them ----------------------------------------------------------------------------------------------------

    def _write(self, path: Path, tried: list[tuple[LabelBudget, list[Attempt]]], material: Material) -> None:
        """Predictions of all trainings; with one they stand under the arm's own name."""
        found = {
            one.item.arm.name + (f", {budget.said}, seed {one.seed}" if self.curve else ""): one.item
            for budget, attempts in tried
            for one in attempts
        }
        write_predictions(path, found, material.rows)

    def _results(
        self, trained: FineTune, tried: list[tuple[LabelBudget, list[Attempt]]], material: Material
    ) -> dict[str, Any]:
        """All but the cost and the sentences."""
        rows, folds, several = material.rows, material.folds, material.measurable
        most = tried[-1][1][0]
        arm = most.item.arm
        card = trained.card_.to_dict() | {"label": trained.card_.label}
        settings = {key: value for key, value in trained.get_params().items() if key != "backbone"}
        results: dict[str, Any] = {
            "title": f"{Path(rows.data['source']).name}: {arm.name}",
            "verb": "finetune",
            "classes": rows.classes,
            "primary_metric": "balanced_accuracy" if several is None else "macro_auroc",
            "data": rows.data,
            "backbones": [card | {"route": "trained", "cosine_median": None, "cosine_min": None}],
            "protocol": self._protocol(material).to_dict() | {"grouped": rows.groups is not None, "settings": settings},
            "baselines": self._baselines(material),
            "arms": [self._arm(most.item, material)],
            "best": arm.name,
            "comparisons": [],
            "tie_groups": [[arm.name]],
            "controls": {"blank_centre": None, "source": None},
            "mistakes": self._mistakes(most.item, rows),
            "map": None,
            **self._looks,
            "history": trained.history_,
            "trained": {
                "pictures": most.pictures,
                "of": [len(fold.train) for fold in folds],
                "epochs": trained.epochs,
                "best_epoch": trained.best_epoch_,
                "status": trained.status_,
                "notes": trained.notes_,
            },
        }
        if several is not None:
            results["multi_label"] = {"measured": int(several.measured.sum()), "left_out": several.left_out}
        if self.curve:
            self.console.say("intervals over seeds and test pictures")
            results["label_efficiency"] = efficiency_curve(tried, rows, material.measured, seed=self.seed) | {
                "n_train": [len(fold.train) for fold in folds],
                "protocol": self._curve_protocol(material).to_dict(),
            }
        return results

    def _protocol(self, material: Material) -> Protocol:
        one, several = (
            (FINETUNE_V1, FINETUNE_FOLDS_V1) if material.measurable is None else (MULTI_LABEL_V1, MULTI_LABEL_FOLDS_V1)
        )
        chosen = one if len(material.folds) == 1 else several
        return replace(chosen, seed=self.seed).with_folds(material.folds)

    def _curve_protocol(self, material: Material) -> Protocol:
        own = self._protocol(material)
        return replace(
            LABEL_EFFICIENCY_V1,
            metrics=own.metrics,
            primary_metric=own.primary_metric,
            n_seeds=self.seeds,
            seed=own.seed,
            folds=own.folds,
        )

    def _baselines(self, material: Material) -> dict[str, Any]:
        rows = material.rows
        if material.measured is None:
            return baselines(rows.labels, material.folds, rows.classes)
        tested = np.concatenate([fold.test for fold in material.folds])
        return label_baselines(rows.labels, tested, material.measured)

    def _arm(self, item: Predictions, material: Material) -> dict[str, Any]:
        """The arm as `fit` has it."""
        rows, tested = material.rows, item.tested
        if material.measured is None:
            return arm_result(item, rows, self.seed)
        told = evaluate_labels(
            rows.labels[tested],
            item.probabilities[tested],
            rows.classes,
            material.measured,
            rows.clusters(tested),
            self.seed,
        )
        about = {"name": item.arm.name, "features": item.arm.features, "head": item.arm.head}
        return about | {"chosen": item.chosen, "seconds": round(item.seconds, 2)} | told

    def _mistakes(self, item: Predictions, rows: Rows) -> list[dict[str, Any]]:
        if self.estimator.multi_label:
            return confident_label_mistakes(rows.samples, rows.labels, item.probabilities, rows.classes)
        return confident_mistakes(rows.samples, rows.labels, item.predicted, item.probabilities, rows.classes)
