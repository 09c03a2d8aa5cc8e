import numpy as np
import pytest

from offshelf.errors import DataError
from offshelf.evaluate.feature_map import feature_map


def test_finds_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 2)) * [10, 3]
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    x = hidden @ axes.T + 0.01 * rng.normal(size=(200, 6))
    result = feature_map(x, [0, None] * 100)
    assert np.corrcoef(result["x"], hidden[:, 0])[0, 1] > 0.99  # the sign too
    assert np.corrcoef(result["y"], hidden[:, 1])[0, 1] > 0.99
    shares = hidden.var(0) / hidden.var(0).sum()
    assert result["explained"] == pytest.approx(shares.tolist(), abs=0.02)
    assert result["label"][:2] == [0, -1]
    assert result["method"] == "PCA of the features"


def test_many_points_are_thinned_the_same_way_twice():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3000, 600)), np.arange(3000)
    first = feature_map(x, y)
    assert len(first["x"]) == len(first["y"]) == len(first["label"]) == 2000
    assert first["label"] == sorted(first["label"])
    assert first == feature_map(x, y)
    assert first["label"] != feature_map(x, y, seed=1)["label"]


def test_degenerate_features():
    one = feature_map(np.arange(5.0)[:, None], [0] * 5)
    assert one["y"] == [0] * 5
    assert one["explained"] == [1, 0]
    same = feature_map(np.ones((4, 3)), [0] * 4)
    assert same["x"] == [0] * 4
    with pytest.raises(DataError, match="finite"):
        feature_map(np.array([[np.nan], [1.0]]), [0, 1])
