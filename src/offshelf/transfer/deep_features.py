"""Frozen backbones as a scikit-learn transformer: pictures in, one row of numbers a picture out.

The common first step of "CNN Features off-the-shelf" (Razavian et al. 2014, arXiv 1403.6382) and of "Deep reproductive
feature generation" (Kayan et al. 2023, arXiv 2304.10677, step 1: image sections through several pre-trained CNNs,
outputs concatenated). Nothing here is trained: `fit` only looks the backbones up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from offshelf.backbones.card import BackboneCard
from offshelf.backbones.preprocess import Resize
from offshelf.backbones.readout import Readout
from offshelf.data.corruptions import parse_corruption
from offshelf.data.samples import as_samples
from offshelf.errors import DataError, UsageError
from offshelf.transfer.extraction import Extraction, extract
from offshelf.transfer.networks import Network, View, networks_for

READOUTS = ("pooled", "logits")
COPIES = (1, 2, 16)


class DeepFeatures(TransformerMixin, BaseEstimator):
    """Features of frozen backbones over tiles of each picture, out of a cache where it has them.

    Parameters
    ----------
    backbones : str or sequence of str
        Names or folders as `offshelf.backbones.load.load_backbone` takes them. Order sets the order of the blocks.
    grid : (int, int)
        Rows and columns of equal tiles; ``(2, 2)`` is the four sections of the founding paper, ``(1, 1)`` the whole.
    readout : {"pooled", "logits"}
        The penultimate pooled vector, or the scores of the backbone's own classifier.
    copies : {1, 2, 16}
        Jittered copies of each picture: itself; with its mirror; the sixteen of the off-the-shelf paper.
    copy_pooling : {"mean", "concatenate"}
        Average over copies, ``(n, D)``, or copies side by side with copies outermost, ``(n, copies * D)``.
    resize : {"squash", "crop"}
        Whole tile to the input's size without keeping its shape, or timm's evaluation crop.
    input_size : int, optional
        Side in pixels that every backbone sees, in place of its own; smaller is cheaper, and less faithful.
    blank_area : float, optional
        Share of the picture blanked at its centre before anything else; the control of a shortcut.
    corruption : str, optional
        Damage done to every picture first, such as ``"gaussian-noise/3"``; see `offshelf.data.corruptions`.
    exact : bool
        Full-size decoding and fp32; off, a JPEG far larger than needed is decoded at reduced scale, and bf16 is used
        where the processor has it and it agreed with fp32 on the first batch.
    batch_size : int
        Pieces of pictures a forward pass. Sixteen keep the activations of large networks near the cores: resnet50 ran a
        fifth faster than with sixty-four on two cores.
    cache_folder : path, optional
        Where features are kept; the user's cache folder by default (or ``OFFSHELF_CACHE``).
    memory_limit : int
        Bytes above which the result is a memory-mapped temporary file.

    Attributes
    ----------
    cards_ : list of BackboneCard
    n_features_out_ : int

    References
    ----------
    arXiv 1403.6382; arXiv 2304.10677. Departures: the tiles are cut at the picture's own resolution and each is resized
    on its own, so that no pixel of one section reaches the features of another.

    Examples
    --------
    >>> from offshelf.data.sources import open_dataset
    >>> digits = open_dataset("digits").select(range(8))
    >>> DeepFeatures(["test_resnet.random"], grid=(2, 2)).fit_transform(digits).shape
    (8, 384)
    """

    def __init__(
        self,
        backbones: str | Sequence[str] = ("test_byobnet.offshelf_finetune_cifar10",),
        grid: tuple[int, int] = (1, 1),
        readout: Readout = "pooled",
        copies: int = 1,
        copy_pooling: str = "mean",
        resize: Resize = "squash",
        input_size: int | None = None,
        blank_area: float | None = None,
        corruption: str | None = None,
        exact: bool = False,
        batch_size: int = 16,
        cache_folder: str | Path | None = None,
        memory_limit: int = 2**30,
    ) -> None:
        self.backbones = backbones
        self.grid = grid
        self.readout = readout
        self.copies = copies
        self.copy_pooling = copy_pooling
        self.resize = resize
        self.input_size = input_size
        self.blank_area = blank_area
        self.corruption = corruption
        self.exact = exact
        self.batch_size = batch_size
        self.cache_folder = cache_folder
        self.memory_limit = memory_limit

    def fit(self, X: Any = None, y: Any = None) -> DeepFeatures:
        """Look the backbones up; learns nothing from ``X`` or ``y``."""
        _, networks = self._networks()
        self.cards_: list[BackboneCard] = [network.card for network in networks]
        self.widths_: list[int] = [network.width for network in networks]
        tiles = self.grid[0] * self.grid[1]
        copies = self.copies if self.copy_pooling == "concatenate" else 1
        self.n_features_out_ = copies * tiles * sum(self.widths_)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of every picture of ``X``.

        Parameters
        ----------
        X : Dataset, list of paths, or uint8 array (n, H, W) or (n, H, W, 3)

        Returns
        -------
        ndarray (n, D) float32, or (n, copies * D) with ``copy_pooling="concatenate"``

        Raises
        ------
        DataError
            Naming the first pictures that cannot be read; `extract` reports them row by row instead.
        """
        found = self.extract(X)
        if found.errors:
            first = "; ".join(str(error) for error in list(found.errors.values())[:3])
            raise DataError(
                f"{len(found.errors)} of {len(found.features)} pictures cannot be read: {first}. "
                "Leave them out, or use `extract`, which reports them row by row."
            )
        return self.pool(found.features)

    def extract(self, X: Any, advance: Callable[[int], None] = lambda n: None) -> Extraction:
        """Features ``(n, copies, D)`` with unreadable pictures reported, not raised; see `Extraction`."""
        view, networks = self._networks()
        return extract(
            as_samples(X),
            networks,
            view,
            batch_size=self.batch_size,
            memory_limit=self.memory_limit,
            advance=advance,
        )

    def pool(self, features: np.ndarray) -> np.ndarray:
        """``(n, copies, D)`` to the rows that `transform` gives, without a second copy where there is one copy."""
        if self.copies == 1:
            return features[:, 0]
        if self.copy_pooling == "concatenate":
            return features.reshape(len(features), -1)
        return features.mean(axis=1)

    def blocks(self) -> list[tuple[str, tuple[int, int], slice]]:
        """``(backbone, (tile row, tile column), columns)`` of each block within D."""
        self._require_fit()
        found, column = [], 0
        for name, width in zip(self._names(), self.widths_):
            for row in range(self.grid[0]):
                for col in range(self.grid[1]):
                    found.append((name, (row, col), slice(column, column + width)))
                    column += width
        return found

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names such as ``resnet18.a1_in1k[0,1]:7``: backbone, tile row and column, channel."""
        names = [
            f"{name}[{row},{col}]:{channel}"
            for name, (row, col), columns in self.blocks()
            for channel in range(columns.stop - columns.start)
        ]
        if self.copies > 1 and self.copy_pooling == "concatenate":
            names = [f"copy{copy}/{name}" for copy in range(self.copies) for name in names]
        return np.array(names, dtype=object)

    def _names(self) -> list[str]:
        return [self.backbones] if isinstance(self.backbones, str) else list(self.backbones)

    def _networks(self) -> tuple[View, list[Network]]:
        if self.readout not in READOUTS:
            raise UsageError(f"readout={self.readout!r}: expected one of {', '.join(READOUTS)}.")
        if self.copies not in COPIES:
            raise UsageError(f"copies={self.copies!r}: expected 1, 2 or 16.")
        if self.copy_pooling not in ("mean", "concatenate"):
            raise UsageError(f"copy_pooling={self.copy_pooling!r}: expected 'mean' or 'concatenate'.")
        names = self._names()
        if not names:
            raise UsageError("backbones is empty: name at least one, for example resnet50.a1_in1k.")
        if self.corruption is not None:
            parse_corruption(self.corruption)  # a wrong name is answered before any work
        view = View(
            tuple(self.grid),  # type: ignore[arg-type]
            self.copies,
            self.resize,
            self.blank_area,
            self.exact,
            corruption=self.corruption,
        )
        return networks_for(
            names, view, self.readout, self.input_size, Path(self.cache_folder) if self.cache_folder else None
        )

    def _require_fit(self) -> None:
        if not hasattr(self, "widths_"):
            self.fit()

    def __sklearn_tags__(self) -> Any:
        """Pictures in, and no fit needed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags
