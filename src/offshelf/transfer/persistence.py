"""Fitted heads on disk: skops files, which are read without executing anything, and only types on a written list.

The list is ours, never the file's: a file that names another type is refused. Numbers changed inside a rewritten file
are not noticed here; the run's record of checksums is what notices them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from offshelf.engine.files import write_atomic
from offshelf.errors import RunError

# Beyond what skops itself trusts (scikit-learn's scalers, PCA, linear models, SVC, pipelines; numpy arrays).
TRUSTED = (
    "offshelf.transfer.kernel_svm.KernelSVM",
    "offshelf.transfer.logistic_path.LogisticPath",
    "offshelf.transfer.nearest_neighbours.NearestNeighbours",
    "offshelf.transfer.off_the_shelf.OffTheShelf",
    "offshelf.transfer.off_the_shelf.RetrievalWhitening",
    "offshelf.transfer.perceptron.Perceptron",
    "offshelf.transfer.reproductive_features.ReproductiveFeatures",
    "offshelf.transfer.ridge_path.RidgePath",
    "offshelf.transfer.supervised_bottleneck.SupervisedBottleneck",
)


def save_head(estimator: Any, path: str | os.PathLike[str]) -> Path:
    """Write a fitted estimator or pipeline to ``path``, wholly or not at all.

    Raises
    ------
    RunError
        When it holds a type that ``load_head`` would refuse; nothing is written then.
    """
    import skops.io

    data = skops.io.dumps(estimator, compression=8)  # 8 is zipfile's deflate
    foreign = _foreign(data)
    if foreign:
        raise RunError(
            f"{Path(path)}: {type(estimator).__name__} holds types that could not be loaded again ({foreign}); "
            "save a head of offshelf or a scikit-learn pipeline of such steps"
        )
    return write_atomic(path, data)


def load_head(path: str | os.PathLike[str]) -> Any:
    """Read what ``save_head`` wrote.

    Raises
    ------
    RunError
        When the file is missing, damaged, not such a file, or names a type that is not on the list.
    """
    import skops.io

    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); expected a saved head, so fit again") from error
    try:
        foreign = _foreign(data)
        if foreign:
            raise RunError(
                f"{path}: names types that are not trusted ({foreign}); expected a head written by offshelf. "
                "Do not use this file; fit again on your data"
            )
        return skops.io.loads(data, trusted=list(TRUSTED))
    except RunError:
        raise
    except BadZipFile as error:
        raise RunError(
            f"{path}: is not a saved head or was cut short ({error}); expected a skops file, so fit again"
        ) from error
    except Exception as error:  # whatever a forged or foreign schema trips over ends as one sentence
        raise RunError(
            f"{path}: cannot be loaded ({type(error).__name__}: {error}); "
            "expected a head written by offshelf, so fit again"
        ) from error


def _foreign(data: bytes) -> str:
    """Types in the file that are on neither list, as text."""
    import skops.io

    return ", ".join(sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED)))
