"""`offshelf design`: how convolution filters should begin, and their size, shape and number, measured on your data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.recording import RunResult, conclude, recorded

VALUES = {"initialisation": "rules", "size": "sizes", "shape": "shapes", "number": "numbers"}
"""Study -> the option that names its arms."""


@dataclass
class Designed(RunResult):
    """A finished study: its folder, whose network later verbs take as a backbone, and its results."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the drawings."""
        arms = [
            arm | {"layers": [{k: v for k, v in one.items() if k != "pictures"} for one in arm["layers"]]}
            for arm in self.results["arms"]
        ]
        return self.results | {"arms": arms, "run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """The table, the verdict, the paths, and what to do with the network."""
        from offshelf.evaluate.verdict import shown

        rows = []
        for arm in sorted(self.results["arms"], key=lambda one: -one["last"]["value"]):
            gain = arm["difference"]
            rows.append(
                [
                    arm["name"],
                    shown(arm["last"]),
                    "baseline" if gain is None else _signed(gain),
                    shown(arm["first"]),
                    shown(arm["area"]),
                    f"{arm['parameters']:,}",
                    f"{arm['multiply_adds']:,}",
                ]
            )
        header = ["arm", "balanced accuracy", "minus baseline", "after one epoch", "area under the curve"]
        console.table("", [*header, "parameters", "multiply-adds"], rows)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")
        print(f"next:   offshelf finetune DATA --backbone {self.folder}")


def design(
    data: Any,
    /,
    *,
    study: Literal["initialisation", "size", "shape", "number"],
    rules: list[str] | None = None,
    sizes: list[int] | None = None,
    shapes: list[str] | None = None,
    numbers: list[int] | None = None,
    size: int = 5,
    backbone: str = "plain_cnn.random",
    layers: list[str] | None = None,
    freeze: bool = False,
    freeze_epochs: int | None = None,
    labels: str = "100%",
    epochs: int = 10,
    seeds: int = 3,
    image_size: int = 32,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    flip: bool = False,
    norm: Literal["batch", "none"] = "batch",
    match: Literal["parameters", "multiply-adds"] = "parameters",
    tolerance: float = 0.02,
    patches: int = 50_000,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Designed:
    """Measure how to begin, size, shape and count convolution filters for your pictures, at equal cost.

    Parameters
    ----------
    data
        As for fit; labels are needed. Given splits are kept; without them one fifth of the pictures (of the groups) is
        held out to test on.
    study
        What is changed from arm to arm: how filters begin (initialisation), or their size, shape or number.
    rules
        Of initialisation, the baseline first: he, orthogonal, lsuv, dct, gabor, edges, haar, pca, k-means,
        convolutional-k-means, som, ica, sparse-coding, autoencoder, copied:BACKBONE, unchanged and others; a wrong one
        lists them.
    sizes
        Kernel sizes, the baseline first.
    shapes
        Kernel shapes, the baseline first: square, factorised, stacked, dilated, cross, ring, separable.
    numbers
        Numbers of filters in the first layer, the baseline first.
    size
        Of the kernels in the study of shapes.
    backbone
        Whose filters are designed, for the study of initialisation; a plain network for such studies by default.
    layers
        Convolutions to begin by the rules, by name or pattern; the first one by default.
    freeze
        Keep those layers as they begin.
    freeze_epochs
        Keep them so for this many epochs only.
    labels
        How many training pictures count as labelled, such as 10% or 500; filters are learned from all of them.
    epochs
        Passes over the labelled pictures.
    seeds
        Trainings of every arm.
    image_size
        Side in pixels.
    batch_size
        Pictures a step.
    learning_rate
        Largest step.
    flip
        Mirror half the pictures; leave it off where left and right have a meaning.
    norm
        Batch norm in the study's network, or none; without one the scale of filters counts for more.
    match
        Which cost is equal in all arms.
    tolerance
        Largest share by which costs may differ; what differs more is refused.
    patches
        How many patches a rule learns from.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    group_column
        Column of what must stay together, such as the patient.
    allow_outside
        Accept files outside the manifest's folder.
    seed
        Every random choice hangs on it.
    out
        Folder of the run; runs/design-NAME by default.
    overwrite
        Replace a complete run in that folder.
    name
        What to call the data in the report; its path by default.
    """
    console = common.console()
    source = name or str(data if isinstance(data, (str, Path)) else "dataset")
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console", "data", "source")}
    values = _values(arguments)
    _check(arguments)
    from offshelf.data.sources import open_dataset
    from offshelf.evaluate.filter_arms import Question, arms_of
    from offshelf.evaluate.filter_study import FilterStudy
    from offshelf.evaluate.filter_training import FilterRecipe
    from offshelf.evaluate.label_subsets import LabelBudget
    from offshelf.evaluate.rows import require_labels

    started = time.perf_counter()
    question = Question(study, values, backbone, size, norm, match, tolerance)
    budget = LabelBudget.parse(labels)
    arms_of(question, image_size, layers)  # what cannot be compared is refused before any work is done
    console.say(f"Reading {source}")
    dataset = open_dataset(
        data,
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        allow_outside=allow_outside,
    )
    require_labels(dataset, source)
    with recorded("design", source, arguments, seed, out, overwrite) as run:
        results = FilterStudy(
            question,
            dataset,
            source,
            console,
            recipe=FilterRecipe(epochs, batch_size, learning_rate, flip=flip),
            layers=layers,
            hold="freeze" if freeze else "train" if freeze_epochs is None else freeze_epochs,
            labels=budget,
            seeds=seeds,
            image_size=image_size,
            patches=patches,
            seed=seed,
        ).run(run.folder)
        conclude(run, results, started)
    return Designed(run.folder, results)


def _signed(gain: dict[str, Any]) -> str:
    if gain["low"] is None:
        return "no difference" if gain["value"] == 0 else f"{gain['value']:+.3f}"
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _values(arguments: dict[str, Any]) -> tuple[Any, ...] | None:
    """The arms that were named; options of another study are refused."""
    study = arguments["study"]
    if study not in VALUES:
        raise UsageError(f"--study {study}: expected one of {', '.join(VALUES)}.")
    for other, option in VALUES.items():
        if other != study and arguments[option] is not None:
            raise UsageError(f"--{option} belongs to --study {other}, not to --study {study}; leave it out.")
    found = arguments[VALUES[study]]
    return None if found is None else tuple(found)


def _check(arguments: dict[str, Any]) -> None:
    for option in ("epochs", "seeds", "image_size", "batch_size", "patches"):
        at_least(option.replace("_", "-"), arguments[option], 1)
    if arguments["freeze_epochs"] is not None:
        at_least("freeze-epochs", arguments["freeze_epochs"], 0)
        if arguments["freeze"]:
            raise UsageError("--freeze and --freeze-epochs contradict each other; give one of them.")
    for option in ("learning_rate", "tolerance"):
        if not arguments[option] > 0:
            raise UsageError(f"--{option.replace('_', '-')} {arguments[option]}: expected more than 0.")
