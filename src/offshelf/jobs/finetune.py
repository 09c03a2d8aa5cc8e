"""`offshelf finetune`: all weights of a backbone, trained on labelled pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.engine.launch import Launch
from offshelf.engine.runs import unfinished
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.fit import Fitted, choose_backbones
from offshelf.jobs.recording import as_recorded, conclude, recorded

# Options of the verb that are settings of the estimator under the same name.
SETTINGS = (
    *("image_size", "store_size", "epochs", "batch_size", "learning_rate", "trunk_scale", "layer_decay", "warm_head"),
    *("weight_decay", "label_smoothing", "drop_path", "early_stopping", "validation_share", "precision"),
    *("shift", "flip", "rotation", "scale", "translation", "crop", "rand_augment", "mixup", "cutmix", "balanced"),
    "b_cos",
)


@dataclass
class Finetuned(Fitted):
    """A finished run of finetune."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the pictures."""
        more = {key: self.results[key] for key in ("multi_label", "label_efficiency") if key in self.results}
        return super().summary() | more

    def show(self, console: Console) -> None:
        """The curve where there is one, then what `fit` shows; with several labels, those one by one."""
        from offshelf.evaluate.verdict import shown

        curve = self.results.get("label_efficiency")
        if curve:
            names = list(curve["points"][0]["metrics"])
            rows = [
                [point["labels"], f"{point['n']:,}", *[shown(point["metrics"][name]) for name in names]]
                for point in curve["points"]
            ]
            header = ["labels", "pictures", *[name.replace("_", " ") for name in names]]
            console.table(f"Mean of {len(curve['seeds'])} seeds", header, rows)
        if "multi_label" not in self.results:
            super().show(console)
            return
        arm = self.results["arms"][0]
        names = ["auroc", "average_precision"]
        rows = [
            [name, f"{row['n']:,} of {row['known']:,}", *[shown(row[key]) for key in names]]
            for name, row in arm["per_class"].items()
        ]
        rows.append(["mean", "", *[shown(arm["metrics"][f"macro_{key}"]) for key in names]])
        console.table("", ["label", "pictures", "AUROC", "average precision"], rows)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")


