"""A finished classifier on newly labelled pictures: asked, measured with intervals, and written down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys, summarise
from offshelf.engine.console import Console
from offshelf.engine.files import read_json, write_through
from offshelf.engine.runs import Run
from offshelf.errors import DataError, RunError, UsageError
from offshelf.evaluate.bootstrap import evaluate
from offshelf.evaluate.cost import cost
from offshelf.evaluate.drop_decomposition import drop_decomposition, drops
from offshelf.evaluate.evaluation_verdict import sentences
from offshelf.evaluate.labelled import Columns, Labelled, read_labelled
from offshelf.evaluate.multilabel_imagenet import N_MIN, MultiLabelReport
from offshelf.evaluate.protocols import EVALUATION_V1, LABEL_SETS_V1
from offshelf.evaluate.rows import joined
from offshelf.transfer.classifier import FeatureClassifier, FinetunedClassifier, load_classifier

VERBS = ("fit", "finetune")


@dataclass
class Judged:
    """Of the pictures that could be used: what is right, what the classifier said, and what stands together."""

    name: str
    ids: list[str]
    labels: np.ndarray  # (n,), -1 for none
    sets: np.ndarray | None  # (n, K)
    probabilities: np.ndarray  # (n, K)
    predicted: np.ndarray  # (n,)
    together: np.ndarray | None  # groups, joined where two rows are the same picture
    data: dict[str, Any]


@dataclass
class Evaluation:
    """Settings of an evaluation; `run` does it.

    finished : the run whose classifier is asked. sources : what to ask it. against : a second test set, in the same
    columns, for the split of the drop between the two.
    """

    finished: Run
    sources: Sequence[Any]
    name: str
    console: Console
    columns: Columns = field(default_factory=Columns)
    against: Sequence[Any] = ()
    split: str | None = None
    n_min: int = N_MIN
    strict: bool = False
    seed: int = 0

    def run(self, folder: Path) -> dict[str, Any]:
        """Do it; writes ``predictions.parquet`` and returns the results."""
        classifier = self._classifier()
        read = [(self.name, self._read(self.sources, classifier))]
        if self.against:
            read.append((named(self.against), self._read(self.against, classifier)))
        started = time.perf_counter()
        judged = [self._judge(name, one, classifier) for name, one in read]
        asked, clock = time.perf_counter() - started, time.perf_counter()
        write_answers(folder / "predictions.parquet", judged, classifier.classes)
        results = self._results(classifier, judged)
        pictures = sum(len(one.dataset) for _, one in read)
        results["cost"] = cost(asked, time.perf_counter() - clock, pictures / asked, 0.0)
        return results

    def _classifier(self) -> FeatureClassifier | FinetunedClassifier:
        verb = self.finished.record.get("verb")
        if verb not in VERBS:
            raise RunError(
                f"{self.finished.folder}: a run of `offshelf {verb}` has no classifier; expected one of "
                f"{' or '.join(VERBS)}."
            )
        classifier = load_classifier(self.finished.folder / "model")
        if classifier.multi_label:
            raise UsageError(
                f"{self.finished.folder}: this run answers every label by itself; expected one that names one class a "
                "picture. Its own report measures the labels; new pictures of it are for `offshelf predict`."
            )
        for note in classifier.notes():
            self.console.say(note)
        return classifier

    def _read(self, sources: Sequence[Any], classifier: FeatureClassifier | FinetunedClassifier) -> Labelled:
        self.console.say(f"Reading {named(sources)}")
        return read_labelled(sources, classifier.classes, self.columns, self.split)

    def _judge(self, name: str, read: Labelled, classifier: FeatureClassifier | FinetunedClassifier) -> Judged:
        """Ask the classifier, and leave out what cannot be read or says nothing about itself."""
        samples = as_samples(read.dataset)
        with self.console.progress(f"predict {name}", len(samples)) as advance:
            answers = classifier.predict(samples, advance)
        errors = answers.errors
        if self.strict and errors:
            raise DataError(
                f"{len(errors)} pictures cannot be read, and --strict was asked for: {next(iter(errors.values()))}."
            )
        for error in list(errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        good = np.array([row for row in np.flatnonzero(read.known) if row not in errors], dtype=int)
        unlabelled = int((~read.known).sum())
        if not len(good):
            first = f"; first unreadable: {next(iter(errors.values()))}" if errors else ""
            raise DataError(
                f"{name}: none of {len(samples)} pictures can be used ({unlabelled} without a label{first})."
            )
        kept = read.dataset.select(good)
        keys = [key or b"" for key in content_keys(kept)[0]]
        groups = None if read.groups is None else read.groups[good]
        data = summarise(kept, keys).to_dict() | {
            "source": name,
            "n": len(samples),
            "n_used": len(good),
            "unlabelled": unlabelled,
            "splits": {},
            "groups": None if groups is None else len({group for group in groups if group is not None}),
            "bad_files": [{"path": error.path, "error": error.reason} for error in errors.values()],
        }
        if read.sets is not None and (read.labels >= 0).any():  # both were read, one after the other
            data["notes"] = [note for note in data["notes"] if not note.startswith("The column label was left out")]
        labels, sets = read.labels[good], None if read.sets is None else read.sets[good]
        counted = np.bincount(labels[labels >= 0], minlength=len(classifier.classes)) if sets is None else sets.sum(0)
        data["class_counts"] = {text: int(n) for text, n in zip(classifier.classes, counted)}
        return Judged(
            name,
            [samples.name(int(row)) for row in good],
            labels,
            sets,
            answers.probabilities[good],
            answers.predicted[good],
            joined(groups, keys),
            data,
        )

    def _results(self, classifier: FeatureClassifier | FinetunedClassifier, judged: list[Judged]) -> dict[str, Any]:
        """All but the cost."""
        first = judged[0]
        several = first.sets is not None
        protocol = replace(LABEL_SETS_V1 if several else EVALUATION_V1, seed=self.seed).to_dict()
        results: dict[str, Any] = {
            "title": f"{Path(first.name).name or first.name}: {self.finished.folder.name}",
            "verb": "evaluate",
            "classes": list(classifier.classes),
            "data": first.data,
            "evaluated": of_run(self.finished, classifier.arm),
            "protocol": protocol | {"grouped": first.data["groups"] is not None},
        }
        if several:
            results["protocol"]["n_min"] = self.n_min
            results |= self._label_sets(judged)
        else:
            results |= one_label(first, classifier.classes, self.seed)
        results["verdict"] = sentences(results)
        return results

    def _label_sets(self, judged: list[Judged]) -> dict[str, Any]:
        reports = [
            MultiLabelReport(
                one.probabilities,
                one.sets,
                one.labels if (one.labels >= 0).any() else None,
                one.together,
                n_min=self.n_min,
                seed=self.seed,
            )
            for one in judged
        ]
        found: dict[str, Any] = {"multilabel": reports[0].to_dict()}
        if len(reports) == 2:
            p, q = reports
            labelled = all(report.point.weights["top_1"].any() for report in reports)
            found["against"] = {
                "data": judged[1].data,
                "multilabel": q.to_dict(),
                "drops": drops(p, q),
                "decomposition": {
                    metric: drop_decomposition(p, q, metric)
                    for metric in ("top_1", "real", "variable_top_k")
                    if labelled or metric != "top_1"
                },
            }
        return found


def one_label(judged: Judged, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Metrics, per class, confusion and calibration of one label a picture, and what they must beat."""
    counts = np.bincount(judged.labels, minlength=len(classes))
    found = evaluate(
        judged.labels, judged.probabilities, classes, judged.together, predictions=judged.predicted, seed=seed
    )
    return found | {
        "primary_metric": "balanced_accuracy",
        "baselines": {
            "chance": 1 / np.count_nonzero(counts),
            "majority": float(counts.max() / counts.sum()),
            "majority_class": str(classes[int(counts.argmax())]),
        },
    }


