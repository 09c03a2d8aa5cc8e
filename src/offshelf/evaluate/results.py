"""What a study found, as ``results.json`` holds it and the report shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offshelf.evaluate.baselines import baselines
from offshelf.evaluate.bootstrap import evaluate
from offshelf.evaluate.controls import blank_centre_control, source_probe
from offshelf.evaluate.cost import cost
from offshelf.evaluate.feature_map import feature_map
from offshelf.evaluate.mistakes import confident_mistakes
from offshelf.evaluate.predictions import Predictions
from offshelf.evaluate.protocols import HEADS_V1, RETRIEVAL_V1
from offshelf.evaluate.retrieval import leave_one_out_retrieval
from offshelf.evaluate.rows import Rows
from offshelf.evaluate.selection import selected_score
from offshelf.evaluate.study import BLANK_AREA, Findings, Material, Study
from offshelf.evaluate.verdict import sentences
from offshelf.transfer.similar import whitening_for


def study_results(study: Study, material: Material, findings: Findings) -> dict[str, Any]:
    """Everything the report of `fit` shows; ``cost.total_seconds`` is filled in by the job."""
    rows, extraction = material.rows, material.extraction
    best = findings.arms[findings.best]
    tested = best.tested
    arms = [arm_result(item, rows, study.seed) for item in findings.arms.values()]
    levels = baselines(rows.labels, material.folds, rows.classes)
    pooled = material.features.pool(material.values)
    predicted = {name: item.predicted[tested] for name, item in findings.arms.items()}
    name = Path(study.source).name or study.source
    results = {
        "title": f"{name}: {len(rows.classes)} classes, {len(rows.labels)} pictures",
        "verb": "fit",
        "classes": rows.classes,
        "primary_metric": "balanced_accuracy",
        "data": rows.data,
        "backbones": [
            card.to_dict() | {"label": card.label} | route
            for card, route in zip(material.features.cards_, extraction.routes)
        ],
        "protocol": _protocol(study, material),
        "baselines": levels,
        "arms": arms,
        "best": findings.best,
        "selected": selected_score(
            rows.labels[tested], predicted, len(rows.classes), groups=rows.clusters(tested), seed=study.seed
        ),
        "comparisons": findings.comparisons,
        "tie_groups": findings.tie_groups,
        "controls": {
            "blank_centre": _blank_centre(study, findings, rows, arms, levels["chance"]),
            "source": _source(study, rows, pooled),
        },
        "retrieval": _retrieval(study, material) if study.similar else None,
        "mistakes": confident_mistakes(rows.samples, rows.labels, best.predicted, best.probabilities, rows.classes),
        **findings.looks,
        "map": feature_map(pooled, rows.labels, seed=study.seed),
        "cost": cost(
            extraction.seconds,
            findings.seconds,
            len(study.dataset) / extraction.seconds if extraction.cached_share == 0 else None,
            extraction.cached_share,
        ),
    }
    results["verdict"] = sentences(results)
    return results


def arm_result(item: Predictions, rows: Rows, seed: int) -> dict[str, Any]:
    """One arm with all its metrics on the rows that it was tested on."""
    tested = item.tested
    measured = evaluate(
        rows.labels[tested],
        item.probabilities[tested],
        rows.classes,
        groups=rows.clusters(tested),
        predictions=item.predicted[tested],
        seed=seed,
    )
    about = {"name": item.arm.name, "features": item.arm.features, "head": item.arm.head}
    return about | {"chosen": item.chosen, "seconds": round(item.seconds, 2)} | measured


def _blank_centre(
    study: Study, findings: Findings, rows: Rows, arms: list[dict[str, Any]], chance: float
) -> dict[str, Any] | None:
    if findings.blanked is None:
        return None
    full = next(arm for arm in arms if arm["name"] == findings.best)["metrics"]["balanced_accuracy"]
    blanked = arm_result(findings.blanked, rows, study.seed)["metrics"]["balanced_accuracy"]
    return blank_centre_control(full, blanked, chance, area=BLANK_AREA, arm=findings.best)


def _source(study: Study, rows: Rows, pooled: np.ndarray) -> dict[str, Any] | None:
    """Whether the features give the source away; the group stands in where no source is known."""
    column = "source" if rows.sources is not None else "group"
    origin = rows.sources if rows.sources is not None else rows.groups
    if origin is None:
        return None
    return source_probe(pooled, origin, rows.labels, seed=study.seed, column=column, clusters=rows.together)


def _retrieval(study: Study, material: Material) -> dict[str, Any]:
    """Nearest pictures of the same class among the tested ones, whitened on the rows that train where splits exist."""
    rows, fold = material.rows, material.folds[0]
    vectors = material.values.mean(axis=1)
    given = len(material.folds) == 1
    learnt_on = vectors[fold.train] if given else vectors
    whitening = whitening_for(len(learnt_on)).fit(learnt_on)
    asked = np.asarray(fold.test) if given else np.arange(len(vectors))
    found = leave_one_out_retrieval(
        whitening.transform(vectors[asked]), rows.labels[asked], rows.clusters(asked), seed=study.seed
    )
    return {key: value for key, value in found.items() if key != "average_precision"} | {"protocol": RETRIEVAL_V1.label}


def _protocol(study: Study, material: Material) -> dict[str, Any]:
    return replace(HEADS_V1, seed=study.seed).with_folds(material.folds).to_dict() | {
        "grouped": material.rows.groups is not None,
        "view": {"grid": list(study.grid), "readout": study.readout, "copies": study.copies, "exact": study.exact},
    }
