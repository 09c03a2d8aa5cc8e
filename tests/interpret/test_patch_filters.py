"""Filters learned from patches: against slow writings, and against what must come out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from offshelf.errors import DataError
from offshelf.interpret import patch_filters as pf
from offshelf.interpret.filter_banks import dct_filters


def smooth(n: int = 24, side: int = 24, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Pictures whose neighbouring pixels are alike, as those of natural ones are."""
    noise = torch.randn(n, channels, side + 8, side + 8, generator=torch.Generator().manual_seed(seed))
    blurred = torch.nn.functional.avg_pool2d(noise, 5, stride=1)
    return blurred[..., :side, :side] + 0.05 * noise[..., :side, :side]


def test_patches_are_what_lies_inside() -> None:
    n, height, width = 3, 6, 7
    inputs = torch.arange(n * 2 * height * width).float().view(n, 2, height, width)
    patches = pf.sample_patches(inputs, (3, 2), 500, seed=0)
    assert patches.shape == (500, 2, 3, 2)
    unfolded = torch.nn.functional.unfold(inputs, (3, 2)).transpose(1, 2).reshape(-1, 12)
    known = {tuple(row.tolist()) for row in unfolded}
    drawn = {tuple(row.tolist()) for row in patches.flatten(1)}
    assert drawn == known  # every place inside, and no padding


def test_patches_of_a_dilated_kernel_skip_pixels() -> None:
    inputs = torch.arange(49.0).view(1, 1, 7, 7)
    patch = pf.sample_patches(inputs, (3, 3), 1, dilation=(3, 3))[0, 0]
    assert torch.equal(patch, inputs[0, 0, ::3, ::3])


def test_pictures_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(DataError, match="too small for patches of 5 x 5"):
        pf.sample_patches(torch.zeros(2, 3, 4, 8), (5, 5), 10)


def test_contrast_and_whitening() -> None:
    patches = pf.sample_patches(smooth(), (3, 3), 4000).flatten(1)
    points = pf.contrast_normalised(patches, 0.0)
    assert points.mean(dim=1).abs().max() < 1e-5 and torch.allclose(points.square().mean(dim=1), torch.ones(4000))
    assert torch.equal(pf.contrast_normalised(torch.full((2, 9), 3.0), 1e-3), torch.zeros(2, 9))  # flat
    white = pf.zca(patches, 1e-9)
    assert torch.allclose(pf.covariance(patches @ white).float(), torch.eye(27), atol=1e-2)
    assert torch.allclose(white, white.T, atol=1e-4)


def test_folding_whitening_into_a_filter_changes_no_answer() -> None:
    points = pf.contrast_normalised(pf.sample_patches(smooth(), (3, 3), 1000).flatten(1), 0.01)
    white, centroid = pf.zca(points), torch.randn(27)
    assert torch.allclose(points @ (white.T @ centroid), (points @ white.T) @ centroid, atol=1e-4)


def test_pca_against_numpy() -> None:
    patches = pf.sample_patches(smooth(channels=1), (3, 3), 3000).flatten(1)
    filters, shares = pf.pca(patches, 9)
    assert len(filters) == 8  # the constant direction has no variance
    assert shares[8] < 1e-6 and bool((shares[:-1] >= shares[1:] - 1e-7).all())
    assert torch.allclose(filters @ filters.T, torch.eye(8), atol=1e-5)
    assert filters.sum(dim=1).abs().max() < 1e-4
    centred = patches.numpy().astype(float)
    centred -= centred.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(centred, rowvar=False))
    assert np.allclose(values[::-1] / values.sum(), shares.numpy(), atol=1e-4)
    assert np.allclose(np.abs((vectors.T[::-1][:8] * filters.numpy()).sum(axis=1)), 1, atol=1e-3)
    assert bool((filters.gather(1, filters.abs().argmax(dim=1, keepdim=True)) > 0).all())  # the sign convention
    assert torch.equal(filters, pf.pca(patches, 9)[0])


@pytest.mark.parametrize(
    ("size", "shares"), [(3, (0.446, 0.290)), (5, (0.365, 0.204)), (7, (0.310, 0.174))], ids=["3x3", "5x5", "7x7"]
)
def test_the_first_filters_of_natural_pictures_are_nearly_the_dct(
    real_data: Path, size: int, shares: tuple[float, float]
) -> None:
    table = real_data / "cifar10" / "test.parquet"
    if not table.is_file():
        pytest.skip("CIFAR-10 is not at hand")
    rows = pq.read_table(table, columns=["image"]).take(list(range(0, 8000, 13)))["image"].to_pylist()
    grey = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L")) for row in rows])[:, None]
    patches = pf.sample_patches(torch.from_numpy(grey).float() / 255, (size, size), 30_000).flatten(1)
    filters, found = pf.pca(patches, 4)
    cosines = np.abs(filters.numpy() @ dct_filters(size, size).reshape(size * size, -1).T)
    assert (cosines.max(axis=1)[: 3 if size == 3 else 4] >= 0.9).all(), cosines.max(axis=1)
    # of 3 x 3 the fourth and fifth have nearly equal eigenvalues, so that the fourth is some mixture of second orders
    assert np.linalg.norm(cosines[3, 3:6]) >= 0.98 or size > 3
    # which of the two first is how large hangs on the classes, that is on how many horizons there are
    assert float(found[:2].sum()) == pytest.approx(sum(shares), abs=0.03)