def of_run(finished: Run, arm: str) -> dict[str, Any]:
    """What is told about the run whose classifier was asked, with its own score."""
    results = read_json(finished.folder / "results.json")
    measured = next((one for one in results["arms"] if one["name"] == results["best"]), None)
    return {
        "run": str(finished.folder),
        "verb": finished.record["verb"],
        "arm": results["best"] if arm == "finetuned" else arm,
        "source": results["data"]["source"],
        "fingerprint": finished.record.get("data_fingerprint"),
        "balanced_accuracy": None if measured is None else measured["metrics"].get("balanced_accuracy"),
    }


def named(sources: Sequence[Any]) -> str:
    """What to call one or several sources."""
    return ", ".join(str(one) if isinstance(one, (str, Path)) else "dataset" for one in sources)


def write_answers(path: Path, judged: Sequence[Judged], classes: Sequence[str]) -> None:
    """One row a picture: data, id, label, valid labels, the answer, a probability for each class."""
    tables = []
    for one in judged:
        columns: dict[str, Any] = {
            "data": [one.name] * len(one.ids),
            "id": one.ids,
            "label": pa.array([classes[k] if k >= 0 else None for k in one.labels], pa.string()),
        }
        if one.sets is not None:
            columns["labels"] = [[classes[int(k)] for k in np.flatnonzero(row)] for row in one.sets]
        columns["predicted"] = [classes[k] for k in one.predicted]
        columns |= {f"p_{text}": one.probabilities[:, k] for k, text in enumerate(classes)}
        tables.append(pa.table(columns))
    write_through(path, lambda temporary: pq.write_table(pa.concat_tables(tables), temporary))
