"""One fine-tuning run, measured: train on the training rows, judge on rows held out, and say it as `fit` does."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys
from offshelf.engine.console import Console
from offshelf.errors import DataError
from offshelf.evaluate.baselines import baselines
from offshelf.evaluate.cost import cost
from offshelf.evaluate.mistakes import confident_mistakes
from offshelf.evaluate.predictions import Predictions, write_predictions
from offshelf.evaluate.protocols import FINETUNE_V1
from offshelf.evaluate.results import arm_result
from offshelf.evaluate.rows import Rows, usable_rows
from offshelf.evaluate.verdict import sentences
from offshelf.transfer.classifier import FinetunedClassifier
from offshelf.transfer.finetune import FineTune
from offshelf.transfer.pipelines import Arm


def finetuning_study(
    estimator: FineTune,
    dataset: Dataset,
    source: str,
    folder: Path,
    console: Console,
    *,
    strict: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Fine-tune, judge, write ``model/``, ``metrics.jsonl`` and ``predictions.parquet``, and return the results."""
    started = time.perf_counter()
    samples = as_samples(dataset)
    with console.progress("decode", len(samples)) as advance:
        pixels, errors = load_pixels(samples, estimator.store_size or estimator.image_size, advance)
    if strict and errors:
        raise DataError(
            f"{len(errors)} pictures cannot be read, and --strict was asked for: {next(iter(errors.values()))}."
        )
    keys, _ = content_keys(dataset)
    rows = usable_rows(dataset, source, errors, keys, ignore_splits=False)
    pixels = pixels[rows.positions]
    fold = rows.outer_folds(5, seed)[0]
    train, test = np.asarray(fold.train), np.asarray(fold.test)
    console.say(f"{len(train)} pictures to train on, {len(test)} held out ({fold.name})")
    decoded = time.perf_counter() - started

    def told(epoch: int, numbers: dict[str, float]) -> None:
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write("\n" + json.dumps(numbers) + "\n")
        console.say(
            f"epoch {epoch + 1} of {estimator.epochs}: loss {numbers['loss']:.4f}, "
            f"{numbers['samples_per_second']:,.0f} images/s"
        )

    (folder / "metrics.jsonl").unlink(missing_ok=True)
    steps = estimator.epochs * max(1, len(train) // estimator.batch_size)
    clock = time.perf_counter()
    with console.progress("train", steps, unit="steps") as advance:
        estimator.fit(pixels[train], rows.labels[train], after_epoch=told, advance=advance)
    trained = time.perf_counter() - clock
    spread = np.zeros((len(test), len(rows.classes)))
    spread[:, estimator.classes_] = estimator.probabilities_of(pixels[test])
    FinetunedClassifier(estimator, [rows.classes[k] for k in estimator.classes_]).save(folder / "model")
    return _results(estimator, rows, fold, spread, folder, seed, decoded, trained)


def _results(
    estimator: FineTune,
    rows: Rows,
    fold: Any,
    spread: np.ndarray,
    folder: Path,
    seed: int,
    decoded: float,
    trained: float,
) -> dict[str, Any]:
    test = np.asarray(fold.test)
    arm = Arm(estimator.card_.name, "finetuned")
    item = Predictions(
        arm,
        np.full((len(rows.labels), spread.shape[1]), np.nan),
        np.full(len(rows.labels), -1),
        np.full(len(rows.labels), -1),
    )
    item.probabilities[test], item.predicted[test], item.fold[test] = spread, spread.argmax(axis=1), 0
    write_predictions(folder / "predictions.parquet", {arm.name: item}, rows)
    item.seconds = trained
    settings = {key: value for key, value in estimator.get_params().items() if key != "backbone"}
    results = {
        "title": f"{Path(rows.data['source']).name}: {arm.name}",
        "verb": "finetune",
        "classes": rows.classes,
        "primary_metric": "balanced_accuracy",
        "data": rows.data,
        "backbones": [
            estimator.card_.to_dict()
            | {"label": estimator.card_.label, "route": "trained", "cosine_median": None, "cosine_min": None}
        ],
        "protocol": replace(FINETUNE_V1, seed=seed).with_folds([fold]).to_dict() | {"settings": settings},
        "baselines": baselines(rows.labels, [fold], rows.classes),
        "arms": [arm_result(item, rows, seed)],
        "best": arm.name,
        "comparisons": [],
        "tie_groups": [[arm.name]],
        "controls": {"blank_centre": None, "source": None},
        "mistakes": confident_mistakes(rows.samples, rows.labels, item.predicted, item.probabilities, rows.classes),
        "map": None,
        "history": estimator.history_,
        "cost": cost(decoded, trained, float(np.median([h["samples_per_second"] for h in estimator.history_])), 0.0),
    }
    results["verdict"] = sentences(results)
    return results
