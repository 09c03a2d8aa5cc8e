"""The measures of a layer on numbers worked by hand, and what must not change them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from offshelf.interpret.filter_quality import (
    LayerQuality,
    clean_entropy,
    entropy_threshold,
    layer_quality,
    orthogonality,
    sparsity,
    variance_entropy,
)

E1, E2 = np.eye(9)[0], np.eye(9)[1]


def test_sparsity_worked() -> None:
    assert sparsity(np.zeros((2, 3, 3, 3))) == 1.0
    assert sparsity(np.ones((2, 3, 3, 3))) == 0.0
    assert sparsity(np.stack([np.zeros((1, 3, 3)), np.ones((1, 3, 3))])) == 0.5
    # A hundredth of the largest weight is not below a hundredth of it.
    filters = np.stack([100 * E1, -1.0 * E1, 0.99 * E2, np.zeros(9)])
    assert sparsity(filters) == 0.5


def test_entropy_worked() -> None:
    assert variance_entropy([E1, -E1, E2, -E2]) == pytest.approx(math.log10(2), abs=1e-12)
    assert variance_entropy([2 * E1, -2 * E1, E2, -E2]) == pytest.approx(0.217322, abs=5e-7)
    assert variance_entropy([*np.eye(9), *-np.eye(9)]) == pytest.approx(math.log10(9), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-8, 1234.567])
def test_equal_filters_have_no_entropy_at_all(value: float) -> None:
    """0.1 has no exact double: what rounding leaves of the variance must not be read as diversity."""
    filters = np.full((37, 9), value) + value * np.linspace(0, 1, 9)
    assert variance_entropy(filters) == 0.0
    assert variance_entropy(filters.astype(np.float32)) == 0.0
    assert variance_entropy(filters[:1]) == 0.0


def test_few_directions_give_a_finite_entropy() -> None:
    for rank in range(1, 9):
        random = np.random.default_rng(rank)
        filters = random.normal(size=(200, rank)) @ random.normal(size=(rank, 9))
        assert 0 < variance_entropy(filters) + (rank == 1) <= math.log10(rank) + (rank == 1) + 1e-9


def test_entropy_by_singular_values() -> None:
    """The paper's writing of it: singular values of the centred filters."""
    filters = np.random.default_rng(0).normal(size=(500, 9)) * np.arange(1, 10) + 5
    values = np.linalg.svd(filters - filters.mean(0), compute_uv=False)
    shares = values**2 / (values**2).sum()
    assert variance_entropy(filters) == pytest.approx(-(shares * np.log10(shares)).sum(), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "expected"), [(4, 0.2357), (9, 0.5515), (16, 0.7221), (64, 0.9056), (256, 0.9433), (1024, 0.9499)]
)
def test_threshold_worked(n: int, expected: float) -> None:
    assert entropy_threshold(n) == pytest.approx(expected, abs=5e-5)


def test_threshold_has_a_limit_below_the_greatest_entropy() -> None:
    assert entropy_threshold(2.0**200) == pytest.approx(0.951296, abs=5e-7) and math.log10(9) > 0.951296
    assert entropy_threshold(2) < 0


@pytest.mark.parametrize(("n", "typical"), [(16, 0.82), (64, 0.92), (256, 0.946)])
def test_fresh_layers_look_random(n: int, typical: float) -> None:
    random = np.random.default_rng(n)
    found = np.array([variance_entropy(random.normal(size=(n, 9)) * math.sqrt(2 / 9)) for _ in range(200)])
    assert (found >= entropy_threshold(n) - 0.01).mean() >= 0.95
    assert found.mean() == pytest.approx(typical, abs=0.01)


def test_what_does_not_change_the_measures() -> None:
    random = np.random.default_rng(3)
    filters = random.normal(size=(120, 9)) * np.array([5, 3, 2, 1, 1, 1, 0.5, 0.2, 0.1])
    filters[:30] *= 1e-3
    rotation = np.linalg.qr(random.normal(size=(9, 9)))[0]
    for other in (filters * -7.3, random.permutation(filters), filters + random.normal(size=9), filters @ rotation):
        assert variance_entropy(other) == pytest.approx(variance_entropy(filters), abs=1e-9)
    for other in (filters * -7.3, random.permutation(filters)):
        assert sparsity(other) == sparsity(filters) > 0.1
        assert clean_entropy(other) == pytest.approx(clean_entropy(filters), abs=1e-9)


