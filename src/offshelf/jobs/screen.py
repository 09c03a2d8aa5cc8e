"""`offshelf screen`: networks fine-tuned with and without augmentation, cross-validated, with what they looked at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.fit import Fitted, choose_backbones
from offshelf.jobs.recording import conclude, recorded


@dataclass
class Screened(Fitted):
    """A finished screening run."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the pictures, the paper's rates among them."""
        return super().summary() | {"screening": self.results["screening"]}

    def show(self, console: Console) -> None:
        """The support-weighted rates with Wilson's intervals, then what `fit` shows."""
        names = list(next(iter(self.results["screening"].values())))
        rows = [
            [
                arm,
                *[
                    f"{cell['value']:.3f} [{cell['wilson'][0]:.3f}, {cell['wilson'][1]:.3f}]"
                    for cell in (table[name] for name in names)
                ],
            ]
            for arm, table in self.results["screening"].items()
        ]
        console.table(
            "Weighted by class size; Wilson's intervals, pictures taken as independent", ["network", *names], rows
        )
        super().show(console)


def screen(
    data: str,
    /,
    *,
    backbones: list[str] | None = None,
    augmentation: Literal["both", "on", "off"] = "both",
    only: list[str] | None = None,
    folds: int = 5,
    epochs: int = 10,
    image_size: int = 128,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.01,
    rotation: float = 10.0,
    scale: float = 0.1,
    translation: float = 0.1,
    validation_share: float = 0.2,
    control: Literal["blank-centre", "none"] = "blank-centre",
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    common: CommonOptions = Common(),  # noqa: B008
) -> Screened:
    """Fine-tune networks over five folds, with and without augmentation, and show where they look.

    Parameters
    ----------
    data
        As for fit. Splits that come with the data are not used: every picture is predicted once.
    backbones
        Networks to start from: as for fit; ARCH.random trains from scratch.
    augmentation
        Whether each network is trained with, without, or both. With it, training pictures are turned, scaled and
        moved, and every class is shown equally often.
    only
        The classes of the scheme, two or more, for example normal covid19; a picture stays in the fold that it has
        without this option.
    folds
        Parts that are left out in turn, groups whole.
    epochs
        Passes over the training pictures.
    image_size
        Side in pixels of what the networks see.
    batch_size
        Pictures a step.
    learning_rate
        Largest step of a pre-trained trunk; the new head moves ten times as fast, as does a trunk with random weights.
    weight_decay
        Pull of the weights towards zero.
    rotation
        Largest turn of an augmented picture, in degrees.
    scale
        Largest change of size, as a share.
    translation
        Largest move, as a share of the side.
    validation_share
        Share of the training pictures of a fold, patients whole, on which the epoch is chosen; 0 keeps the last one.
    control
        Repeat the best arm with the centre of every picture blanked; a high score then shouts.
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
        Folder of the run; runs/screen-NAME by default.
    overwrite
        Replace a complete run in that folder.
    """
    console = common.console()
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console")}
    for name, least in (("epochs", 1), ("image_size", 1), ("batch_size", 1), ("folds", 2)):
        at_least(name.replace("_", "-"), arguments[name], least)
    amounts = ("rotation", "scale", "translation", "validation_share")
    for name in amounts:
        at_least(name.replace("_", "-"), arguments[name], 0)
    from offshelf.data.sources import open_dataset
    from offshelf.evaluate.screening_study import Screening

    started = time.perf_counter()
    console.say(f"Reading {data}")
    dataset = open_dataset(
        data, path_column=path_column, label_column=label_column, group_column=group_column, allow_outside=allow_outside
    )
    chosen = choose_backbones(backbones, False, console)
    recipe = ("epochs", "image_size", "batch_size", "learning_rate", "weight_decay", *amounts)
    with recorded("screen", data, arguments | {"backbones": chosen}, seed, out, overwrite) as run:
        results = Screening(
            dataset,
            source=data,
            console=console,
            backbones=chosen,
            settings={name: arguments[name] for name in recipe},
            augmentation={"both": (False, True), "on": (True,), "off": (False,)}[augmentation],
            only=only,
            folds=folds,
            control=control == "blank-centre",
            strict=strict,
            seed=seed,
        ).run(run.folder)
        conclude(run, results, started)
    return Screened(run.folder, results)
