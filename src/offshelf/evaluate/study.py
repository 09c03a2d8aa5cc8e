"""One study: features of a data set, several arms over the same folds, controls, and the classifier that ships.

The order is the method: everything learnt (scaling, autoencoder, regularisation, calibration) is learnt inside the
training rows of a fold; copies of one picture and rows of one group stay on one side; the arm that ships is chosen on
pooled predictions, and its score is given again as the bootstrap sees the choice itself.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from joblib import Memory

from offshelf.backbones.readout import Readout
from offshelf.engine.console import Console
from offshelf.errors import DataError, UsageError
from offshelf.evaluate.arms import cross_predict
from offshelf.evaluate.compare import compare_arms
from offshelf.evaluate.predictions import Predictions, write_predictions
from offshelf.evaluate.rows import Rows, check_finite, require_labels, usable_rows
from offshelf.evaluate.splits import Fold, inner_folds
from offshelf.evaluate.where_it_looked import chosen_rows, told, where_it_looked
from offshelf.interpret.explainable import explainable
from offshelf.transfer.classifier import FeatureClassifier
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.extraction import Extraction
from offshelf.transfer.pipelines import Arm, fit_pipeline, make_arms, make_pipeline
from offshelf.transfer.similar import SimilarPictures

BLANK_AREA = 0.6


@dataclass
class Material:
    """What the arms of a study share: the extractor, the usable rows, their features (n, copies, D), and the folds."""

    features: DeepFeatures
    extraction: Extraction
    rows: Rows
    values: np.ndarray
    folds: list[Fold]

    @property
    def given(self) -> bool:
        """Whether the data brought the one split that is measured on."""
        return self.rows.splits is not None and len(self.folds) == 1

    def table(self, arm: Arm) -> np.ndarray:
        """Features as ``arm`` takes them: (n, D), or (n, copies * D) where it sees the copies apart."""
        return self.values.reshape(len(self.values), -1) if arm.copies_apart else self.features.pool(self.values)


@dataclass
class Findings:
    """What came out: predictions of every arm, the best one, how they compare, and the best without the centre."""

    arms: dict[str, Predictions]
    best: str
    comparisons: list[dict[str, Any]]
    tie_groups: list[list[str]]
    blanked: Predictions | None
    seconds: float
    looks: dict[str, Any] = field(default_factory=dict)


@dataclass
class Study:
    """Settings of a study; `run` does it."""

    dataset: Dataset
    source: str
    console: Console
    backbones: list[str]
    heads: list[str]
    grid: tuple[int, int] = (1, 1)
    readout: Readout = "pooled"
    copies: int = 1
    input_size: int | None = None
    reproductive: bool = False
    code_dim: int = 128
    folds: int | None = None
    control: bool = True
    similar: bool = False
    exact: bool = False
    strict: bool = False
    seed: int = 0
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = {"copies": self.copies, "code_dim": self.code_dim}

    def run(self, folder: Path) -> tuple[Material, Findings]:
        """Do the study; writes ``model/`` and ``predictions.parquet`` into ``folder``."""
        material = self._prepare()
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="offshelf-steps-") as shared:
            arms = self._predict(material, Memory(shared, verbose=0))
        best, comparisons, ties = self._compare(arms, material.rows)
        seconds = time.perf_counter() - started
        blanked = self._blank(arms[best].arm, material) if self.control else None
        findings = Findings(arms, best, comparisons, ties, blanked, seconds)
        shipped = self._ship(arms[best].arm, material)
        shipped.save(folder / "model")
        findings.looks = self._look(arms[best].arm, shipped, material)
        if self.similar:
            names = [material.rows.samples.name(row) for row in range(len(material.rows.labels))]
            SimilarPictures.of(material.values.mean(axis=1), names).save(folder / "model")
        write_predictions(folder / "predictions.parquet", arms, material.rows)
        return material, findings

    def _prepare(self) -> Material:
        """Features of all pictures, and the rows that can be used."""
        require_labels(self.dataset, self.source)
        features = self._features().fit()
        for card in features.cards_:
            self.console.say(f"  {card.label}")
        extraction = self._extract(features, "features", self.dataset)
        if self.strict and extraction.errors:
            listed = "; ".join(str(error) for error in list(extraction.errors.values())[:5])
            raise DataError(f"{len(extraction.errors)} pictures cannot be read, and --strict was asked for: {listed}.")
        for error in list(extraction.errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        rows = usable_rows(self.dataset, self.source, extraction.errors, extraction.keys, self.folds is not None)
        whole = len(rows.positions) == len(extraction.features)
        values = extraction.features if whole else extraction.features[rows.positions]
        check_finite(values, rows.samples, features)
        folds = rows.outer_folds(self.folds or 5, self.seed)
        measured = folds[0].name if len(folds) == 1 else f"{len(folds)} folds"
        self.console.say(f"{len(rows.labels)} pictures, {len(rows.classes)} classes; {measured}")
        for note in dict.fromkeys(fold.note for fold in folds if fold.note):
            self.console.say(note)
        return Material(features, extraction, rows, values, folds)

    def _features(self, blank_area: float | None = None) -> DeepFeatures:
        return DeepFeatures(
            self.backbones,
            grid=self.grid,
            readout=self.readout,
            copies=self.copies,
            input_size=self.input_size,
            blank_area=blank_area,
            exact=self.exact,
        )

    def _extract(self, features: DeepFeatures, what: str, dataset: Dataset) -> Extraction:
        with self.console.progress(what, len(dataset)) as advance:
            found = features.extract(dataset, advance)
        rate = f", {len(dataset) / found.seconds:,.0f} images/s" if found.computed else ""
        self.console.say(f"{what}: {found.cached_share:.0%} from the cache; {found.seconds:.1f} s{rate}")
        return found

    def _predict(self, material: Material, memory: Memory) -> dict[str, Predictions]:
        """Every arm over the same folds; fitted steps that arms share are fitted once."""
        arms = make_arms(self.heads, self.reproductive)
        found: dict[str, Predictions] = {}
        with self.console.progress("heads", len(arms) * len(material.folds), unit="fits") as advance:
            for arm in arms:
                found[arm.name] = cross_predict(
                    arm,
                    material.table(arm),
                    material.rows,
                    material.folds,
                    seed=self.seed,
                    after_fold=advance,
                    memory=memory,
                    **self.settings,
                )
                self.console.say(f"  {arm.name}: {found[arm.name].seconds:.1f} s")
        return found

    def _compare(self, arms: dict[str, Predictions], rows: Rows) -> tuple[str, list[dict[str, Any]], list[list[str]]]:
        tested = next(iter(arms.values())).tested
        predicted = {name: item.predicted[tested] for name, item in arms.items()}
        comparisons, ties = compare_arms(
            rows.labels[tested], predicted, len(rows.classes), groups=rows.clusters(tested), seed=self.seed
        )
        return ties[0][0], comparisons, ties

    def _blank(self, arm: Arm, material: Material) -> Predictions:
        """The best arm again, on pictures without their centre, over the same folds."""
        blanked = self._features(BLANK_AREA)
        extraction = self._extract(blanked, "control: blanked centre", material.rows.samples.dataset)
        twin = Material(blanked, extraction, material.rows, extraction.features, material.folds)
        return cross_predict(arm, twin.table(arm), twin.rows, twin.folds, seed=self.seed, **self.settings)

    def _ship(self, arm: Arm, material: Material) -> FeatureClassifier:
        """With given splits the measured model itself; after cross-validation one fitted on all rows."""
        rows = material.rows
        train = np.asarray(material.folds[0].train) if material.given else np.arange(len(rows.labels))
        return self._fitted(arm, material, train)

    def _fitted(self, arm: Arm, material: Material, train: np.ndarray) -> FeatureClassifier:
        rows = material.rows
        groups = rows.clusters(train)
        inner = inner_folds(rows.labels[train], groups, seed=self.seed)
        pipeline = make_pipeline(arm, inner=inner, seed=self.seed, **self.settings)
        fit_pipeline(pipeline, material.table(arm)[train], rows.labels[train], groups)
        pooling = "concatenate" if arm.copies_apart else "mean"
        shipped = DeepFeatures(**{**material.features.get_params(), "copy_pooling": pooling})
        return FeatureClassifier(shipped, pipeline, rows.classes, arm.name)

    def _look(self, arm: Arm, shipped: FeatureClassifier, material: Material) -> dict[str, Any]:
        """Where the best arm looked in pictures that it was not fitted on, or why that cannot be shown."""
        if len(material.features.cards_) > 1 or tuple(self.grid) != (1, 1) or self.copies != 1:
            reason = "features of several backbones, tiles or copies have no one map; `offshelf explain` shows more"
            return {"saliency": [], "looked": told(None, reason)}
        fold, rows = material.folds[0], material.rows
        try:
            held_out = shipped if material.given else self._fitted(arm, material, np.asarray(fold.train))
            subject = explainable(held_out)
        except UsageError as error:
            return {"saliency": [], "looked": told(None, str(error))}
        chosen = chosen_rows(rows, fold.test)
        pixels, _ = subject.pixels(rows.samples.take(chosen), lambda n: None)
        return where_it_looked(subject, pixels, rows, chosen)
