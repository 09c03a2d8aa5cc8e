"""The screening study of arXiv 2003.13145: networks, with and without augmentation, over the same folds.

One scheme a study; see `offshelf.evaluate.screening` for what a scheme is, and for the rates.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from offshelf.backbones.card import BackboneCard
from offshelf.data.geometry import blank_centre
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys
from offshelf.engine.console import Console
from offshelf.errors import BackboneError, DataError
from offshelf.evaluate.baselines import baselines
from offshelf.evaluate.compare import compare_arms
from offshelf.evaluate.controls import blank_centre_control
from offshelf.evaluate.cost import cost
from offshelf.evaluate.metrics import confusion_matrix
from offshelf.evaluate.mistakes import confident_mistakes
from offshelf.evaluate.predictions import Predictions, write_predictions
from offshelf.evaluate.protocols import FINETUNE_V1
from offshelf.evaluate.results import arm_result
from offshelf.evaluate.rows import Rows, usable_rows
from offshelf.evaluate.screening import out_of_fold, restricted, screening_table, weighted_cells
from offshelf.evaluate.selection import selected_score
from offshelf.evaluate.splits import Fold, outer_folds
from offshelf.evaluate.study import BLANK_AREA
from offshelf.evaluate.verdict import sentences
from offshelf.evaluate.where_it_looked import chosen_rows, told
from offshelf.interpret.saliency import class_activation, data_uri, overlaid
from offshelf.transfer.classifier import FinetunedClassifier
from offshelf.transfer.covid_screening import CovidScreening
from offshelf.transfer.pipelines import Arm

SCREENING_V1 = replace(
    FINETUNE_V1,
    name="screening",
    question="how well do networks whose weights were all trained on the training part of a fold name the class of "
    "the pictures outside it, with and without augmentation",
    regularisation="as given in the settings; the epoch by the lowest loss on the validation share of a training part, "
    "groups whole; nothing is chosen on the rows that score",
    pooling="predictions of all test parts pooled; every row counted once; folds drawn over all classes, groups whole",
    verdict="arms are told apart when the paired interval of the difference leaves out 0 and at least 6 groups differ",
    n_folds=5,
)
PLAIN, AUGMENTED = "finetuned", "finetuned, augmented and balanced"


@dataclass
class Material:
    """What the arms share: the rows of the scheme, their folds, and their pixels (n, 3, S, S) uint8."""

    rows: Rows
    folds: list[Fold]
    pixels: np.ndarray


@dataclass
class Tried:
    """One arm: its recipe, what it predicted out of fold, the network it began with, and where it looked."""

    recipe: CovidScreening
    item: Predictions
    card: BackboneCard
    looks: list[dict[str, Any]]


@dataclass
class Screening:
    """Settings of a study of one scheme; `run` does it.

    settings : of `CovidScreening`, but for the backbone, augmentation and seed; augmentation : the arms of each
    network; only : the classes of the scheme, all by default; control : repeat the best arm with the centre blanked.
    """

    dataset: Dataset
    source: str
    console: Console
    backbones: list[str]
    settings: dict[str, Any]
    augmentation: tuple[bool, ...] = (False, True)
    only: list[str] | None = None
    folds: int = 5
    control: bool = True
    strict: bool = False
    seed: int = 0

    def run(self, folder: Path) -> dict[str, Any]:
        """Do the study; writes ``model/``, ``metrics.jsonl`` and ``predictions.parquet``, and returns the results."""
        started = time.perf_counter()
        material = self._prepare()
        decoded, clock = time.perf_counter() - started, time.perf_counter()
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        tried = {}
        for name in dict.fromkeys(self.backbones):
            for augment in self.augmentation:
                arm = Arm(name, AUGMENTED if augment else PLAIN)
                tried[arm.name] = self._cross(arm, self._recipe(name, augment), material, folder)
        results = self._results(tried, material)
        best, rows = tried[results["best"]], material.rows
        if self.control:
            full = next(arm for arm in results["arms"] if arm["name"] == results["best"])["metrics"]
            chance = results["baselines"]["chance"]
            results["controls"]["blank_centre"] = self._blank(best, material, full["balanced_accuracy"], chance)
        self.console.say(f"{results['best']}: once more, without leaving out a fold, for predict")
        shipped = CovidScreening(**best.recipe.get_params()).fit(material.pixels, rows.labels, rows.together)
        FinetunedClassifier(shipped.finetuner_, rows.classes).save(folder / "model")
        write_predictions(folder / "predictions.parquet", {name: one.item for name, one in tried.items()}, rows)
        results["cost"] = cost(decoded, time.perf_counter() - clock, None, 0.0)
        results["verdict"] = sentences(results)
        return results

    def _prepare(self) -> Material:
        samples, size = as_samples(self.dataset), self.settings["image_size"]
        with self.console.progress("decode", len(samples)) as advance:
            pixels, errors = load_pixels(samples, size, advance)
        if self.strict and errors:
            raise DataError(
                f"{len(errors)} pictures cannot be read, and --strict was asked for: {next(iter(errors.values()))}."
            )
        for error in list(errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        keys, _ = content_keys(self.dataset)
        whole = usable_rows(self.dataset, self.source, errors, keys, ignore_splits=True)
        every = outer_folds(whole.labels, whole.together, None, self.folds, self.seed, classes=whole.classes)
        rows, folds, _ = restricted(whole, every, self.only)
        self.console.say(f"{len(rows.labels)} pictures, classes {', '.join(rows.classes)}; {len(folds)} folds")
        for note in dict.fromkeys(fold.note for fold in folds if fold.note):
            self.console.say(note)
        return Material(rows, folds, pixels[rows.positions])

    def _recipe(self, backbone: str, augment: bool) -> CovidScreening:
        return CovidScreening(
            backbone, augment=augment, oversample_to_balance=augment, random_state=self.seed, **self.settings
        )

    def _cross(self, arm: Arm, recipe: CovidScreening, material: Material, folder: Path) -> Tried:
        """One arm over all folds, with the maps of the first fold's test pictures."""
        rows, folds = material.rows, material.folds
        cards: list[BackboneCard] = []
        looks: list[dict[str, Any]] = []

        def told(fold: int, record: dict[str, Any]) -> None:
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
                handle.write("\n" + json.dumps({"arm": arm.name, "fold": fold + 1} | record) + "\n")

        def judged(fold: int, estimator: CovidScreening) -> None:
            self.console.say(f"  {arm.name}: {folds[fold].name} done")
            if fold:
                return
            cards.append(estimator.finetuner_.card_)
            try:
                looks.extend(saliency_pictures(estimator, material.pixels, rows, folds[0].test))
            except BackboneError as error:
                self.console.warn(f"no saliency maps: {error}")

        item = out_of_fold(
            arm, recipe, material.pixels, rows.labels, len(rows.classes), folds, rows.together, told, judged
        )
        return Tried(recipe, item, cards[0], looks)

    def _results(self, tried: dict[str, Tried], material: Material) -> dict[str, Any]:
        """All but the control, the cost and the sentences."""
        rows = material.rows
        tested = next(iter(tried.values())).item.tested
        predicted = {name: one.item.predicted[tested] for name, one in tried.items()}
        about: dict[str, Any] = {"groups": rows.clusters(tested), "seed": self.seed}
        comparisons, ties = compare_arms(rows.labels[tested], predicted, len(rows.classes), **about)
        best = tried[ties[0][0]]
        matrices = {
            name: confusion_matrix(rows.labels[tested], answers, len(rows.classes))
            for name, answers in predicted.items()
        }
        cards = {one.card.name: one.card for one in tried.values()}
        trained = {"route": "trained", "cosine_median": None, "cosine_min": None}
        return {
            "title": f"{Path(self.source).name or self.source}: {len(rows.classes)} classes, {len(tested)} pictures",
            "verb": "screen",
            "classes": rows.classes,
            "primary_metric": "balanced_accuracy",
            "data": rows.data,
            "backbones": [card.to_dict() | {"label": card.label} | trained for card in cards.values()],
            "protocol": replace(SCREENING_V1, seed=self.seed).with_folds(material.folds).to_dict()
            | {"grouped": rows.groups is not None, "settings": self.settings},
            "baselines": baselines(rows.labels, material.folds, rows.classes),
            "arms": [self._arm(one.item, rows) for one in tried.values()],
            "screening": {name: screening_table(matrix) for name, matrix in matrices.items()},
            "best": ties[0][0],
            "selected": selected_score(rows.labels[tested], predicted, len(rows.classes), **about),
            "comparisons": comparisons,
            "tie_groups": ties,
            "controls": {"blank_centre": None, "source": None},
            "mistakes": confident_mistakes(
                rows.samples, rows.labels, best.item.predicted, best.item.probabilities, rows.classes
            ),
            "saliency": best.looks,
            "looked": told("grad-cam") if best.looks else told(None, "the best network gives no map of its last layer"),
            "map": None,
        }

    def _arm(self, item: Predictions, rows: Rows) -> dict[str, Any]:
        """The arm as `fit` has it, with the paper's weighted rates among its metrics."""
        result, tested = arm_result(item, rows, self.seed), item.tested
        result["metrics"] |= weighted_cells(
            rows.labels[tested], item.predicted[tested], len(rows.classes), rows.clusters(tested), self.seed
        )
        return result

    def _blank(self, best: Tried, material: Material, full: dict[str, Any], chance: float) -> dict[str, Any]:
        """The best arm again, over the same folds, on pictures without their centre."""
        rows, arm = material.rows, best.item.arm
        self.console.say(f"{arm.name}: control with the centre blanked")
        hollow = blank_centre(torch.from_numpy(material.pixels), BLANK_AREA).numpy()
        item = out_of_fold(arm, best.recipe, hollow, rows.labels, len(rows.classes), material.folds, rows.together)
        blanked = arm_result(item, rows, self.seed)["metrics"]["balanced_accuracy"]
        return blank_centre_control(full, blanked, chance, area=BLANK_AREA, arm=arm.name)


def saliency_pictures(
    estimator: CovidScreening, pixels: np.ndarray, rows: Rows, test: np.ndarray
) -> list[dict[str, Any]]:
    """The first test pictures of each class beside where the network looked for the answer that it gave.

    Returns
    -------
    list of dict
        ``path``, ``truth``, ``predicted``, ``confidence``, and ``images``: the picture and its map, as data URIs.
    """
    chosen = chosen_rows(rows, test)
    probabilities = estimator.predict_proba(pixels[chosen])
    answers = probabilities.argmax(axis=1)
    heat = class_activation(
        estimator.finetuner_.model_, estimator.inputs(pixels[chosen]), torch.from_numpy(answers)
    ).numpy()
    return [
        {
            "path": rows.samples.name(int(row)),
            "truth": rows.classes[rows.labels[row]],
            "predicted": rows.classes[estimator.classes_[answer]],
            "confidence": float(sure),
            "images": [data_uri(pixels[row]), data_uri(overlaid(pixels[row], map_))],
        }
        for row, answer, sure, map_ in zip(chosen, answers, probabilities.max(axis=1), heat, strict=True)
    ]
