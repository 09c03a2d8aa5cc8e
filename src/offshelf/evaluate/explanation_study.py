"""Pictures explained by a finished run: maps as files, a row a map, and on request how far the maps can be trusted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from offshelf.data.columns import class_names
from offshelf.data.samples import Samples, as_samples
from offshelf.data.sources import open_dataset
from offshelf.data.summary import content_keys, summarise
from offshelf.engine.console import Console
from offshelf.engine.files import write_atomic
from offshelf.errors import DataError
from offshelf.evaluate.cost import cost
from offshelf.evaluate.evaluation import of_run
from offshelf.evaluate.explanation_question import Question
from offshelf.evaluate.explanation_rows import AREAS, spread, summary, unique_stems, write_rows
from offshelf.evaluate.explanation_scoring import grid_scored, scored, sentences
from offshelf.interpret.explanations import EXPLANATIONS
from offshelf.interpret.map_pictures import drawn, mapped, png, views
from offshelf.interpret.saliency import data_uri
from offshelf.transfer.classifier import FeatureClassifier

WINDOW = 16  # pictures explained at once
SHOWN, SCORED, PLAYED = 24, 24, 200  # pictures in the report, behind deletion and shuffling, and in the grid game
SIDE = 176  # pixels of a picture in the report
SUM_TOLERANCE = 1e-3  # of a logit, between it and the sum of its contributions


@dataclass
class Pictures:
    """What to explain: all sources as one, and the class number of each picture by its name, -1 where there is none."""

    dataset: Dataset
    truth: np.ndarray


@dataclass
class Answered:
    """Readable pictures and what the run says of them: names, paths, pixels, classes by number, clusters."""

    ids: list[str]
    pixels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    explained: np.ndarray
    truth: np.ndarray  # -1 where it is not known
    logits: np.ndarray
    clusters: np.ndarray
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExplanationStudy:
    """Settings of a study; `run` does it."""

    asked: Question
    pictures: Pictures
    name: str
    console: Console
    scores: bool = False
    seed: int = 0

    def run(self, folder: Path) -> dict[str, Any]:
        """Do it; writes ``maps/`` and ``maps.parquet`` and returns the results."""
        started = time.perf_counter()
        shutil.rmtree(folder / "maps", ignore_errors=True)  # of a call that was stopped
        answered = self._answer()
        read, clock = time.perf_counter() - started, time.perf_counter()
        shown, table, maps = self._explain(answered, folder)
        results = self._results(answered, shown)
        if self.scores:
            results["scores"] = self._score(answered, maps, table)
        write_rows(folder / "maps.parquet", table)
        results["cost"] = cost(read, time.perf_counter() - clock, None, 0.0)
        results["verdict"] = _verdict(results)
        return results

    # -- the pictures and what is said of them -------------------------------------------------------------------------

    def _answer(self) -> Answered:
        subject = self.asked.subject
        dataset, truth = self.pictures.dataset, self.pictures.truth
        samples = as_samples(dataset)
        with self.console.progress("read", len(samples)) as advance:
            pixels, errors = subject.pixels(samples, advance)
        for error in list(errors.values())[:5]:
            self.console.warn(f"not read: {error}")
        good = np.array([row for row in range(len(samples)) if row not in errors], dtype=int)
        if not len(good):
            raise DataError(f"{self.name}: none of {len(samples)} pictures can be read; first {errors[0]}.")
        pixels = pixels if len(good) == len(pixels) else pixels[good]
        logits = subject.logits(pixels)
        probabilities = subject.probability(logits).numpy()
        predicted = probabilities.argmax(axis=1)
        kept = dataset.select(good)
        keys = content_keys(kept)[0]
        data = summarise(kept, keys).to_dict() | {
            "source": self.name,
            "n": len(samples),
            "n_used": len(good),
            "bad_files": [{"path": error.path, "error": error.reason} for error in errors.values()],
        }
        if not subject.multi_label:
            data["notes"] = data["notes"] + self._differing(samples.take(good), predicted)
        return Answered(
            [samples.name(int(row)) for row in good],
            pixels,
            probabilities,
            predicted,
            predicted if self.asked.label is None else np.full(len(good), self.asked.label),
            truth[good],
            logits.numpy(),
            np.unique([key or b"" for key in keys], return_inverse=True)[1],
            data,
        )

    def _differing(self, samples: Samples, predicted: np.ndarray) -> list[str]:
        """Frozen features are read in one step here and in two by `predict`: how often the answers differ."""
        classifier = self.asked.classifier
        if not isinstance(classifier, FeatureClassifier):
            return []
        own = classifier.predict(samples).predicted
        n = int((own != np.asarray(classifier.pipeline.classes_)[predicted]).sum())
        return [f"{n} of {len(own)} answers differ from those of predict, which lie close to a border."] if n else []

    # -- the maps ------------------------------------------------------------------------------------------------------

    def _explain(
        self, answered: Answered, folder: Path
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, torch.Tensor]]:
        """Pictures for the report, a row a map, and the maps of the pictures that are scored."""
        subject, n = self.asked.subject, len(answered.ids)
        stems, scored_rows = unique_stems(answered.ids), set(spread(n, SCORED).tolist())
        shown_rows = set(spread(n, SHOWN).tolist())
        shown: list[dict[str, Any]] = []
        table: list[dict[str, Any]] = []
        kept: dict[str, list[torch.Tensor]] = {name: [] for name in self.asked.methods}
        with self.console.progress("explain", n) as advance:
            for first in range(0, n, WINDOW):
                rows = np.arange(first, min(first + WINDOW, n))
                x = subject.inputs(answered.pixels[rows])
                classes = torch.from_numpy(answered.explained[rows])
                found = {name: mapped(name, subject.model, x, classes) for name in self.asked.methods}
                for place, row in enumerate(rows.tolist()):
                    told = self._told(answered, row)
                    drawings = []
                    for name, one in found.items():
                        pictures = drawn(name, answered.pixels[row], one, place)
                        files = {view: f"maps/{stems[row]}-{view}.png" for view in pictures}
                        for view, picture in pictures.items():
                            write_atomic(folder / files[view], png(picture))
                        numbers = summary(one, place)
                        table.append(told | {"method": name, "file": files[name]} | numbers)
                        if row in shown_rows:
                            images = {view: data_uri(picture, SIDE) for view, picture in pictures.items()}
                            drawings.append({"method": name, "images": images, **numbers})
                        if row in scored_rows:
                            kept[name].append(one.maps[place])
                    if row in shown_rows:
                        original = data_uri(answered.pixels[row], SIDE)
                        shown.append(told | {"picture": original, "maps": drawings})
                advance(len(rows))
        return shown, table, {name: torch.stack(maps) for name, maps in kept.items()}

    def _told(self, answered: Answered, row: int) -> dict[str, Any]:
        classes, k, best = self.asked.subject.classes, int(answered.explained[row]), int(answered.predicted[row])
        return {
            "path": answered.ids[row],
            "truth": classes[answered.truth[row]] if answered.truth[row] >= 0 else None,
            "predicted": classes[best],
            "confidence": float(answered.probabilities[row, best]),
            "explained": classes[k],
            "probability": float(answered.probabilities[row, k]),
            "logit": float(answered.logits[row, k]),
        }

    # -- the numbers ---------------------------------------------------------------------------------------------------

    def _score(self, answered: Answered, maps: dict[str, torch.Tensor], table: list[dict[str, Any]]) -> dict[str, Any]:
        subject, rows = self.asked.subject, spread(len(answered.ids), SCORED)
        with self.console.progress("score", 2 * len(maps), unit="methods") as advance:
            found, areas = scored(
                subject,
                subject.inputs(answered.pixels[rows]),
                maps,
                torch.from_numpy(answered.explained[rows]),
                answered.clusters[rows],
                self.seed,
                advance,
            )
            played = spread(len(answered.ids), PLAYED)
            given = np.where(answered.truth >= 0, answered.truth, answered.predicted)
            grid = grid_scored(
                subject,
                answered.pixels[played],
                answered.probabilities[played],
                given[played],
                list(maps),
                self.seed,
                advance,
            )
        for method, share in grid.pop("cells").items():
            found["methods"][method]["grid"] = share
        by_row = {int(row): place for place, row in enumerate(rows)}
        for number, line in enumerate(table):
            place = by_row.get(number // len(maps))
            own = areas[line["method"]]
            line |= {key: None if place is None else float(own[key][place]) for key in AREAS}
        return found | {"grid": grid}

    def _results(self, answered: Answered, shown: list[dict[str, Any]]) -> dict[str, Any]:
        """All but the scores, the cost and the sentences."""
        asked = self.asked
        source = self.name if ", " in self.name else Path(self.name).name or self.name  # several are named in full
        return {
            "title": f"{source}: {asked.finished.folder.name} explained",
            "verb": "explain",
            "classes": asked.subject.classes,
            "explained": of_run(asked.finished, asked.classifier.arm),
            "multi_label": asked.subject.multi_label,
            "label": None if asked.label is None else asked.subject.classes[asked.label],
            "methods": [
                {
                    "name": name,
                    "views": views(name),
                    **{key: getattr(EXPLANATIONS[name], key) for key in ("shows", "caution", "serves", "signed")},
                }
                for name in asked.methods
            ],
            "refused": {name: why for name, why in asked.refused.items() if name not in asked.methods},
            "data": answered.data,
            "pictures": shown,
            "maps": len(answered.ids) * len(asked.methods),
            "sums": _sums(shown),
            "scores": None,
        }


def open_pictures(sources: Sequence[Any], classes: Sequence[str]) -> Pictures:
    """Open one or more sources as one, with or without labels; classes are matched by name."""
    parts, truth = [], []
    for source in sources:
        dataset = open_dataset(source)
        plain = dataset.select_columns(["image", "id"])
        if len(sources) > 1 and isinstance(source, (str, Path)) and Path(source).is_dir():  # two may hold a 000.jpg
            names = [f"{Path(source).name}/{name}" for name in plain["id"][:]]
            plain = plain.remove_columns("id").add_column("id", names)
        parts.append(plain)
        numbers = np.full(len(dataset), -1)
        if "label" in dataset.column_names:
            known = {name: k for k, name in enumerate(classes)}
            own = [known.get(name, -1) for name in class_names(dataset) or []]
            numbers = np.array([-1 if label is None else own[label] for label in dataset["label"][:]], dtype=int)
        truth.append(numbers)
    return Pictures(parts[0] if len(parts) == 1 else concatenate_datasets(parts), np.concatenate(truth))


def _sums(shown: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How closely contributions and offset sum to the logit, over the pictures shown; None without contributions."""
    gaps = [
        abs(one["logit"] - found["sum"] - found["offset"])
        for one in shown
        for found in one["maps"]
        if found["offset"] is not None
    ]
    return {"largest_gap": max(gaps), "n": len(gaps), "holds": max(gaps) < SUM_TOLERANCE} if gaps else None


def _verdict(results: dict[str, Any]) -> list[str]:
    data, about = results["data"], results["explained"]
    what = f"the class {results['label']}" if results["label"] else "the class that the run names in each"
    n = data["n_used"]
    told = [
        f"{n} picture{'' if n == 1 else 's'} of {data['source']} explained for {what}, by "
        f"{', '.join(method['name'] for method in results['methods'])} ({about['arm']})."
    ]
    sums = results["sums"]
    if sums:
        told.append(
            f"Contributions and the constant sum to the logit of the class: the largest gap over {sums['n']} pictures "
            f"is {sums['largest_gap']:.1e}."
            if sums["holds"]
            else f"Contributions do not sum to the logit: the largest gap is {sums['largest_gap']:.3g}, so this "
            "network has parts that are not B-cos, and its maps are not exact."
        )
    if data["bad_files"]:
        told.append(f"{len(data['bad_files'])} of {data['n']} files could not be read.")
    return told + (sentences(results["scores"]) if results["scores"] else [])
