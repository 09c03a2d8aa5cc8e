"""`offshelf demo`: the main job on built-in data, offline."""

from __future__ import annotations

from pathlib import Path

from offshelf.jobs.common import Common, CommonOptions
from offshelf.jobs.fit import Fitted, fit

PICTURES = 600  # of 1,797; enough for clear intervals in about two minutes


def demo(*, out: Path | None = None, common: CommonOptions = Common()) -> Fitted:  # noqa: B008
    """Run the main job end to end on built-in data, offline, in about two minutes.

    Six hundred handwritten digits from scikit-learn, eight tiny networks over four sections of each picture, the
    autoencoder of the founding paper, three heads, controls and a report.

    Parameters
    ----------
    out
        Folder of the run; runs/fit-digits by default.
    """
    from offshelf.data.sources import open_dataset

    digits = open_dataset("digits").select(range(PICTURES))
    again = out is not None
    return fit(
        digits, name="digits", grid=(2, 2), reproductive=True, input_size=64, out=out, overwrite=again, common=common
    )
