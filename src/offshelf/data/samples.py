"""Samples: pictures in the shape that scikit-learn can split, select and hand to estimators.

A Dataset itself has a ``shape``, so scikit-learn would index it like an array and fail; a list of rows would be read
whole. This wrapper has a length, ``take`` and ``iloc``/``loc``, and nothing else that scikit-learn would lean on.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from offshelf.data.columns import IMAGE, dataset_of, image_column
from offshelf.data.hf import datasets
from offshelf.errors import DataError, UsageError

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class Samples:
    """Rows of pictures as X of a scikit-learn estimator.

    Parameters
    ----------
    dataset : Dataset
        With a column ``image`` of {"bytes", "path"} and, where there is one, ``id``.

    An int gives a row as a dictionary; a slice, a list of numbers or a boolean mask gives Samples.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"Samples({len(self)} pictures)"

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)):
            return self.dataset[int(key)]
        if isinstance(key, slice):
            return Samples(self.dataset.select(range(*key.indices(len(self)))))
        return self.take(key)

    def __iter__(self) -> Any:
        return iter(self.dataset)

    @property
    def iloc(self) -> Samples:
        """Selection by position, as scikit-learn asks for it; nothing is copied."""
        return self

    @property
    def loc(self) -> Samples:
        """Selection by boolean mask, as scikit-learn asks for it."""
        return self

    def take(self, indices: Any, axis: int = 0) -> Samples:
        """The rows at ``indices`` (numbers, negative ones from the end, or a boolean mask), in that order."""
        if axis != 0:
            raise UsageError(f"axis={axis!r}: expected 0; samples have rows only.")
        rows = np.asarray(indices)
        if rows.dtype == bool:  # Dataset.select would take True and False for rows 1 and 0
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of {rows.shape} for {len(self)} samples; expected one value a sample")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64).reshape(-1)
        return Samples(self.dataset.select(np.where(rows < 0, rows + len(self), rows)))

    def image(self, row: int) -> dict[str, Any]:
        """The picture of one row, still encoded: ``{"bytes": ..., "path": ...}``."""
        return self.dataset[int(row)]["image"]

    def name(self, row: int) -> str:
        """The stable name of one row: its ``id``, else its path, else its number."""
        found = self.dataset[int(row)]
        return str(found.get("id") or found["image"].get("path") or row)

    def path(self, row: int) -> str:
        """The file of one row; its name when the picture is not a file but bytes."""
        found = self.dataset[int(row)]["image"]
        return str(found["path"]) if found.get("bytes") is None and found.get("path") else self.name(row)


def as_samples(X: Any) -> Samples:
    """Wrap pictures, whatever they come as.

    Parameters
    ----------
    X : Samples, Dataset, sequence or array of paths, uint8 array (n, H, W) or (n, H, W, 3), or list of PIL pictures
        Also a list of encoded bytes. Arrays and PIL pictures are kept as PNG bytes, without loss.

    Raises
    ------
    UsageError
        Anything else, an array of another type or shape among it.
    """
    if isinstance(X, Samples):
        return X
    if isinstance(X, datasets.Dataset):
        return Samples(_checked(X))
    if isinstance(X, np.ndarray) and X.ndim >= 3:
        return _of_array(X)
    if isinstance(X, (str, bytes, os.PathLike, dict)) or not hasattr(X, "__len__"):
        raise UsageError(
            f"samples of type {type(X).__name__}: expected a Dataset, a list of paths, or an array (n, H, W) or "
            "(n, H, W, 3) of uint8. For one picture give a list of one."
        )
    return _of_list(list(X))


def _checked(dataset: datasets.Dataset) -> datasets.Dataset:
    if "image" not in dataset.column_names:
        raise DataError(
            f"this Dataset has no column 'image' but {', '.join(dataset.column_names)}; "
            "open it with open_dataset(dataset, path_column=...)."
        )
    if dataset.features["image"] != IMAGE:
        dataset = dataset.cast_column("image", IMAGE)
    return dataset.with_format(None) if dataset.format["type"] is not None else dataset


def _of_array(array: np.ndarray) -> Samples:
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3))):
        raise UsageError(
            f"an array of {array.dtype} and shape {array.shape}: expected uint8 (n, H, W) or (n, H, W, 3), 0 to 255. "
            "Scale it and move the channels to the end."
        )
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    return _of_list([Image.fromarray(np.ascontiguousarray(pixels)) for pixels in array])


def _of_list(items: Sequence[Any]) -> Samples:
    data: list[bytes | None] = []
    paths: list[str | None] = []
    ids: list[str] = []
    for row, item in enumerate(items):
        if isinstance(item, (str, os.PathLike)):
            data.append(None)
            paths.append(os.fspath(item))
            ids.append(os.fspath(item))
            continue
        if isinstance(item, Image.Image):
            item = _encoded(item)
        if not isinstance(item, bytes):
            raise UsageError(
                f"sample {row} is of type {type(item).__name__}: expected a path, a PIL picture or encoded bytes."
            )
        data.append(item)
        paths.append(None)
        ids.append(f"{row:06d}")
    columns = {"image": image_column(data, paths), "id": ids}
    return Samples(dataset_of(columns, {"image": IMAGE, "id": datasets.Value("string")}))


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if picture.mode in PNG_MODES:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "TIFF")  # CMYK, float and 32-bit pictures, which PNG cannot hold
    return buffer.getvalue()
