"""`offshelf pretrain`: a backbone learns from pictures without their labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.engine.launch import Launch, external, first_process
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.recording import RunResult, as_recorded, conclude, recorded


@dataclass
class Pretrained(RunResult):
    """A run of pretrain: its folder, which later verbs take as a backbone, and its results."""

    speaks: bool = True

    def summary(self) -> dict[str, Any]:
        """The numbers without the pictures."""
        kept = {key: value for key, value in self.results.items() if key != "pictures"}
        return kept | {"run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """The verdict, how to go on, and the paths; nothing on a process that only helped."""
        if not self.speaks:
            return
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")
        if self.results["status"] == "stopped":
            print("stopped early; the same command goes on with it")
        print(f"next:   offshelf finetune DATA --backbone {self.folder}")


def pretrain(
    data: Any,
    /,
    *settings: str,
    method: str,
    backbone: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    image_size: int | None = None,
    store_size: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    warm_head: float = 0.0,
    accumulate: int = 1,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    compile: bool = False,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    workers: int = 0,
    probes: int = 5,
    save_seconds: float = 60.0,
    tensorboard: bool = False,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    common: CommonOptions = Common(),  # noqa: B008
) -> Pretrained:
    """Teach a backbone from pictures without labels, and keep it as a plain timm folder.

    A run that was stopped or killed goes on, to the same bytes, when the same command is given again.

    Parameters
    ----------
    data
        As for fit; labels are not needed. Where there are some, they are used to probe, never to learn from. With
        given splits, the pictures of the test split are left out.
    settings
        Settings of the method as name=value, such as mask_ratio=0.75; a wrong name lists them all.
    method
        The method; `offshelf methods` lists them.
    backbone
        What to train: ARCH.random from scratch, or weights (a timm name, a folder, a run) to train further.
    epochs
        Passes over the pictures; the method's own number by default.
    steps
        Optimiser steps, in place of epochs.
    minutes
        Stop after so long; the same command goes on.
    image_size
        Side in pixels of what the network sees; the backbone's own by default.
    store_size
        Side at which pictures are kept; one seventh more than image_size by default.
    batch_size
        Pictures a step, over all processes.
    learning_rate
        Peak for that batch; the method's own, scaled with the batch, by default.
    weight_decay
        Pull of the weights towards zero.
    warm_head
        First share of the steps in which only the method's own parts move, for weights that are trained further.
    accumulate
        Parts in which a step is passed, for little memory.
    precision
        auto: bf16 where the processor computes in it, else fp32.
    compile
        Compile the network first; pays on long runs of convolutional networks.
    accelerator
        auto takes a GPU where there is one.
    devices
        Processes on this machine.
    nodes
        Machines, started by torchrun or srun.
    strategy
        ddp or fsdp, with several processes.
    workers
        Processes that prepare batches.
    probes
        How often to probe on the way, beside the start.
    save_seconds
        Seconds between checkpoints.
    tensorboard
        Write TensorBoard files as well.
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
        Every random choice hangs on it.
    out
        Folder of the run; runs/pretrain-NAME by default.
    resume
        Go on with an unfinished run, and fail when there is none.
    overwrite
        Start anew in that folder.
    """
    console = common.console() if first_process() else Console(quiet=True)
    launch = Launch(accelerator, devices, nodes, strategy)
    source = str(data if isinstance(data, (str, Path)) else "dataset")
    local = ("common", "console", "launch", "data", "resume", "overwrite", "out", "minutes", "save_seconds", "workers")
    arguments = {key: value for key, value in locals().items() if key not in (*local, "local")}
    _check(arguments | {"minutes": minutes}, resume, overwrite)
    if external() and out is None:
        raise UsageError("--out: name the run's folder when several processes are started, so that all write to one.")
    from offshelf.evaluate.pretraining import Pretraining, objective_class

    started = time.perf_counter()
    objective_class(method, settings)  # a wrong name is answered before any work is done
    from offshelf.data.sources import open_dataset

    columns = {"path_column": path_column, "label_column": label_column, "group_column": group_column}
    dataset = open_dataset(data, **columns, allow_outside=allow_outside)
    place = _folder(source, arguments, out, resume, overwrite)
    plan = Pretraining(
        dataset,
        source,
        console,
        method=method,
        settings=settings,
        backbone=backbone,
        epochs=epochs,
        steps=steps,
        minutes=minutes,
        image_size=image_size,
        store_size=store_size,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warm_head=warm_head,
        accumulate=accumulate,
        precision=precision,
        compile=compile,
        launch=launch,
        workers=workers,
        probes=probes,
        save_seconds=save_seconds,
        tensorboard=tensorboard,
        strict=strict,
        seed=seed,
    )
    if not first_process():  # another process of the same command writes the run
        assert out is not None
        return Pretrained(Path(out), plan.run(Path(out)), speaks=False)
    with recorded("pretrain", source, arguments, seed, place, overwrite) as run:
        results = plan.run(run.folder)
        conclude(run, results, started, results["status"])
    return Pretrained(run.folder, results)


def _check(arguments: dict[str, Any], resume: bool, overwrite: bool) -> None:
    for name in ("epochs", "minutes"):
        if arguments[name] is not None and arguments[name] <= 0:
            raise UsageError(f"--{name} {arguments[name]}: expected more than 0.")
    for name in ("steps", "image_size", "store_size", "batch_size", "accumulate", "devices", "nodes"):
        if arguments[name] is not None:
            at_least(name.replace("_", "-"), arguments[name], 1)
    if arguments["epochs"] is not None and arguments["steps"] is not None:
        raise UsageError("--epochs and --steps say the same thing twice; give one of them.")
    if not 0 <= arguments["warm_head"] < 1:
        raise UsageError(f"--warm-head {arguments['warm_head']}: expected a share of the steps, from 0 to below 1.")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one of them.")


def _folder(source: str, arguments: dict[str, Any], out: Path | None, resume: bool, overwrite: bool) -> Path | None:
    """The folder to work in: the one named, else that of an equal command that is unfinished, else None (a new one)."""
    from offshelf.engine.files import read_json
    from offshelf.engine.runs import unfinished

    plain = as_recorded(arguments)
    place = Path(out) if out is not None else None if overwrite else unfinished("pretrain", source, plain)
    begun = place is not None and (place / "run.json").is_file()
    if resume and not begun:
        where = f"{place}: holds" if place is not None else "runs/: there is"
        raise UsageError(f"{where} no unfinished run of this command to --resume. Leave it out to start one.")
    if begun and not overwrite:
        assert place is not None
        record = read_json(place / "run.json")
        then = record.get("arguments", {})
        differing = [key for key in plain if key in then and then[key] != _as_json(plain[key])]
        if record.get("verb") == "pretrain" and record.get("status") != "complete" and differing:
            said = "; ".join(f"--{key.replace('_', '-')} was {then[key]} and is now {plain[key]}" for key in differing)
            raise UsageError(
                f"{place}: holds an unfinished run with other settings: {said}. Give the same ones to go on, "
                "another --out, or --overwrite to start anew."
            )
    return place


def _as_json(value: Any) -> Any:
    from offshelf.engine.files import finite

    return finite(value)
