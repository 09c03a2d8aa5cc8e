"""`offshelf race`: networks trained side by side on the same batches; which learns sooner, and which ends better?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.engine.launch import Launch
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.fit import choose_backbones
from offshelf.jobs.recording import RunResult, conclude, recorded

# Where the user says nothing: learning rate, weight decay (in SGD and RMSProp a part of the gradient), and betas.
RATES = {"adamw": 1e-3, "sgd": 0.05, "lamb": 5e-3, "rmsprop": 0.045}
DECAYS = {"adamw": 0.05, "sgd": 5e-4, "lamb": 0.02, "rmsprop": 4e-5}
MOMENTA = {"adamw": (0.9, 0.999), "sgd": (0.9, 0.999), "lamb": (0.9, 0.999), "rmsprop": (0.9, 0.9)}


@dataclass
class Raced(RunResult):
    """A finished race: its folder and its results."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the curves."""
        arms = [{key: value for key, value in arm.items() if key != "curve"} for arm in self.results["arms"]]
        return self.results | {"arms": arms, "run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """Steps to each threshold and accuracy of every network, the verdict, and the paths."""
        limits = self.results["thresholds"]
        rows = [
            [
                arm["name"],
                *[_steps(one) for one in arm["reached"]],
                _cell(arm["accuracy"], ".3f"),
                f"{arm['parameters']:,}",
            ]
            for arm in self.results["arms"]
        ]
        header = ["network", *[f"steps to {limit:g}" for limit in limits], "accuracy", "parameters"]
        console.table(f"Mean of {len(self.results['seeds'])} seeds", header, rows)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")


def _cell(cell: dict[str, Any], form: str) -> str:
    if cell["value"] is None:
        return "-"
    bounds = "" if cell["low"] is None else f" [{cell['low']:{form}}, {cell['high']:{form}}]"
    return f"{cell['value']:{form}}{bounds}"


def _steps(one: dict[str, Any]) -> str:
    there = sum(step is not None for step in one["by_seed"])
    return _cell(one["steps"], ".0f") if there == len(one["by_seed"]) else f"{there} of {len(one['by_seed'])} seeds"


def race(
    data: Any,
    /,
    *,
    backbones: list[str],
    residual_scales: list[float] | None = None,
    thresholds: list[float] | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    seeds: int = 3,
    image_size: int = 64,
    batch_size: int = 64,
    optimiser: Literal["adamw", "sgd", "lamb", "rmsprop"] = "adamw",
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    constant: bool = False,
    smoothing: int = 20,
    flip: bool = False,
    shift: float = 0.0,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
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
) -> Raced:
    """Train networks side by side on the same batches, and say which learns sooner.

    Parameters
    ----------
    data
        As for fit; labels are needed. Given splits are kept; without them one fifth of the pictures (of the groups) is
        held out.
    backbones
        Two or more networks; the first is the one that the others are compared with. ARCH.random starts from random
        weights, other ones for each seed.
    residual_scales
        Factors of the residual branches, such as 1 0.3 0.1: each network with residual blocks races once with each.
    thresholds
        Training losses to come below, such as 1.4 1.2; 0.6 and 0.5 of the loss of guessing by default.
    epochs
        Passes over the training pictures; 5 by default.
    steps
        Optimiser steps, in place of epochs.
    seeds
        So many trainings of each network, all of one seed on the same batches.
    image_size
        Side in pixels of what the networks see.
    batch_size
        Pictures a step.
    optimiser
        How all of them are trained; rmsprop is that of the Inception papers (timm's, with eps 1 inside the root).
    learning_rate
        Largest step; 0.001 for adamw, 0.05 for sgd, 0.005 for lamb and 0.045 for rmsprop by default.
    weight_decay
        Pull of the weights towards zero; 0.05 for adamw, 0.02 for lamb, 0.0005 for sgd and 0.00004 for rmsprop by
        default.
    constant
        One learning rate throughout, in place of a warm-up and half a cosine.
    smoothing
        Steps whose mean loss is compared with the thresholds.
    flip
        Mirror half the pictures; not where left and right have a meaning.
    shift
        Largest random shift, as a share of the side.
    accelerator
        auto takes a GPU where there is one.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    group_column
        Column that must not be split across folds, such as the patient.
    allow_outside
        Accept files outside the manifest's folder.
    strict
        Stop when any picture cannot be read.
    seed
        The first seed; every random choice hangs on it.
    out
        Folder of the run; runs/race-NAME by default.
    overwrite
        Replace a complete run in that folder.
    name
        What to call the data in the report; its path by default.
    """
    console = common.console()
    source = name or str(data if isinstance(data, (str, Path)) else "dataset")
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console", "data", "source")}
    _check(arguments)
    chosen = choose_backbones(backbones, False, console)
    from offshelf.data.sources import open_dataset
    from offshelf.engine.recipe import Recipe
    from offshelf.evaluate.racing import Race

    started = time.perf_counter()
    console.say(f"Reading {source}")
    dataset = open_dataset(
        data, path_column=path_column, label_column=label_column, group_column=group_column, allow_outside=allow_outside
    )
    recipe = Recipe(
        optimiser=optimiser,
        learning_rate=RATES[optimiser] if learning_rate is None else learning_rate,
        weight_decay=DECAYS[optimiser] if weight_decay is None else weight_decay,
        betas=MOMENTA[optimiser],
        batch_size=batch_size,
        warmup=0.0 if constant else 0.05,
        final_rate=1.0 if constant else 0.0,
    )
    with recorded("race", source, arguments, seed, out, overwrite) as run:
        results = Race(
            dataset,
            source,
            console,
            chosen,
            recipe,
            residual_scales=residual_scales,
            thresholds=thresholds,
            steps=steps,
            epochs=5.0 if epochs is None else epochs,
            seeds=seeds,
            image_size=image_size,
            smoothing=smoothing,
            flip=flip,
            shift=shift,
            strict=strict,
            seed=seed,
            launch=Launch(accelerator),
        ).run(run.folder)
        conclude(run, results, started)
    return Raced(run.folder, results)


def _check(arguments: dict[str, Any]) -> None:
    for name in ("seeds", "image_size", "batch_size", "smoothing", "steps"):
        if arguments[name] is not None:
            at_least(name.replace("_", "-"), arguments[name], 1)
    if arguments["epochs"] is not None and arguments["steps"] is not None:
        raise UsageError("--epochs and --steps say the same thing twice; give one of them.")
    for name in ("epochs", "learning_rate"):
        if arguments[name] is not None and not 0 < arguments[name] < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {arguments[name]}: expected a number above 0.")
    at_least("weight-decay", arguments["weight_decay"] or 0.0, 0)
    if not 0 <= arguments["shift"] < 1:
        raise UsageError(f"--shift {arguments['shift']}: expected from 0 to below 1.")
    for scale in arguments["residual_scales"] or []:
        if not 0 <= scale < float("inf"):
            raise UsageError(f"--residual-scales {scale:g}: expected 0 or more, such as 0.1.")
    for limit in arguments["thresholds"] or []:
        if not 0 < limit < float("inf"):
            raise UsageError(f"--thresholds {limit:g}: expected a loss above 0, such as 1.2.")
