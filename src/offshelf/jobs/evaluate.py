"""`offshelf evaluate`: a finished classifier and newly labelled pictures in, its numbers with intervals out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offshelf.engine.console import Console
from offshelf.engine.runs import Run
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.recording import RunResult, conclude, recorded


@dataclass
class Evaluated(RunResult):
    """A finished evaluation: its folder and its results."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the curves."""
        left_out = ("roc", "calibration", "per_class", "confusion")
        found = {key: value for key, value in self.results.items() if key not in left_out}
        return found | {"evaluation": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """The table of metrics, the verdict, and the paths."""
        from offshelf.evaluate.verdict import shown

        if "multilabel" in self.results:
            _show_label_sets(self.results, console)
        else:
            metrics, base = self.results["metrics"], self.results["baselines"]
            guess = {
                "balanced_accuracy": f"{base['chance']:.3f}",
                "accuracy": f"{base['majority']:.3f} (always {base['majority_class']})",
                "macro_auroc": "0.500",
            }
            rows = [
                [name.replace("_", " "), shown(metrics[name]), guess.get(name, "")]
                for name in ("balanced_accuracy", "accuracy", "macro_auroc", "macro_f1")
            ]
            console.table("", ["metric", "value", "without looking"], rows)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")


def evaluate(
    run: Path,
    data: list[str],
    /,
    *,
    multilabel: list[str] | None = None,
    label_separator: str | None = None,
    against: list[str] | None = None,
    n_min: int = 30,
    split: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Evaluated:
    """Measure a finished classifier on newly labelled pictures, also where several labels are valid.

    Parameters
    ----------
    run
        Folder that fit or finetune wrote.
    data
        Labelled pictures as for fit, one or more sources. Their classes are matched with those of the run by name.
    multilabel
        Column of a manifest that holds the set of valid labels of each picture, or one column of 1 and 0 a class. The
        label column, where there is one beside it, is then the one label that top-1 is measured against.
    label_separator
        What stands between names in the column of sets, such as "|" in "cat|dog".
    against
        A second test set with the same columns: the drop from data to it is split into other shares of pictures with
        one, two, ... valid labels, and lower accuracy at equal numbers.
    n_min
        Pictures that a subgroup of equally many valid labels must have to count in the mean over subgroups.
    split
        Take only this split of the data, where it has some.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    group_column
        Column whose values belong together, such as the patient; the intervals draw them whole.
    allow_outside
        Accept files outside the manifest's folder.
    strict
        Stop when any picture cannot be read.
    seed
        Of the bootstrap.
    out
        Folder of the evaluation; runs/evaluate-NAME by default.
    overwrite
        Replace a complete evaluation in that folder.
    name
        What to call the data in the report; its path by default.
    """
    console = common.console()
    sources, others = several(data), several(against)
    at_least("n-min", n_min, 1)
    if not sources:
        raise UsageError("data: nothing to evaluate on; expected a labelled source such as photos/.")
    from offshelf.evaluate.evaluation import Evaluation, named
    from offshelf.evaluate.labelled import Columns, check_columns

    columns = Columns(
        multilabel=tuple(several(multilabel)),
        label_separator=label_separator,
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        allow_outside=allow_outside,
    )
    check_columns(columns, against and named(others))
    started = time.perf_counter()
    finished = Run.open(run)
    source = name or named(sources)
    arguments = {
        "run": str(run),
        "data": [named([one]) for one in sources],
        "multilabel": list(columns.multilabel) or None,
        "label_separator": label_separator,
        "against": [named([one]) for one in others] or None,
        "n_min": n_min,
        "split": split,
        "path_column": path_column,
        "label_column": label_column,
        "group_column": group_column,
        "allow_outside": allow_outside,
        "strict": strict,
        "seed": seed,
        "name": name,
    }
    with recorded("evaluate", source, arguments, seed, out, overwrite) as record:
        results = Evaluation(
            finished,
            sources,
            source,
            console,
            columns=columns,
            against=others,
            split=split,
            n_min=n_min,
            strict=strict,
            seed=seed,
        ).run(record.folder)
        conclude(record, results, started)
    unread = [data["bad_files"] for data in (results["data"], results.get("against", {}).get("data")) if data]
    return Evaluated(record.folder, results, exit_code=3 if any(unread) else 0)


def several(given: Any) -> list[Any]:
    """What was given as a list; one thing, from Python, is a list of one."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _show_label_sets(results: dict[str, Any], console: Console) -> None:
    """A row a metric, then a row a subgroup; beside them the second set where there is one."""
    from offshelf.evaluate.label_sets import PICTURE_METRICS
    from offshelf.evaluate.verdict import shown

    told = [results["multilabel"]] + ([results["against"]["multilabel"]] if "against" in results else [])
    cells = [{(row["metric"], row["k"]): row for row in one["rows"]} for one in told]
    names = [results["data"]["source"], *([results["against"]["data"]["source"]] if "against" in results else [])]
    over_all = [key for key in cells[0] if key[1] is None]
    rows = [[metric.replace("_", " "), *[shown(one[metric, k]) for one in cells]] for metric, k in over_all]
    console.table("", ["metric", *names], rows)
    for one, name in zip(told, names):
        found = {(row["metric"], row["k"]): row for row in one["rows"]}
        header = ["valid labels", "pictures", *[metric.replace("_", " ") for metric, _ in PICTURE_METRICS]]
        rows = [
            [k, f"{size:,}", *[shown(found[metric, int(k)]) for metric, _ in PICTURE_METRICS]]
            for k, size in one["label_counts"].items()
        ]
        console.table(name, header, rows)
