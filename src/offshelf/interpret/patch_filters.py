"""Filters learned from unlabelled patches of what a layer sees: pictures, or activations.

Patches are rows ``(m, d)``, ``d = channels x kh x kw``; a learner gives filters ``(n, d)``, at most as many as asked
for. Whitening is folded into the filters, so that they answer to raw patches as they were learned to on whitened ones.

Sources: Chan et al. (2015, PCANet); Coates and Ng (2012) for contrast, ZCA and K-means; Dundar, Jin and Culurciello
(2015) for convolutional K-means; Kohonen (1990); Hyvarinen and Oja (2000); Mairal et al. (2009); Vincent et al. (2008).

Departures: K-means passes over all patches at once (Lloyd) where Coates and Ng take mini-batches; the map's rate is
that of online K-means, a mean over what a unit has won in this pass, and falls no further.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from offshelf.engine.undisturbed import same_random_states
from offshelf.errors import DataError

PATCHES = 50_000
NUMBERS = 30_000_000  # in all patches together; deep layers have long patches, and then get fewer of them
ZCA_EPSILON = 0.1
PASSES = 10
FEWEST = 2  # patches a filter


def sample_patches(
    inputs: torch.Tensor, size: tuple[int, int], n: int, seed: int = 0, dilation: tuple[int, int] = (1, 1)
) -> torch.Tensor:
    """``n`` patches ``(n, C, kh, kw)`` from inside ``(N, C, H, W)``, drawn evenly; padding is never part of one.

    Raises
    ------
    DataError
        For pictures that are smaller than a patch.
    """
    count, _, height, width = inputs.shape
    reach = [(side - 1) * step for side, step in zip(size, dilation)]
    if not count or height <= reach[0] or width <= reach[1]:
        raise DataError(
            f"{count} inputs of {height} x {width} are too small for patches of {reach[0] + 1} x {reach[1] + 1}; give "
            "larger pictures (--image-size), or take a rule that needs none, such as dct."
        )
    draws = np.random.default_rng([seed, 22])
    picture, top, left = (
        torch.from_numpy(draws.integers(0, high, n)) for high in (count, height - reach[0], width - reach[1])
    )
    down, along = (torch.arange(side) * step for side, step in zip(size, dilation))
    rows, columns = (top[:, None] + down)[:, :, None], (left[:, None] + along)[:, None, :]
    found = inputs.permute(0, 2, 3, 1)[picture[:, None, None], rows, columns]  # (n, kh, kw, C)
    return found.permute(0, 3, 1, 2).float().contiguous()


def contrast_normalised(patches: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Rows of mean 0 and, but for flat patches, variance 1: ``(p - mean) / sqrt(var + epsilon)``."""
    centred = patches - patches.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + epsilon).sqrt()


def zca(patches: torch.Tensor, epsilon: float = ZCA_EPSILON) -> torch.Tensor:
    """The symmetric whitening matrix ``(d, d)`` of rows ``(m, d)``: ``U (S + epsilon)^-1/2 U'`` of their covariance."""
    values, vectors = torch.linalg.eigh(covariance(patches))
    return ((vectors / (values.clamp_min(0) + epsilon).sqrt()) @ vectors.T).float()


def covariance(patches: torch.Tensor) -> torch.Tensor:
    """``(d, d)`` in double precision."""
    centred = patches.double() - patches.double().mean(dim=0)
    return centred.T @ centred / len(patches)


