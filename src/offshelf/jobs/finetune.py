"""`offshelf finetune`: all weights of a backbone, trained on labelled pictures."""

from __future__ import annotations

import time
from pathlib import Path

from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.fit import Fitted, choose_backbones
from offshelf.jobs.recording import conclude, recorded


def finetune(
    data: str,
    /,
    *,
    backbone: str | None = None,
    epochs: int = 10,
    image_size: int = 64,
    store_size: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    shift: float = 0.125,
    flip: bool = False,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    common: CommonOptions = Common(),  # noqa: B008
) -> Fitted:
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
        Largest step of the head; a pre-trained trunk moves a tenth as fast.
    weight_decay
        Pull of the weights towards zero.
    label_smoothing
        Share of the target spread over all classes.
    shift
        Largest random shift, as a share of the side.
    flip
        Mirror half the pictures; not where left and right have a meaning.
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
        Folder of the run; runs/finetune-NAME by default.
    overwrite
        Replace a complete run in that folder.
    """
    console = common.console()
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console")}
    for name in ("epochs", "image_size", "batch_size"):
        at_least(name.replace("_", "-"), arguments[name], 1)
    from offshelf.data.sources import open_dataset
    from offshelf.evaluate.finetuning import finetuning_study
    from offshelf.transfer.finetune import FineTune

    started = time.perf_counter()
    dataset = open_dataset(
        data, path_column=path_column, label_column=label_column, group_column=group_column, allow_outside=allow_outside
    )
    chosen = choose_backbones([backbone] if backbone else None, False, console)[0]
    estimator = FineTune(
        backbone=chosen,
        image_size=image_size,
        store_size=store_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        shift=shift,
        flip=flip,
        random_state=seed,
    )
    with recorded("finetune", data, arguments | {"backbone": chosen}, seed, out, overwrite) as run:
        results = finetuning_study(estimator, dataset, data, run.folder, console, strict=strict, seed=seed)
        conclude(run, results, started)
    return Fitted(run.folder, results)