def test_k_means_of_as_many_distinct_points_returns_them() -> None:
    kinds = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    points = kinds[torch.arange(200) % 5]
    found = pf.k_means(points, 5)
    assert torch.cdist(kinds, found).min(dim=1).values.max() < 1e-5
    assert torch.allclose(pf.k_means(points[:77], 1)[0], points[:77].mean(dim=0), atol=1e-5)


def test_spherical_k_means_finds_directions() -> None:
    kinds = torch.eye(6)[:3]
    draws = torch.Generator().manual_seed(0)
    points = kinds[torch.arange(300) % 3] * (1 + torch.rand(300, 1, generator=draws))
    found = pf.spherical_k_means((points + 0.01 * torch.randn(300, 6, generator=draws))[:, None], 3, seed=1)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (kinds @ found.T).max(dim=1).values.min() > 0.99


def test_convolutional_k_means_takes_the_best_shift() -> None:
    """One pattern anywhere in a window of twice its side: plain K-means would blur it over the shifts."""
    draws = torch.Generator().manual_seed(0)
    pattern = torch.nn.functional.normalize(torch.randn(9, generator=draws), dim=0).view(3, 3)
    windows = 0.02 * torch.randn(400, 1, 6, 6, generator=draws)
    places = torch.randint(0, 4, (400, 2), generator=draws)
    for window, (row, column) in zip(windows, places.tolist()):
        window[0, row : row + 3, column : column + 3] += pattern
    candidates = torch.nn.functional.unfold(windows, 3).transpose(1, 2)
    found = pf.spherical_k_means(candidates, 3, seed=0) @ pattern.flatten()
    plain = pf.spherical_k_means(candidates[:, 5:6], 3, seed=0) @ pattern.flatten()
    assert float(found.max()) > 0.98 and float(found.max()) > float(plain.max())


def test_a_map_without_neighbourhood_is_online_k_means() -> None:
    points = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    found = pf.self_organising_map(points, (2, 3), radii=(0.0,), seed=5, batch=1)
    draws = np.random.default_rng([5, 24])
    units = points[torch.from_numpy(draws.choice(120, 6, replace=False))].clone()
    won = torch.zeros(6)
    for row in draws.permutation(120):
        nearest = int((units - points[row]).square().sum(dim=1).argmin())
        won[nearest] += 1
        units[nearest] += (points[row] - units[nearest]) / won[nearest]
    assert torch.allclose(found, units, atol=1e-5)


def test_neighbours_on_a_map_are_alike() -> None:
    angles = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 3.14159
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    units = pf.self_organising_map(points, (1, 10))
    order = torch.atan2(units[:, 1], units[:, 0])
    steps = order[1:] - order[:-1]
    assert bool((steps > 0).all()) or bool((steps < 0).all())


def test_independent_components_separate_mixed_sources() -> None:
    draws = np.random.default_rng(0)
    sources = draws.laplace(size=(4000, 3))
    mixing = draws.normal(size=(3, 6))
    points = torch.from_numpy(sources @ mixing).float()
    found = pf.independent_components(points, 6)
    assert len(found) == 3  # there is variance in three directions only
    answers = (points @ found.T).numpy()
    matched = np.abs(np.corrcoef(answers.T, sources.T)[:3, 3:]).max(axis=1)
    assert (matched > 0.98).all()


def test_a_dictionary_finds_the_atoms_of_sparse_codes() -> None:
    draws = np.random.default_rng(0)
    atoms = np.linalg.qr(draws.normal(size=(8, 8)))[0][:5]
    codes = draws.laplace(scale=5, size=(2500, 5)) * (draws.random((2500, 5)) < 0.3)
    found = torch.nn.functional.normalize(pf.dictionary(torch.from_numpy(codes @ atoms).float(), 5), dim=1)
    assert (np.abs(atoms @ found.numpy().T).max(axis=1) > 0.95).all()


def test_the_autoencoder_restores_and_sees_no_mean() -> None:
    points = pf.contrast_normalised(pf.sample_patches(smooth(), (3, 3), 2000).flatten(1), 0.01)
    weight = pf.autoencoder(points, 20, seed=0)
    assert weight.sum(dim=1).abs().max() < 1e-3

    def error(filters: torch.Tensor) -> float:
        return float((torch.relu(points @ filters.T) @ filters - points).square().mean())

    assert error(weight) < 0.5 * float(points.square().mean())
    assert error(weight) < 0.5 * error(torch.randn(20, 27, generator=torch.Generator().manual_seed(0)) / 27**0.5)


@pytest.mark.parametrize("rule", pf.LEARNED_RULES)
def test_every_rule_learns_filters_that_see_no_mean_and_hang_on_the_seed(rule: str) -> None:
    found, used = pf.learned_filters(rule, smooth(), (3, 3), 6, patches=600, seed=1)
    assert found.shape == (6, 3, 3, 3) and used == 600 and bool(found.isfinite().all())
    assert found.flatten(1).sum(dim=1).abs().max() < 1e-2 * found.abs().max() * 27
    assert torch.equal(found, pf.learned_filters(rule, smooth(), (3, 3), 6, patches=600, seed=1)[0])


def test_too_few_or_flat_patches_are_refused() -> None:
    with pytest.raises(DataError, match="10 patches are too few for 6 filters; expected 12"):
        pf.learned_filters("pca", smooth(), (3, 3), 6, patches=10)
    with pytest.raises(DataError, match="every patch is flat"):
        pf.learned_filters("k-means", torch.ones(4, 3, 8, 8), (3, 3), 2, patches=50)


def test_the_grid_has_room() -> None:
    assert [pf.map_grid(n) for n in (1, 12, 47, 48)] == [(1, 1), (3, 4), (6, 8), (6, 8)]