def finetune(
    data: Any,
    /,
    *,
    backbone: str | None = None,
    epochs: int = 10,
    image_size: int = 64,
    store_size: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    trunk_scale: float = 0.1,
    layer_decay: float | None = None,
    warm_head: float = 0.0,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    drop_path: float = 0.0,
    shift: float = 0.125,
    flip: bool = False,
    rotation: float = 0.0,
    scale: float = 0.0,
    translation: float = 0.0,
    crop: float | None = None,
    rand_augment: str | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    balanced: bool = False,
    multi_label: bool = False,
    b_cos: float | None = None,
    ema: float | None = None,
    early_stopping: int | None = None,
    validation_share: float = 0.1,
    folds: int | None = None,
    labels: list[str] | None = None,
    seeds: int | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns: list[str] | None = None,
    label_separator: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Finetuned:
    """Train all weights of a backbone on labelled pictures.

    Parameters
    ----------
    data
        As for fit. Given splits are kept; without them one fifth of the pictures (of the groups) is held out.
    backbone
        Where to start: as for fit, one name; ARCH.random trains from scratch.
    epochs
        Passes over the training pictures.
    image_size
        Side in pixels of what the network sees.
    store_size
        Side at which pictures are kept in memory when they are smaller than image_size.
    batch_size
        Pictures a step.
    learning_rate
        Largest step of the head; a pre-trained trunk moves trunk_scale times as fast.
    trunk_scale
        Factor of the step of a pre-trained trunk.
    layer_decay
        Factor of the step from each layer to the one before it, such as 0.75; all layers alike by default.
    warm_head
        First share of the steps in which only the new head moves, such as 0.1.
    weight_decay
        Pull of the weights towards zero.
    label_smoothing
        Share of the target spread over all classes.
    drop_path
        Largest chance with which a residual path is left out in training.
    shift
        Largest random shift, as a share of the side.
    flip
        Mirror half the pictures; not where left and right have a meaning.
    rotation
        Largest random turn, in degrees.
    scale
        Largest random change of size, as a share.
    translation
        Largest random move along each axis, as a share of the side; black comes in from outside.
    crop
        Lowest share of the area of a random crop, such as 0.5; whole pictures by default.
    rand_augment
        RandAugment as timm writes it, such as rand-m6-mstd0.5-inc1.
    mixup
        Mix pairs of pictures; parameter of the beta distribution of their shares, such as 0.2.
    cutmix
        Put a piece of one picture into another; parameter of the beta distribution of its area, such as 1.
    balanced
        Show every class equally often.
    multi_label
        A picture may have several labels, or none; on by itself where the data says so.
    b_cos
        Make the backbone a B-cos network of this exponent, such as 2: its answers then explain themselves. No weight
        decay and no label smoothing then.
    ema
        Decay of a moving average of the weights, which then is the product, such as 0.999.
    early_stopping
        Stop after so many epochs without a lower loss on a part of the training pictures; the best epoch is kept.
    validation_share
        How large that part is; groups whole.
    folds
        Cross-validate in so many folds, also when the data brings its own splits.
    labels
        How many training pictures count as labelled: 10% or 50. Several numbers (1% 5% 10% 100%) give a curve. Small
        numbers pass more often over their pictures: 200 steps at least, or as many as all would get.
    seeds
        Draw the labelled pictures, and train, so many times for each point of the curve; 3 by default.
    precision
        auto: bf16 where the processor computes in it, else fp32.
    accelerator
        auto takes a GPU where there is one.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    label_columns
        Several columns of 1, 0 and blank (unknown): several labels a picture.
    label_separator
        What stands between names where the label column holds several, such as "|" in "Edema|Effusion".
    group_column
        Column that must not be split across folds, such as the patient.
    allow_outside
        Accept files outside the manifest's folder.
    strict
        Stop when any picture cannot be read.
    seed
        Every random choice hangs on it.
    out
        Folder of the run; runs/finetune-NAME by default.
    overwrite
        Replace a complete run in that folder.
    name
        What to call the data in the report; its path by default.
    """
    console = common.console()
    source = name or str(data if isinstance(data, (str, Path)) else "dataset")  # from Python, a Dataset will do
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console", "data", "source")}
    _check(arguments)
    from offshelf.evaluate.label_subsets import parse_budgets

    budgets = parse_budgets(labels or [])
    if seeds is not None and len(budgets) < 2:
        raise UsageError(f"--seeds {seeds}: expected several numbers of labels beside it, such as --labels 10% 100%.")
    from offshelf.data.sources import open_dataset
    from offshelf.evaluate.finetuning import Finetuning
    from offshelf.transfer.finetune import FineTune
    from offshelf.transfer.finetune_settings import check_settings

    started = time.perf_counter()
    console.say(f"Reading {source}")
    dataset = open_dataset(
        data,
        path_column=path_column,
        label_column=label_columns or label_column,
        label_separator=label_separator,
        group_column=group_column,
        allow_outside=allow_outside,
    )
    several = "labels" in dataset.column_names
    if multi_label and not several:
        raise UsageError(
            f"--multi-label: {source} has one class a picture; expected several columns of 0 and 1 (--label-columns A "
            "B C) or one column of names with a sign between them (--label-separator)."
        )
    chosen = choose_backbones([backbone] if backbone else None, False, console)[0]
    settings = {key: arguments[key] for key in SETTINGS}
    estimator = FineTune(backbone=chosen, average=ema, multi_label=several, random_state=seed, **settings)
    check_settings(estimator.get_params())
    found = {"backbone": chosen, "multi_label": several}
    place = out if out is not None or overwrite else unfinished("finetune", source, as_recorded(arguments | found))
    with recorded("finetune", source, arguments | found, seed, place, overwrite) as run:
        results = Finetuning(
            estimator,
            dataset,
            source,
            console,
            folds=folds,
            labels=budgets,
            seeds=3 if seeds is None else seeds,
            strict=strict,
            seed=seed,
            launch=Launch(accelerator),
        ).run(run.folder)
        conclude(run, results, started)
    return Finetuned(run.folder, results)


def _check(arguments: dict[str, Any]) -> None:
    for name, least in (("epochs", 1), ("image_size", 1), ("batch_size", 1), ("folds", 2), ("seeds", 1)):
        if arguments[name] is not None:
            at_least(name.replace("_", "-"), arguments[name], least)
    if arguments["early_stopping"] is not None:
        at_least("early-stopping", arguments["early_stopping"], 1)
    if arguments["ema"] is not None and not 0 < arguments["ema"] < 1:
        raise UsageError(f"--ema {arguments['ema']}: expected a decay between 0 and 1, such as 0.999.")
    if arguments["label_columns"] is not None and arguments["label_column"] is not None:
        raise UsageError(
            "--label-column and --label-columns: expected one of them; the first names a column of classes, the second "
            "several columns of 0 and 1."
        )
    if arguments["label_columns"] is not None and len(arguments["label_columns"]) == 1:
        raise UsageError(
            f"--label-columns {arguments['label_columns'][0]}: expected two or more; one alone is a --label-column."
        )
