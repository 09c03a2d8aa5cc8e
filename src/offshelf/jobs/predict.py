"""`offshelf predict`: a finished run and pictures in, a row a picture out."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offshelf.engine.console import Console
from offshelf.engine.files import write_atomic
from offshelf.engine.runs import Run
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from offshelf.data.samples import Samples
    from offshelf.evaluate.explanation_question import Question
    from offshelf.transfer.classifier import Answers
    from offshelf.transfer.similar import SimilarPictures

Format = Literal["csv", "json", "parquet"]


@dataclass
class Predicted:
    """A row a picture: path, label (labels, where it may have several), a probability per class, error."""

    table: pa.Table
    format: str
    out: Path | None
    exit_code: int = 0

    def summary(self) -> dict[str, Any]:
        """Rows as JSON-able records."""
        return {"predictions": self.table.to_pylist(), "out": str(self.out) if self.out else None}

    def show(self, console: Console) -> None:
        """Rows to standard output when no file was named, else where they went."""
        if self.out:
            console.say(f"{self.table.num_rows} rows: {self.out}")
        else:
            sys.stdout.write(encode(self.table, self.format).decode("utf-8"))


def predict(
    run: Path,
    inputs: list[str],
    /,
    *,
    format: Format | None = None,
    out: Path | None = None,
    similar: int = 0,
    explain: list[str] | None = None,
    strict: bool = False,
    common: CommonOptions = Common(),  # noqa: B008
) -> Predicted:
    """Label new pictures with a finished run.

    Parameters
    ----------
    run
        Folder that fit or finetune wrote.
    inputs
        Pictures, folders of pictures, or manifests.
    format
        csv, json or parquet; taken from the ending of --out, else csv.
    out
        File to write; standard output when none is named.
    similar
        Name so many of the most similar pictures of the run, where it was fitted with --similar.
    explain
        Write maps of what spoke for each answer into a folder beside --out (labels.csv: labels-maps/), by these methods
        of `offshelf explain`; without a name by the first that serves the network.
    strict
        Stop when any picture cannot be read.
    """
    chosen = _format(format, out)
    if explain is not None and out is None:
        raise UsageError(
            "--explain: the maps need a place; add --out FILE, such as --out labels.csv, and they go to labels-maps/."
        )
    at_least("similar", similar, 0)
    record = Run.open(run)
    import numpy as np
    import pyarrow as pa

    from offshelf.data.samples import as_samples
    from offshelf.data.sources import open_dataset
    from offshelf.errors import DataError
    from offshelf.evaluate.explanation_question import question
    from offshelf.transfer.classifier import load_classifier
    from offshelf.transfer.similar import SimilarPictures

    console = common.console()
    asked = None if explain is None else question(record, explain or None)
    classifier = load_classifier(record.folder / "model") if asked is None else asked.classifier
    index = SimilarPictures.load(record.folder / "model") if similar else None
    neighbours: list[dict[str, Any]] = []
    for note in classifier.notes():
        console.say(note)
    names: list[str] = []
    labels: list[str | list[str] | None] = []
    read: list[Samples] = []
    probabilities, errors = [], []
    for source in inputs:
        samples = as_samples(open_dataset(source))
        with console.progress(f"predict {source}", len(samples)) as advance:
            answers = classifier.predict(samples, advance)
        refused = answers.errors
        if refused and strict:
            raise DataError(
                f"{len(refused)} pictures cannot be read, and --strict was asked for: {next(iter(refused.values()))}."
            )
        if index is not None:
            neighbours += nearest(index, answers, similar)
        read.append(samples)
        names += [samples.path(row) for row in range(len(samples))]
        probabilities.append(answers.probabilities)
        labels += said(answers, classifier.classes)
        errors += [refused[row].reason if row in refused else None for row in range(len(samples))]
    joined = np.concatenate(probabilities) if probabilities else np.empty((0, len(classifier.classes)))
    columns: dict[str, Any] = {"path": names}
    if classifier.multi_label:
        columns["labels"] = pa.array(labels, pa.list_(pa.string()))
    else:
        columns["label"] = pa.array(labels, pa.string())
    for number, name in enumerate(classifier.classes):
        columns[f"p_{name}"] = pa.array(joined[:, number], pa.float64(), mask=np.isnan(joined[:, number]))
    for number in range(similar):
        columns[f"similar_{number + 1}"] = pa.array([row.get(f"name_{number}") for row in neighbours], pa.string())
        columns[f"distance_{number + 1}"] = pa.array([row.get(f"far_{number}") for row in neighbours], pa.float64())
    if asked is not None and out is not None:
        methods = asked.methods if explain else asked.methods[:1]
        answers_of = foremost(joined, classifier.classes) if classifier.multi_label else labels
        place = Path(out).with_name(f"{Path(out).stem}-maps")
        paths = maps_of_pictures(asked, methods, read, answers_of, place, console)
        columns |= {f"map_{method}": pa.array(files, pa.string()) for method, files in paths.items()}
    columns["error"] = pa.array(errors, pa.string())
    result = Predicted(pa.table(columns), chosen, Path(out) if out else None, exit_code=3 if any(errors) else 0)
    for name, error in [(name, error) for name, error in zip(names, errors) if error][:5]:
        console.warn(f"not read: {name}: {error}")
    if result.out:
        write_atomic(result.out, encode(result.table, chosen))
    return result


def said(answers: Answers, classes: list[str]) -> list[str | list[str] | None]:
    """The class of each picture, or the list of its classes; None where it could not be read."""
    if answers.predicted.ndim == 1:
        return [classes[k] if k >= 0 else None for k in answers.predicted]
    return [None if (row < 0).any() else [name for name, yes in zip(classes, row) if yes] for row in answers.predicted]


def foremost(probabilities: np.ndarray, classes: list[str]) -> list[str | None]:
    """The most probable class of each picture, where it may have several; None where it could not be read."""
    return [None if row[0] != row[0] else classes[int(row.argmax())] for row in probabilities]


def maps_of_pictures(
    asked: Question,
    methods: list[str],
    read: list[Samples],
    explained: Sequence[Any],
    folder: Path,
    console: Console,
) -> dict[str, list[str | None]]:
    """Write the maps of all pictures into ``folder``; of each method the file of each picture."""
    from offshelf.evaluate.explanation_rows import unique_stems
    from offshelf.evaluate.predicted_maps import write_maps

    stems = unique_stems([samples.name(row) for samples in read for row in range(len(samples))])
    files: dict[str, list[str | None]] = {method: [] for method in methods}
    with console.progress("explain", sum(name is not None for name in explained)) as advance:
        for samples in read:
            first = len(files[methods[0]])
            part = slice(first, first + len(samples))
            found = write_maps(asked.subject, methods, samples, explained[part], stems[part], folder, advance)
            files = {method: files[method] + found[method] for method in methods}
    return files


def nearest(index: SimilarPictures, answers: Answers, k: int) -> list[dict[str, Any]]:
    """Of each picture its ``k`` nearest indexed ones as ``name_0, far_0, ...``; nothing where it could not be read."""
    if answers.features is None:
        raise UsageError("--similar: a fine-tuned run has no index of pictures. Fit one with `offshelf fit --similar`.")
    good = [row for row in range(len(answers.predicted)) if row not in answers.errors]
    found: list[dict[str, Any]] = [{} for _ in answers.predicted]
    if good:
        names, distances = index.nearest(answers.features[good], k)
        for row, near, far in zip(good, names, distances):
            found[row] = {f"name_{i}": name for i, name in enumerate(near)}
            found[row] |= {f"far_{i}": float(distance) for i, distance in enumerate(far)}
    return found


def encode(table: pa.Table, format: str) -> bytes:
    """The table as CSV (lists joined by semicolons), JSON (a list of records) or Parquet."""
    if format == "json":
        return (json.dumps(table.to_pylist(), ensure_ascii=False, indent=1) + "\n").encode()
    sink = io.BytesIO()
    if format == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, sink)
    else:
        import csv

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([_cell(value) for value in row.values()] for row in table.to_pylist())
        sink.write(text.getvalue().encode())
    return sink.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join(value)
    return "" if value is None else value


def _format(format: str | None, out: Path | None) -> str:
    ending = Path(out).suffix.lstrip(".").lower() if out else ""
    if format is None:
        if out and ending not in ("csv", "json", "parquet"):
            raise UsageError(f"--out {out}: cannot tell the format from the ending; add --format csv, json or parquet.")
        return ending or "csv"
    if format == "parquet" and out is None:
        raise UsageError("--format parquet needs --out FILE; it is no text for standard output.")
    return format
