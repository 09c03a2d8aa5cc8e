"""A plausible run, made from synthetic arrays: three arms, three classes, an alarm, hostile names."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report.browsing import Opened

CLASSES = ["normal", "pneumonia", "COVID-19"]
ARMS = [("deep + svm-rbf", 2.4), ("deep + logistic", 2.2), ("reproductive + svm-linear", 1.1)]
HOSTILE = [
    "ward/<img src=x onerror=alert(1)>.png",
    'ward/it\'s "quoted" & more.png',
    "ward/" + "scan" * 40 + ".png",
    "קבצים/תמונת חזה 12.png",
    "أشعة/صورة الصدر 7.png",
]


def cell(value: float | None, n: int, spread: float = 0.04, interval: str = "bootstrap") -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": n, "interval": "none"}
    return {
        "value": value,
        "low": max(0.0, value - spread),
        "high": min(1.0, value + spread),
        "n": n,
        "interval": interval,
    }


def around(value: float, n: int, spread: float) -> dict[str, Any]:
    return {"value": value, "low": value - spread, "high": value + spread, "n": n, "interval": "bootstrap"}


def thumbnail(seed: int, side: int = 96) -> str:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    lungs = np.exp(-((abs(x) - 0.45) ** 2 / 0.06 + y**2 / 0.4))
    pixels = np.clip(200 - 150 * lungs + rng.normal(0, 8, (side, side)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def make_arm(name: str, skill: float, classes: list[str], n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    number = len(classes)
    labels = rng.integers(0, number, n)
    scores = rng.normal(size=(n, number))
    scores[np.arange(n), labels] += skill
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((number, number), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    per_class, roc = {}, {}
    for index, label in enumerate(classes):
        truth = labels == index
        order = np.argsort(-probabilities[:, index])
        tpr = np.concatenate([[0], np.cumsum(truth[order]) / max(1, truth.sum())])
        fpr = np.concatenate([[0], np.cumsum(~truth[order]) / max(1, (~truth).sum())])
        keep = np.unique(np.linspace(0, n, min(n + 1, 200)).astype(int))
        roc[label] = {"fpr": fpr[keep].tolist(), "tpr": tpr[keep].tolist()}
        auroc = float(np.trapezoid(tpr, fpr))
        hits = int(confusion[index, index])
        own, named = int(truth.sum()), int(confusion[:, index].sum())
        sensitivity, precision = hits / max(1, own), hits / max(1, named)
        specificity = 1 - (named - hits) / max(1, n - own)
        per_class[label] = {
            "sensitivity": cell(sensitivity, own, 0.07),
            "specificity": cell(specificity, n - own, 0.03),
            "precision": cell(precision, named, 0.07),
            "f1": cell(2 * hits / max(1, own + named), n, 0.05),
            "auroc": cell(auroc, n, 0.02),
            "average_precision": cell(max(0.0, auroc - 0.03), n, 0.04),
            "n": own,
        }
    confidence = probabilities.max(1)
    bins = []
    for low in np.arange(0.3, 1.0, 0.1):
        inside = (confidence >= low) & (confidence < low + 0.1)
        right = float((predicted == labels)[inside].mean()) if inside.any() else None
        bins.append(
            {
                "low": float(low),
                "high": float(low + 0.1),
                "confidence": float(confidence[inside].mean()) if inside.any() else None,
                "accuracy": cell(right, int(inside.sum()), 0.1),
                "n": int(inside.sum()),
            }
        )
    accuracy = float((predicted == labels).mean())
    balanced = float(np.mean([row["sensitivity"]["value"] for row in per_class.values()]))
    return {
        "name": name,
        "features": name.split(" + ")[0],
        "head": name.split(" + ")[-1],
        "chosen": {f"fold {fold} of 2": {"C": 10.0, "gamma": 0.00125} for fold in (1, 2)},
        "seconds": 3.2 + seed,
        "metrics": {
            "accuracy": cell(accuracy, n),
            "balanced_accuracy": cell(balanced, n),
            "macro_f1": cell(accuracy - 0.01, n),
            "macro_auroc": cell(float(np.mean([row["auroc"]["value"] for row in per_class.values()])), n, 0.015),
            "macro_average_precision": cell(accuracy - 0.02, n),
            "log_loss": around(float(-np.log(probabilities[np.arange(n), labels]).mean()), n, 0.05),
            "brier": cell(float(((probabilities - np.eye(number)[labels]) ** 2).sum(1).mean()), n, 0.03),
            "calibration_error": cell(0.041, n, 0.015),
        },
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "roc": roc,
        "calibration": bins,
    }


def make_results(
    classes: list[str] | None = None,
    arms: list[tuple[str, float]] | None = None,
    mistakes: int = 30,
    points: int = 420,
    n: int = 360,
) -> dict[str, Any]:
    classes = classes or CLASSES
    made = [make_arm(name, skill, classes, n, seed) for seed, (name, skill) in enumerate(arms or ARMS)]
    names = [arm["name"] for arm in made]
    best = max(made, key=lambda arm: arm["metrics"]["balanced_accuracy"]["value"])
    number = len(classes)
    rng = np.random.default_rng(7)
    labels = rng.integers(0, number, points)
    centres = rng.normal(scale=5, size=(number, 2))
    spots = centres[labels] + rng.normal(scale=2, size=(points, 2))
    sizes = {label: 200 + 37 * index for index, label in enumerate(classes)}
    value = best["metrics"]["balanced_accuracy"]["value"]
    return {
        "title": "Chest films: normal, pneumonia or COVID-19",
        "verb": "fit",
        "classes": classes,
        "primary_metric": "balanced_accuracy",
        "data": {
            "source": "films/train.csv",
            "n": sum(sizes.values()) + 3,
            "n_used": sum(sizes.values()),
            "fingerprint": "9f2c" * 16,
            "class_counts": sizes,
            "splits": {"train": {c: s - 40 for c, s in sizes.items()}, "test": dict.fromkeys(classes, 40)},
            "groups": 231,
            "unlabelled": 2,
            "bad_files": [
                {"path": HOSTILE[0], "error": "the file is cut: 1,204 of 88,310 bytes"},
                {"path": HOSTILE[2], "error": "not an image"},
            ],
            "duplicates": [
                {"paths": [HOSTILE[3], "ward/17.png"], "splits": ["train", "test"], "labels": ["normal", "pneumonia"]},
                {"paths": ["ward/20.png", "ward/21.png"], "splits": ["train"], "labels": ["normal"]},
            ],
            "notes": ["2 rows have no label and were left out.", "Column 'patient' was read as the group."],
        },
        "backbones": [
            {
                "name": "resnet50.a1_in1k",
                "architecture": "resnet50",
                "weights": "hub",
                "weights_hash": "ab12" * 16,
                "parameters": 23_508_032,
                "width": 2048,
                "input_size": [224, 224],
                "mean": [0.485] * 3,
                "std": [0.229] * 3,
                "interpolation": "bicubic",
                "crop_pct": 0.95,
                "licence": "Apache-2.0",
                "note": "",
                "route": "bf16",
                "cosine_median": 0.9991,
                "cosine_min": 0.9969,
            },
            {
                "name": "test_resnet.random",
                "architecture": "test_resnet",
                "weights": "random",
                "weights_hash": "cd34" * 16,
                "parameters": 468_560,
                "width": 384,
                "input_size": [160, 160],
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
                "interpolation": "bilinear",
                "crop_pct": 0.95,
                "licence": "",
                "note": "seed 0",
                "route": "fp32",
                "cosine_median": None,
                "cosine_min": None,
            },
        ],
        "protocol": {
            "name": "heads",
            "version": 1,
            "feature_point": "pooled",
            "standardise": "inside the training rows",
            "inner_folds": 3,
            "bootstrap": {"replicates": 2000, "unit": "group", "seed": 0},
            "grid": [2, 2],
            "folds": [{"name": "fold 1", "train": 288, "test": 72}, {"name": "fold 2", "train": 288, "test": 72}],
        },
        "baselines": {"chance": 1 / number, "majority": 0.412, "majority_class": classes[-1]},
        "arms": made,
        "best": best["name"],
        "selected": cell(value - 0.006, n) | {"arms": len(made), "chosen": {names[0]: 1.0}},
        "comparisons": [
            {
                "a": names[i],
                "b": names[j],
                "metric": "balanced_accuracy",
                "difference": 0.021 * (j - i),
                "low": 0.021 * (j - i) - 0.025,
                "high": 0.021 * (j - i) + 0.025,
                "told_apart": j - i > 1,
            }
            for i in range(len(names))
            for j in range(i + 1, len(names))
        ],
        "tie_groups": [names[:2], names[2:]] if len(names) > 2 else [names],
        "controls": {
            "blank_centre": {
                "area": 0.6,
                "arm": best["name"],
                "full": cell(value, n),
                "blanked": cell(value - 0.09, n),
                "chance": 1 / number,
                "retained": (value - 0.09 - 1 / number) / (value - 1 / number),
                "level": "alarm",
                "sentence": f"With the middle 60 % of every picture painted grey, {best['name']} still reaches "
                f"{value - 0.09:.3f} (chance {1 / number:.3f}): most of what it uses "
                "lies outside the middle, where the finding should be.",
            },
            "source": {
                "column": "source",
                "kind": "classes",
                "score": cell(0.46, n),
                "chance": 0.44,
                "level": "fine",
                "sentence": "The hospital cannot be told from the features better than from the labels alone.",
            },
        },
        "mistakes": [
            {
                "path": HOSTILE[index] if index < len(HOSTILE) else f"ward/patient-{index:03d}/film.png",
                "truth": classes[index % number],
                "predicted": classes[(index + 1) % number],
                "confidence": 0.99 - 0.4 * index / max(1, mistakes),
                "thumbnail": thumbnail(index),
            }
            for index in range(mistakes)
        ],
        "map": {
            "x": spots[:, 0].tolist(),
            "y": spots[:, 1].tolist(),
            "label": labels.tolist(),
            "explained": [0.31, 0.12],
            "method": "PCA of the features",
        },
        "cost": {
            "decode_and_features_seconds": 41.2,
            "heads_seconds": 9.7,
            "total_seconds": 52.4,
            "images_per_second": 18.6,
            "cached_share": 0.0,
            "peak_memory_mb": 1210.4,
            "cpu": "a processor with 2 cores",
            "threads": 2,
        },
        "verdict": [
            f"{best['name']} reaches a balanced accuracy of {value:.3f} [{value - 0.04:.3f}, {value + 0.04:.3f}] "
            f"on {n} pictures (chance {1 / number:.3f}).",
            "It was not told apart from deep + logistic.",
            "Do not trust these numbers yet: a control raised an alarm.",
        ],
    }


def make_run() -> dict[str, Any]:
    return {
        "format": 1,
        "verb": "fit",
        "command": "offshelf fit films/train.csv --group-column patient --note 'see https://example.org/a?b=1&c=<2>'",
        "arguments": {"source": "films/train.csv", "heads": ["svm-rbf", "logistic"], "grid": [2, 2], "seed": 0},
        "versions": {
            "python": "3.11.7",
            "offshelf": "0.1.0",
            "torch": "2.6.0",
            "timm": "1.0.20",
            "scikit-learn": "1.7.0",
        },
        "seed": 0,
        "status": "complete",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 52.4,
        "machine": {"cpu": "a processor with 2 cores", "cores": 2, "system": "Linux x86_64"},
        "data_fingerprint": "9f2c" * 16,
        "files": {},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture
def results_of() -> Callable[..., dict[str, Any]]:
    return make_results


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write results (and run.json) into a folder and name it."""

    def write(results: dict[str, Any], run: dict[str, Any] | None = None, name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        (folder / "run.json").write_text(json.dumps(run or make_run()), encoding="utf-8")
        return folder

    return write


def unavailable(reason: str) -> None:
    if os.environ.get("OFFSHELF_REQUIRE_BROWSER") == "1":
        pytest.fail(f"OFFSHELF_REQUIRE_BROWSER=1, but {reason}")
    print(f"browser tests skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        unavailable("playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        unavailable("no chromium was found")
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(
                executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except Error as error:
            unavailable(f"chromium does not start: {error}")
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    pages: list[Opened] = []

    def open_report(report: Path, **how: Any) -> Opened:
        pages.append(Opened(browser, report, **how))
        return pages[-1]

    yield open_report
    for one in pages:
        one.context.close()
        assert one.said == []
        assert one.asked and all(url.startswith(("file:", "data:")) for url in one.asked)