def test_clean_entropy_leaves_the_silent_filters_out() -> None:
    loud = np.array([2 * E1, -2 * E1, E2, -E2])
    with_silent = np.concatenate([loud, 0.019 * np.eye(9)])
    assert clean_entropy(with_silent) == pytest.approx(0.217322, abs=5e-7)
    assert variance_entropy(with_silent) > 0.2175
    assert clean_entropy(np.zeros((5, 9))) == 0.0
    assert clean_entropy([E1, 1e-5 * E2]) == 0.0


def test_orthogonality_worked() -> None:
    same = np.tile(np.arange(18.0).reshape(1, 2, 3, 3), (4, 1, 1, 1))
    assert orthogonality(same) == pytest.approx(0, abs=1e-12)
    assert orthogonality(np.eye(9).reshape(9, 1, 3, 3)) == 1.0
    random = np.random.default_rng(0)
    weight, factors = random.normal(size=(6, 2, 3, 3)), random.uniform(0.1, 9, size=(6, 1, 1, 1))
    signs = np.array([1, -1, 1, 1, -1, 1]).reshape(-1, 1, 1, 1)
    assert orthogonality(weight * factors * signs) == pytest.approx(orthogonality(weight), abs=1e-12)
    # A slow second writing, pair by pair.
    rows = weight.reshape(6, 18)
    cosines = [
        abs(rows[i] @ rows[j]) / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]))
        for i in range(6) for j in range(6) if i != j
    ]  # fmt: skip
    assert orthogonality(weight) == pytest.approx(1 - np.mean(cosines), abs=1e-12)
    assert math.isnan(orthogonality(weight[:1]))
    assert orthogonality(np.stack([np.zeros((1, 3, 3)), np.ones((1, 3, 3))])) == 1.0


def test_orthogonality_of_a_layer_wider_than_a_block() -> None:
    weight = np.random.default_rng(0).normal(size=(2100, 1, 1, 3))
    units = weight.reshape(-1, 3) / np.linalg.norm(weight.reshape(-1, 3), axis=1, keepdims=True)
    cosines = np.abs(units @ units.T)
    np.fill_diagonal(cosines, 0)
    assert orthogonality(weight) == pytest.approx(1 - cosines.sum() / (2100 * 2099), abs=1e-12)


def test_a_layer_in_full_is_plain_and_leaves_its_weights_alone() -> None:
    layer = torch.nn.Conv2d(8, 16, 3, groups=4)
    before = layer.weight.detach().clone()
    found = layer_quality(layer.weight)
    assert torch.equal(layer.weight, before) and layer.weight.grad is None
    assert (found.n, found.kernel) == (16 * 2, (3, 3))
    told = found.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert all(type(told[key]) is float for key in ("sparsity", "entropy", "orthogonality", "largest"))
    assert found.relative_entropy == pytest.approx(found.entropy / entropy_threshold(32))
    half = layer_quality(layer.weight.detach().bfloat16())
    assert half.entropy == pytest.approx(found.entropy, abs=1e-3)


def test_flags() -> None:
    random = np.random.default_rng(0)
    fresh = random.normal(size=(32, 32, 3, 3))
    assert layer_quality(fresh).flags == ("random-like",)
    assert layer_quality(random.normal(size=(32, 32, 5, 5))).flags == ()  # the threshold is one of 3 x 3 filters
    assert layer_quality(fresh[:3, :5]).flags == ()  # 15 filters are too few to judge
    stretched = fresh * np.array([[3, 1, 0.3], [1, 1, 1], [0.3, 1, 2]])
    assert layer_quality(stretched).flags == ()
    assert layer_quality(fresh * np.array([[9, 0.1, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]])).flags == (
        "low diversity",
    )
    silent = stretched.copy()
    silent[:8] = 0
    assert layer_quality(silent).sparsity == 0.25 and "sparse" in layer_quality(silent).flags
    silent[:8, 0] = stretched[:8, 0]
    assert "sparse" not in layer_quality(silent).flags


def test_the_edges_of_the_flags() -> None:
    def quality(entropy: float) -> LayerQuality:
        return LayerQuality(64, (3, 3), 0.0, entropy, entropy, 0.9, 1.0, 1.0)

    assert quality(0.9).flags == ("random-like",) and quality(0.8999).flags == ()
    assert quality(0.4499).flags == ("low diversity",) and quality(0.45).flags == ()


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 0, 3, 3), (9,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(outputs, inputs, height, width\\)"):
        layer_quality(np.ones(shape))
