"""One study: features of a data set, several arms over the same folds, controls, and the results that a report shows.

The order is the method: everything learnt (scaling, autoencoder, regularisation, calibration) is learnt inside the
training rows of a fold; copies of one picture and rows of one group stay on one side; the arm that ships is chosen on
pooled predictions, and its score is given again as the bootstrap sees the choice itself.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from joblib import Memory

from offshelf.backbones.readout import Readout
from offshelf.engine.console import Console
from offshelf.errors import DataError
from offshelf.evaluate.arms import cross_predict
from offshelf.evaluate.baselines import baselines
from offshelf.evaluate.bootstrap import evaluate
from offshelf.evaluate.compare import compare_arms
from offshelf.evaluate.controls import blank_centre_control, source_probe
from offshelf.evaluate.cost import cost
from offshelf.evaluate.feature_map import feature_map
from offshelf.evaluate.mistakes import confident_mistakes
from offshelf.evaluate.predictions import Predictions, write_predictions
from offshelf.evaluate.protocols import HEADS_V1
from offshelf.evaluate.rows import Rows, check_finite, require_labels, usable_rows
from offshelf.evaluate.selection import selected_score
from offshelf.evaluate.splits import inner_folds
from offshelf.evaluate.verdict import sentences
from offshelf.transfer.classifier import FeatureClassifier
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.extraction import Extraction
from offshelf.transfer.pipelines import Arm, fit_pipeline, make_arms, make_pipeline

BLANK_AREA = 0.6


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
    exact: bool = False
    strict: bool = False
    seed: int = 0

    def run(self, folder: Path) -> dict[str, Any]:
        """Do the study; writes ``model/`` and ``predictions.parquet`` into ``folder`` and returns the results."""
        require_labels(self.dataset, self.source)
        features = self._features()
        for card in features.fit().cards_:
            self.console.say(f"  {card.label}")
        extraction = self._extract(features, "features")
        if self.strict and extraction.errors:
            listed = "; ".join(str(error) for error in list(extraction.errors.values())[:5])
            raise DataError(f"{len(extraction.errors)} pictures cannot be read, and --strict was asked for: {listed}.")
        for error in list(extraction.errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        rows = usable_rows(self.dataset, self.source, extraction.errors, extraction.keys, self.folds is not None)
        values = self._values(extraction)
        check_finite(values, rows.samples, features)
        outer = rows.outer_folds(self.folds or 5, self.seed)
        measured = outer[0].name if len(outer) == 1 else f"{len(outer)} folds"
        self.console.say(f"{len(rows.labels)} pictures, {len(rows.classes)} classes; {measured}")
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="offshelf-steps-") as shared:
            arms = make_arms(self.heads, self.reproductive)
            found = self._predict(arms, features, values, rows, outer, Memory(shared, verbose=0))
            best, comparisons, ties = self._compare(found, rows)
            blank = self._blank(found[best], features, rows, outer) if self.control else None
        heads_seconds = time.perf_counter() - started
        classifier = self._ship(found[best].arm, features, values, rows, outer)
        classifier.save(folder / "model")
        write_predictions(folder / "predictions.parquet", found, rows)
        return self._results(
            found, best, comparisons, ties, blank, rows, features, values, extraction, outer, heads_seconds
        )

    # -- steps, in the order of `run` ------------------------------------------------------------------------------

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

    def _extract(self, features: DeepFeatures, what: str, dataset: Any = None) -> Extraction:
        dataset = self.dataset if dataset is None else dataset
        with self.console.progress(what, len(dataset)) as advance:
            found = features.extract(dataset, advance)
        rate = f", {len(dataset) / found.seconds:,.0f} images/s" if found.computed else ""
        self.console.say(f"{what}: {found.cached_share:.0%} from the cache; {found.seconds:.1f} s{rate}")
        return found

    def _values(self, extraction: Extraction) -> np.ndarray:
        """Features of the usable rows, (n, copies, D)."""
        column = self.dataset["label"][:]
        good = np.array(
            [i for i, label in enumerate(column) if label is not None and i not in extraction.errors], dtype=int
        )
        return extraction.features if len(good) == len(column) else extraction.features[good]

    def _table(self, arm: Arm, values: np.ndarray, features: DeepFeatures) -> np.ndarray:
        if arm.copies_apart:
            return values.reshape(len(values), -1)
        return features.pool(values)

    def _predict(
        self, arms: list[Arm], features: DeepFeatures, values: np.ndarray, rows: Rows, outer: list[Any], memory: Any
    ) -> dict[str, Predictions]:
        found: dict[str, Predictions] = {}
        with self.console.progress("heads", len(arms) * len(outer), unit="fits") as advance:
            for arm in arms:
                found[arm.name] = cross_predict(
                    arm,
                    self._table(arm, values, features),
                    rows.labels,
                    rows.together,
                    outer,
                    len(rows.classes),
                    seed=self.seed,
                    after_fold=advance,
                    copies=self.copies,
                    code_dim=self.code_dim,
                    memory=memory,
                )
                self.console.say(f"  {arm.name}: {found[arm.name].seconds:.1f} s")
        return found

    def _compare(self, found: dict[str, Predictions], rows: Rows) -> tuple[str, list[dict[str, Any]], list[list[str]]]:
        tested = next(iter(found.values())).tested
        predicted = {name: item.predicted[tested] for name, item in found.items()}
        groups = None if rows.together is None else rows.together[tested]
        comparisons, ties = compare_arms(
            rows.labels[tested], predicted, len(rows.classes), groups=groups, seed=self.seed
        )
        return ties[0][0], comparisons, ties

    def _blank(self, best: Predictions, features: DeepFeatures, rows: Rows, outer: list[Any]) -> Predictions:
        """The best arm again, on pictures without their centre, over the same folds."""
        blanked = self._features(BLANK_AREA)
        extraction = self._extract(blanked, "control: blanked centre", rows.samples.dataset)
        table = self._table(best.arm, extraction.features, blanked)
        return cross_predict(
            best.arm, table, rows.labels, rows.together, outer, len(rows.classes),
            seed=self.seed, copies=self.copies, code_dim=self.code_dim,
        )  # fmt: skip

    def _ship(
        self, arm: Arm, features: DeepFeatures, values: np.ndarray, rows: Rows, outer: list[Any]
    ) -> FeatureClassifier:
        """With given splits the measured model itself; after cross-validation one fitted on all rows."""
        train = (
            np.asarray(outer[0].train) if rows.splits is not None and len(outer) == 1 else np.arange(len(rows.labels))
        )
        groups = None if rows.together is None else rows.together[train]
        inner = inner_folds(rows.labels[train], groups, seed=self.seed)
        pipeline = make_pipeline(arm, copies=self.copies, code_dim=self.code_dim, inner=inner, seed=self.seed)
        fit_pipeline(pipeline, self._table(arm, values, features)[train], rows.labels[train], groups)
        shipped = features
        if arm.copies_apart:
            shipped = features.__class__(**{**features.get_params(), "copy_pooling": "concatenate"})
        return FeatureClassifier(shipped, pipeline, rows.classes, arm.name)

    def _results(
        self,
        found: dict[str, Predictions],
        best: str,
        comparisons: list[dict[str, Any]],
        ties: list[list[str]],
        blank: Predictions | None,
        rows: Rows,
        features: DeepFeatures,
        values: np.ndarray,
        extraction: Extraction,
        outer: list[Any],
        heads_seconds: float,
    ) -> dict[str, Any]:
        tested = found[best].tested
        groups = None if rows.together is None else rows.together[tested]
        arms = [self._arm(item, rows, tested, groups) for item in found.values()]
        by_name = {arm["name"]: arm for arm in arms}
        pooled = features.pool(values)
        controls: dict[str, Any] = {"blank_centre": None, "source": None}
        if blank is not None:
            measured = self._arm(blank, rows, tested, groups)
            controls["blank_centre"] = blank_centre_control(
                by_name[best]["metrics"]["balanced_accuracy"],
                measured["metrics"]["balanced_accuracy"],
                baselines(rows.labels, outer, rows.classes)["chance"],
                area=BLANK_AREA,
                arm=best,
            )
        column = "source" if rows.sources is not None else "group"
        origin = rows.sources if rows.sources is not None else rows.groups
        if origin is not None:
            controls["source"] = source_probe(
                pooled, origin, rows.labels, seed=self.seed, column=column, clusters=rows.together
            )
        cards = [
            card.to_dict() | {"label": card.label} | route for card, route in zip(features.cards_, extraction.routes)
        ]
        name = Path(self.source).name or self.source
        results = {
            "title": f"{name}: {len(rows.classes)} classes, {len(rows.labels)} pictures",
            "verb": "fit",
            "classes": rows.classes,
            "primary_metric": "balanced_accuracy",
            "data": rows.data,
            "backbones": cards,
            "protocol": self._protocol(outer, rows),
            "baselines": baselines(rows.labels, outer, rows.classes),
            "arms": arms,
            "best": best,
            "selected": selected_score(
                rows.labels[tested], {name: item.predicted[tested] for name, item in found.items()},
                len(rows.classes), groups=groups, seed=self.seed,
            ),
            "comparisons": comparisons,
            "tie_groups": ties,
            "controls": controls,
            "mistakes": confident_mistakes(
                rows.samples, rows.labels, found[best].predicted, found[best].probabilities, rows.classes
            ),
            "map": feature_map(pooled, rows.labels, seed=self.seed),
            "cost": cost(
                extraction.seconds,
                heads_seconds,
                len(self.dataset) / extraction.seconds if extraction.cached_share == 0 else None,
                extraction.cached_share,
            ),
        }  # fmt: skip
        results["verdict"] = sentences(results)
        return results

    def _arm(self, item: Predictions, rows: Rows, tested: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
        measured = evaluate(
            rows.labels[tested],
            item.probabilities[tested],
            rows.classes,
            groups=groups,
            predictions=item.predicted[tested],
            seed=self.seed,
        )
        return {
            "name": item.arm.name,
            "features": item.arm.features,
            "head": item.arm.head,
            "chosen": item.chosen,
            "seconds": round(item.seconds, 2),
        } | measured

    def _protocol(self, outer: list[Any], rows: Rows) -> dict[str, Any]:
        fixed = replace(HEADS_V1, seed=self.seed).to_dict()
        return fixed | {
            "folds": [{"name": fold.name, "train": len(fold.train), "test": len(fold.test)} for fold in outer],
            "grouped": rows.groups is not None,
            "view": {"grid": list(self.grid), "readout": self.readout, "copies": self.copies, "exact": self.exact},
        }