def pca(patches: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading eigenvectors of patches without their own means, and the share of the variance along each.

    Returns
    -------
    filters, shares
        ``(n', d)`` orthonormal, by eigenvalue, largest entry positive; ``(d,)``. n' is at most the number of directions
        in which patches vary: the constant one is none.
    """
    values, vectors = torch.linalg.eigh(covariance(patches - patches.mean(dim=1, keepdim=True)))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    varying = int((values > 1e-9 * values[0]).sum()) if values[0] > 0 else 0
    return pointed(vectors[:, : min(n, varying)].T.float()), (values / values.sum().clamp_min(1e-300)).float()


def pointed(filters: torch.Tensor) -> torch.Tensor:
    """The largest entry of each row is made positive, since the sign is free."""
    largest = filters.gather(1, filters.abs().argmax(dim=1, keepdim=True))
    return filters * torch.where(largest < 0, -1.0, 1.0)


def k_means(points: torch.Tensor, n: int, seed: int = 0, passes: int = PASSES) -> torch.Tensor:
    """Centroids ``(n, d)``; clusters that lose all points are started again from the farthest one."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters, or no convergence in so few passes
        found = KMeans(n, n_init=1, max_iter=passes, random_state=seed).fit(points.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


def spherical_k_means(candidates: torch.Tensor, n: int, seed: int = 0, passes: int = PASSES) -> torch.Tensor:
    """K-means on directions: a point belongs to the centroid with the largest product, centroids have norm 1.

    Parameters
    ----------
    candidates
        ``(m, s, d)``: a point is the best of its s candidates, and that one moves the centroid. With ``s = 1`` it is
        spherical K-means, with all shifts of a filter inside a window convolutional K-means.
    """
    draws = np.random.default_rng([seed, 23])
    m, s, d = candidates.shape
    rows = torch.from_numpy(draws.choice(m, n, replace=m < n))
    centroids = F.normalize(candidates[rows, torch.from_numpy(draws.integers(0, s, n))], dim=1)
    for _ in range(passes):
        sums, won = torch.zeros(n, d), torch.zeros(n)
        for part in candidates.split(max(1, 4_000_000 // (s * max(n, d)))):
            best = (part @ centroids.T).flatten(1).argmax(dim=1)  # over (candidate, centroid) pairs
            place, unit = best // n, best % n
            sums.index_add_(0, unit, part[torch.arange(len(part)), place])
            won += torch.bincount(unit, minlength=n)
        empty = (won == 0).nonzero().flatten()
        sums[empty] = candidates[torch.from_numpy(draws.integers(0, m, len(empty))), s // 2]
        centroids = F.normalize(sums, dim=1)
    return centroids


def self_organising_map(
    points: torch.Tensor,
    grid: tuple[int, int],
    radii: tuple[float, ...] = (2.0, 1.5, 1.0, 0.7, 0.5),
    seed: int = 0,
    batch: int = 64,
) -> torch.Tensor:
    """A map ``(rows x columns, d)`` whose neighbours are alike: the best unit and its neighbours move to a point.

    One pass over the points for each of ``radii``. A unit moves by its share of the point over all shares of the pass,
    so with radius 0 one pass is online K-means (MacQueen); ``batch`` points move the map together.
    """
    n = grid[0] * grid[1]
    draws = np.random.default_rng([seed, 24])
    units = points[torch.from_numpy(draws.choice(len(points), n, replace=len(points) < n))].clone()
    place = torch.stack(torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")).reshape(2, -1).T.float()
    apart = torch.cdist(place, place).square()
    for radius in radii:
        near = torch.eye(n) if radius == 0 else torch.exp(-apart / (2 * radius**2))
        mass = torch.zeros(n)
        for part in points[torch.from_numpy(draws.permutation(len(points)))].split(batch):
            pull = near[:, torch.cdist(part, units).argmin(dim=1)]  # (n, batch)
            mass += pull.sum(dim=1)
            moved = pull @ part - pull.sum(dim=1, keepdim=True) * units
            units = units + moved / mass.clamp_min(1e-12)[:, None]
    return units


def independent_components(points: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """FastICA's unmixing rows ``(n', d)``, its whitening folded in; n' is at most the number of varying directions."""
    from sklearn.decomposition import FastICA

    values = torch.linalg.eigvalsh(covariance(points))
    varying = int((values > 1e-6 * values[-1]).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last digits do not matter for filters
        found = FastICA(min(n, varying), whiten="unit-variance", max_iter=100, tol=1e-3, random_state=seed)
        found.fit(points[:20_000].numpy())
    return pointed(torch.from_numpy(found.components_).float())


def dictionary(points: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """Atoms ``(n, d)`` of a sparse code learned in mini-batches."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner = MiniBatchDictionaryLearning(
        n, alpha=1.0, max_iter=2, batch_size=256, random_state=seed, max_no_improvement=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last digits of a code do not matter for filters
        learner.fit(points[:5_000].numpy())
    return pointed(torch.from_numpy(learner.components_).float())


def autoencoder(points: torch.Tensor, n: int, seed: int = 0, passes: int = 5, noise: float = 0.3) -> torch.Tensor:
    """Tied weights ``(n, d)`` of one ReLU layer that restores patches from noisy ones."""
    with same_random_states():
        torch.manual_seed(seed)
        weight = torch.randn(n, points.shape[1]) / math.sqrt(points.shape[1])
        weight.requires_grad_()
        bias = torch.zeros(n, requires_grad=True)
        optimiser = torch.optim.Adam([weight, bias], lr=3e-3)
        with torch.enable_grad():
            for _ in range(passes):
                for part in points[torch.randperm(len(points))].split(256):
                    code = F.relu((part + noise * torch.randn_like(part)) @ weight.T + bias)
                    loss = (code @ weight - part).square().mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
    return weight.detach() - weight.detach().mean(dim=1, keepdim=True)  # as patches have none, no answer changes


ON_WHITENED: dict[str, Callable[[torch.Tensor, int, int], torch.Tensor]] = {
    "k-means": k_means,
    "spherical-k-means": lambda points, n, seed: spherical_k_means(points[:, None], n, seed),
    "som": lambda points, n, seed: self_organising_map(points, map_grid(n), seed=seed)[:n],
    "ica": independent_components,
    "sparse-coding": dictionary,
    "autoencoder": autoencoder,
}
LEARNED_RULES = ("pca", "convolutional-k-means", *ON_WHITENED)


def learned_filters(
    rule: str,
    inputs: torch.Tensor,
    size: tuple[int, int],
    n: int,
    *,
    contrast: float | None = None,
    patches: int = PATCHES,
    dilation: tuple[int, int] = (1, 1),
    seed: int = 0,
) -> tuple[torch.Tensor, int]:
    """Filters by a rule of `LEARNED_RULES` from what a layer sees.

    Parameters
    ----------
    inputs
        ``(N, C, H, W)``.
    size, dilation
        Of the kernel.
    n
        How many filters are wanted.
    contrast
        Added to a patch's variance before it is divided by its deviation; 10 / 255^2 for pictures in [0, 1]. By default
        one hundredth of the patches' mean variance, which suits inputs of any scale.
    patches
        How many to sample; fewer where they are long.

    Returns
    -------
    filters, used
        ``(n', C, kh, kw)`` with ``n' <= n``, and the number of patches.

    Raises
    ------
    DataError
        For inputs smaller than a patch, fewer than two patches a filter, or patches that are all flat.
    """
    channels, length = inputs.shape[1], inputs.shape[1] * size[0] * size[1]
    m = min(patches, NUMBERS // length)
    if m < FEWEST * n:
        raise DataError(
            f"{rule}: {m} patches are too few for {n} filters; expected {FEWEST * n} or more. Raise --patches, or take "
            "a rule that needs none, such as dct."
        )
    drawn = sample_patches(inputs, size, m, seed, dilation).flatten(1)
    if not bool((drawn - drawn.mean(dim=1, keepdim=True)).abs().max() > 0):
        raise DataError(f"{rule}: every patch is flat, so nothing can be learned from them. Give other pictures.")
    if rule == "pca":
        found = pca(drawn, n)[0]
    else:
        if contrast is None:
            contrast = float(drawn.var(dim=1, correction=0).mean()) / 100
        points = contrast_normalised(drawn, contrast)
        whitening = zca(points)
        if rule == "convolutional-k-means":
            windows = _windows(inputs, size, dilation, m, seed)
            candidates = contrast_normalised(windows.flatten(0, 1), contrast) @ whitening
            found = spherical_k_means(candidates.view(*windows.shape), n, seed)
        else:
            found = ON_WHITENED[rule](points @ whitening, n, seed)
        found = found @ whitening  # ZCA is symmetric: this is ZCA' c
    return found.reshape(-1, channels, *size), m


def _windows(inputs: torch.Tensor, size: tuple[int, int], dilation: tuple[int, int], m: int, seed: int) -> torch.Tensor:
    """All patches ``(w, s, d)`` inside windows of twice the filter's side (or what the inputs have room for)."""
    reach = [(side - 1) * step + 1 for side, step in zip(size, dilation)]
    window = tuple(min(2 * one, int(room)) for one, room in zip(reach, inputs.shape[2:]))
    shifts = math.prod(one - own + 1 for one, own in zip(window, reach))
    length = inputs.shape[1] * size[0] * size[1]
    count = max(1, min(m, 5_000, 2 * NUMBERS // 3 // (length * shifts)))
    drawn = sample_patches(inputs, window, count, seed)  # type: ignore[arg-type]
    return F.unfold(drawn, size, dilation=dilation).transpose(1, 2).contiguous()


def map_grid(n: int) -> tuple[int, int]:
    """A nearly square grid with room for ``n`` units."""
    rows = math.isqrt(n)
    return rows, -(-n // rows)
