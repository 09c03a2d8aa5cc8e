"""`offshelf fit`: a folder of pictures in, honest classifiers and a report out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.jobs.common import Common, CommonOptions, Grid, at_least
from offshelf.jobs.recording import RunResult, conclude, recorded

HEADS = ("logistic", "svm-linear", "svm-rbf", "knn")
REPRODUCTIVE_HEADS = ("slp", "mlp", "svm-rbf")


@dataclass
class Fitted(RunResult):
    """A finished run: its folder, its results, and where the report is."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the pictures."""
        parts = (
            "title classes data backbones protocol baselines best selected tie_groups controls retrieval verdict cost"
        )
        found = {key: self.results[key] for key in parts.split() if key in self.results}
        found["arms"] = [
            {key: arm[key] for key in ("name", "metrics", "per_class", "confusion", "chosen", "seconds")}
            for arm in self.results["arms"]
        ]
        return found | {"run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """The table of arms, the verdict, and the paths."""
        from offshelf.evaluate.verdict import shown

        metrics = ("balanced_accuracy", "accuracy", "macro_auroc", "macro_f1")
        rows = [[arm["name"], *[shown(arm["metrics"][name]) for name in metrics]] for arm in self.results["arms"]]
        base = self.results["baselines"]
        always = f"{base['majority']:.3f} (always {base['majority_class']})"
        rows.append(["chance", f"{base['chance']:.3f}", always, "0.500", ""])
        console.table("", ["features + head", *[name.replace("_", " ") for name in metrics]], rows)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")


def fit(
    data: Any,
    /,
    *,
    backbones: list[str] | None = None,
    grid: Grid = (1, 1),
    heads: list[str] | None = None,
    reproductive: bool = False,
    readout: Literal["pooled", "logits"] = "pooled",
    copies: Literal[1, 2, 16] = 1,
    input_size: int | None = None,
    code_dim: int = 128,
    folds: int | None = None,
    control: Literal["blank-centre", "none"] = "blank-centre",
    similar: bool = False,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    exact: bool = False,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Fitted:
    """Train honest classifiers on frozen features of a folder of pictures, and report on them.

    Parameters
    ----------
    data
        A folder of class folders (with or without train/val/test above them), a CSV, TSV, Parquet or JSONL manifest,
        a folder of WebDataset tars, a hub name, or `digits`.
    backbones
        Networks to take features from, for example resnet50.a1_in1k densenet121.ra_in1k; ARCH.random for random
        weights, or a folder. Without it a choice is made and explained.
    grid
        Rows and columns of tiles, for example 2x2.
    heads
        Any of slp mlp svm-linear svm-rbf logistic knn ridge off-the-shelf.
    reproductive
        Compress the features with the autoencoder of the founding paper, and compare with the features themselves.
    readout
        Penultimate features, or the scores of the backbones' own classifiers.
    copies
        Jittered copies of each picture: none, its mirror, or the sixteen of the off-the-shelf paper.
    input_size
        Side in pixels that the backbones see, in place of their own; smaller is faster.
    code_dim
        Width of the reproductive code.
    folds
        Cross-validate in so many folds, also when the data brings its own splits.
    control
        Repeat the best arm with the centre of every picture blanked; a high score then shouts.
    similar
        Keep an index of the pictures, so that predict --similar can name the nearest ones.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    group_column
        Column that must not be split across folds, such as the patient.
    allow_outside
        Accept files outside the manifest's folder.
    exact
        Decode at full size and compute in fp32, whatever the processor offers.
    strict
        Stop when any picture cannot be read.
    seed
        Every random choice hangs on it.
    out
        Folder of the run; runs/fit-NAME by default.
    overwrite
        Replace a complete run in that folder.
    name
        What to call the data in the report; its path by default.
    """
    console = common.console()
    source = name or str(data if isinstance(data, (str, Path)) else "dataset")  # from Python, a Dataset will do
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console", "data")}
    at_least("code-dim", code_dim, 1)
    if folds is not None:
        at_least("folds", folds, 2)
    if input_size is not None:
        at_least("input-size", input_size, 32)
    # Heavy imports wait until there is work, so that help answers at once.
    from offshelf.data.sources import open_dataset
    from offshelf.evaluate.results import study_results
    from offshelf.evaluate.study import Study
    from offshelf.transfer.pipelines import check_heads

    names = check_heads(heads or (REPRODUCTIVE_HEADS if reproductive else HEADS))
    started = time.perf_counter()
    console.say(f"Reading {source}")
    dataset = open_dataset(
        data,
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        allow_outside=allow_outside,
    )
    chosen = choose_backbones(backbones, reproductive, console)
    with recorded("fit", source, arguments | {"backbones": chosen, "heads": names}, seed, out, overwrite) as run:
        study = Study(
            dataset,
            source=source,
            console=console,
            grid=grid,
            readout=readout,
            copies=copies,
            input_size=input_size,
            backbones=chosen,
            heads=names,
            reproductive=reproductive,
            code_dim=code_dim,
            folds=folds,
            control=control == "blank-centre",
            similar=similar,
            exact=exact,
            strict=strict,
            seed=seed,
        )
        material, findings = study.run(run.folder)
        results = study_results(study, material, findings)
        conclude(run, results, started)
    return Fitted(run.folder, results)


def choose_backbones(asked: list[str] | None, reproductive: bool, console: Console) -> list[str]:
    """The backbones asked for, or a choice that is said aloud with its reason."""
    from offshelf.backbones.choose import default_backbones
    from offshelf.backbones.names import resolve

    if asked:
        for name in asked:
            resolve(name)  # a wrong name is answered before any work is done
        return list(asked)
    names, reason = default_backbones(reproductive)
    console.say(f"Backbones: {', '.join(names)}\n  {reason}")
    return names
