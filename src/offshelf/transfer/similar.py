"""An index of pictures for finding similar ones: the instance retrieval of arXiv 1403.6382, kept in a run.

Each picture's features are scaled to unit length, whitened, scaled again and raised to the signed power, all learnt on
the indexed pictures and never on queries; a query's neighbours are the nearest by Euclidean distance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offshelf.engine.files import read_json, write_json, write_through
from offshelf.errors import DataError, RunError
from offshelf.transfer.off_the_shelf import RetrievalWhitening
from offshelf.transfer.persistence import load_head, save_head
from offshelf.transfer.spatial_search import rank

VECTORS, WHITENING, NAMES = "similar.safetensors", "similar.skops", "similar.json"


def whitening_for(n: int) -> RetrievalWhitening:
    """The paper's 500 directions, but never more than a quarter of the pictures they are learnt on (our choice).

    With nearly as many directions as pictures whitening lifts noise to the height of everything else, and all pictures
    come to lie equally far apart.
    """
    return RetrievalWhitening(dim=max(2, min(500, n // 4)))


class SimilarPictures:
    """Names and whitened vectors (n, k) of the indexed pictures."""

    def __init__(self, whitening: RetrievalWhitening, vectors: np.ndarray, names: list[str]) -> None:
        self.whitening = whitening
        self.vectors = vectors
        self.names = names

    @classmethod
    def of(cls, features: np.ndarray, names: list[str]) -> SimilarPictures:
        """Index pictures by their features (n, d)."""
        whitening = whitening_for(len(features)).fit(features)
        return cls(whitening, whitening.transform(features).astype(np.float32), names)

    def nearest(self, features: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """The ``k`` nearest indexed pictures of each query.

        Parameters
        ----------
        features : (q, d), finite; from the same extractor as the index.
        k : at most the number of indexed pictures.

        Returns
        -------
        names : q lists of k names, nearest first.
        distances : (q, k) Euclidean distances.
        """
        if k > len(self.names):
            raise DataError(f"--similar {k}: the run indexed {len(self.names)} pictures only; ask for fewer.")
        order, distances = rank(self.whitening.transform(features), self.vectors)
        first = order[:, :k]
        return [[self.names[i] for i in row] for row in first], np.take_along_axis(distances, first, axis=1)

    def save(self, folder: Path) -> None:
        """Write the index beside a classifier."""
        from safetensors.numpy import save_file

        save_head(self.whitening, folder / WHITENING)
        write_through(folder / VECTORS, lambda path: save_file({"vectors": self.vectors}, str(path)))
        write_json(folder / NAMES, self.names)

    @classmethod
    def load(cls, folder: Path) -> SimilarPictures:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        if not (folder / NAMES).is_file():
            raise RunError(f"{folder}: this run kept no index of pictures. Fit again with --similar to have one.")
        return cls(load_head(folder / WHITENING), load_file(folder / VECTORS)["vectors"], read_json(folder / NAMES))
