"""Samples under scikit-learn: splitting, searching, grouping, several processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_validate, train_test_split
from sklearn.pipeline import make_pipeline

from offshelf.data.columns import label_array
from offshelf.data.images import decode_image, read_bytes
from offshelf.data.samples import Samples, as_samples
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, UsageError


class Pixels(TransformerMixin, BaseEstimator):
    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def fit(self, X: Samples, y: object = None) -> Pixels:
        self.seen_ = type(X).__name__
        return self

    def transform(self, X: Samples) -> np.ndarray:
        rows = [decode_image(read_bytes(X.image(k)), X.name(k)).float().flatten().numpy() for k in range(len(X))]
        return (np.stack(rows) / 255) ** self.power


@pytest.fixture(scope="module")
def digits() -> tuple[Samples, np.ndarray]:
    dataset = open_dataset("digits").select(range(300))
    return as_samples(dataset), label_array(dataset)


def test_cross_validate_and_grid_search(digits: tuple[Samples, np.ndarray]) -> None:
    X, y = digits
    model = make_pipeline(Pixels(), LogisticRegression(max_iter=300))
    scores = cross_validate(model, X, y, cv=3, error_score="raise", return_estimator=True)
    assert scores["test_score"].mean() > 0.85 and scores["estimator"][0][0].seen_ == "Samples"
    search = GridSearchCV(model, {"pixels__power": [0.0, 1.0]}, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_ == {"pixels__power": 1.0}
    groups = np.arange(len(y)) // 3
    grouped = cross_validate(model, X, y, groups=groups, cv=StratifiedGroupKFold(3), error_score="raise")
    assert len(grouped["test_score"]) == 3
    left, right, *_ = train_test_split(X, y, random_state=0)
    assert isinstance(left, Samples) and len(left) + len(right) == 300


def test_selection(digits: tuple[Samples, np.ndarray]) -> None:
    X, _ = digits
    assert not hasattr(X, "shape") and len(X) == 300
    assert X[5]["id"] == X[-295]["id"] == X.name(5) == X.path(5) == "digits/0005"
    mask = np.zeros(300, bool)
    mask[[4, 7]] = True
    for picked in (
        X.take([4, 7]),
        X[[4, 7]],
        X[mask],
        X.loc[mask],
        X.iloc[[4, 7]],
        X[4:8:3],
        X.take([-296, -293]),
        X[mask.tolist()],
    ):
        assert [row["id"] for row in picked] == ["digits/0004", "digits/0007"]
    assert len(X.take([])) == 0
    with pytest.raises(IndexError, match="mask"):
        X[mask[:5]]
    with pytest.raises(UsageError, match="rows only"):
        X.take([0], axis=1)


def pixels(X: Samples, row: int) -> np.ndarray:
    return decode_image(read_bytes(X.image(row))).numpy()


def test_arrays_are_kept_without_loss() -> None:
    random = np.random.default_rng(0)
    grey, colour = random.integers(0, 256, (3, 5, 7), np.uint8), random.integers(0, 256, (3, 5, 7, 3), np.uint8)
    np.testing.assert_array_equal(pixels(as_samples(grey), 2)[0], grey[2])
    np.testing.assert_array_equal(pixels(as_samples(grey[..., None]), 2)[0], grey[2])
    np.testing.assert_array_equal(pixels(as_samples(colour), 1), colour[1].transpose(2, 0, 1))
    for bad in (grey.astype(float), grey[0], colour.transpose(0, 3, 1, 2), colour[None]):
        with pytest.raises(UsageError):
            as_samples(bad)


def test_paths_pil_and_bytes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    picture.save(tmp_path / "a.png")
    paths = [tmp_path / "a.png", str(tmp_path / "gone.png")]
    for X in (
        as_samples(paths),
        as_samples(np.array(paths, dtype=object)),
        as_samples(np.array([str(p) for p in paths])),
    ):
        assert pixels(X, 0)[:, 0, 0].tolist() == [1, 2, 3] and X.path(1) == str(tmp_path / "gone.png")
    X = as_samples([picture, picture.convert("CMYK"), (tmp_path / "a.png").read_bytes()])
    assert [pixels(X, row)[:, 0, 0].tolist() for row in range(3)] == [[1, 2, 3]] * 3
    assert as_samples(X) is X and len(as_samples([])) == 0


def test_refusals() -> None:
    from offshelf.data.hf import datasets

    for bad in ("a.png", 3, [1, 2], {"a": 1}, None):
        with pytest.raises(UsageError):
            as_samples(bad)
    with pytest.raises(DataError, match="no column 'image' but img"):
        as_samples(datasets.Dataset.from_dict({"img": [1]}))
    plain = datasets.Dataset.from_dict({"image": ["x.png"]}).cast_column("image", datasets.Image())
    assert as_samples(plain).image(0) == {"bytes": None, "path": "x.png"}
