"""`offshelf demo`: the main job on built-in data, offline."""

from __future__ import annotations

from pathlib import Path

from offshelf.jobs.common import Common, CommonOptions
from offshelf.jobs.fit import Fitted, fit


def demo(*, out: Path | None = None, common: CommonOptions = Common()) -> Fitted:  # noqa: B008
    """Run the main job end to end on built-in data, offline, in about two minutes.

    Handwritten digits from scikit-learn, eight tiny networks over four sections of each picture, the autoencoder of
    the founding paper, three heads, controls and a report.

    Parameters
    ----------
    out
        Folder of the run; runs/fit-digits by default.
    """
    return fit(
        "digits", grid=(2, 2), reproductive=True, input_size=64, out=out, overwrite=out is not None, common=common
    )
