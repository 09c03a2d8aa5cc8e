"""Maps of predicted pictures as files, for `predict --explain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from offshelf.data.samples import Samples
from offshelf.engine.files import write_atomic
from offshelf.interpret.explainable import Explainable
from offshelf.interpret.map_pictures import drawn, mapped, png

WINDOW = 16  # pictures explained at once


def write_maps(
    subject: Explainable,
    methods: Sequence[str],
    samples: Samples,
    explained: Sequence[str | None],
    stems: Sequence[str],
    folder: Path,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, list[str | None]]:
    """Write ``folder/STEM-METHOD.png`` for every picture and method.

    Parameters
    ----------
    explained : name of the class to explain in each picture; None for pictures without one, which get no map.
    stems : names of the files, one a picture, without ending.

    Returns
    -------
    dict
        Of each method the file of each picture, None where there is none.
    """
    files: dict[str, list[str | None]] = {name: [None] * len(samples) for name in methods}
    wanted = np.array([row for row, name in enumerate(explained) if name is not None], dtype=int)
    for first in range(0, len(wanted), WINDOW):
        rows = wanted[first : first + WINDOW]
        pixels, errors = subject.pixels(samples.take(rows), lambda n: None)
        classes = torch.tensor([subject.classes.index(str(explained[row])) for row in rows])
        for name in methods:
            found = mapped(name, subject.model, subject.inputs(pixels), classes)
            for place, row in enumerate(rows.tolist()):
                if place in errors:  # it could be read a moment ago
                    continue
                for view, picture in drawn(name, pixels[place], found, place).items():
                    path = write_atomic(folder / f"{stems[row]}-{view}.png", png(picture))
                    files[name][row] = files[name][row] or str(path)
        advance(len(rows))
    return files
