"""Row space: the few coordinates in which a tall or wide feature matrix really lives.

With n rows of d features, all that the rows say about each other lies in at most min(n - 1, d) directions. Rotating
onto them loses nothing (distances, inner products, squared errors and L2 penalties are kept) and turns tens of
thousands of columns into hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


def row_space(rows: np.ndarray, *, centred: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Rotate rows onto their principal directions by a thin singular value decomposition.

    Parameters
    ----------
    rows : array, shape (n, d)
    centred : bool
        The rows' mean is zero, so that one direction fewer than rows is enough.

    Returns
    -------
    coordinates : float32 array, shape (n, r)
        The rows in the new basis, r <= min(n - 1, d) (n when not centred), columns by falling variance.
    basis : float32 array, shape (d, r)
        Orthonormal columns; ``coordinates = rows @ basis`` and, for these rows, ``rows = coordinates @ basis.T``.
    """
    exact = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64))
    n, d = exact.shape
    # The smaller Gram matrix in double precision: its eigenvectors cost far less than a decomposition of the rows.
    variance, vectors = torch.linalg.eigh(exact.T @ exact if d < n else exact @ exact.T)
    keep = torch.argsort(variance, descending=True)[: min(n - 1 if centred else n, d)]
    keep = keep[variance[keep] > max(float(variance[-1]), 0.0) * 1e-12]
    if not len(keep):  # constant features: one arbitrary direction keeps shapes sound
        basis = np.zeros((d, 1), dtype=np.float32)
        basis[0] = 1.0
        return np.zeros((n, 1), dtype=np.float32), basis
    if d < n:
        basis64 = vectors[:, keep]
    else:
        # Directions far below the first are blurred by rounding; a QR step makes all columns orthonormal again.
        basis64, triangle = torch.linalg.qr(exact.T @ (vectors[:, keep] / variance[keep].sqrt()))
        basis64 = basis64 * torch.sign(torch.diagonal(triangle))
    return (exact @ basis64).float().numpy(), basis64.float().numpy()


@dataclass(frozen=True)
class Frame:
    """Where a small network sees its rows from: ``z = (x - mean) @ basis / scale`` (no rotation when basis is None)."""

    mean: np.ndarray  # (d,)
    basis: np.ndarray | None  # (d, r)
    scale: float

    def inward(self, weight: np.ndarray) -> np.ndarray:
        """First-layer weights ``(h, r)`` on z as weights ``(h, d)`` on ``x - mean``."""
        return np.asarray((weight if self.basis is None else weight @ self.basis.T) / self.scale, dtype=np.float32)

    def outward(self, weight: np.ndarray) -> np.ndarray:
        """Last-layer weights ``(r, h)`` or biases ``(r,)`` of z as those of ``x - mean``: ``(d, h)`` or ``(d,)``."""
        return np.asarray((weight if self.basis is None else self.basis @ weight) * self.scale, dtype=np.float32)


def framed(rows: np.ndarray, *, rotate: bool) -> tuple[np.ndarray, Frame]:
    """Centre rows ``(n, d)``, rotate them onto their row space when asked, and give all entries a mean square of 1.

    The one common scale keeps what the network is asked to reproduce (a mean squared error of 1 is then that of
    predicting the mean), while its usual start and step sizes fit whatever the width was. After the rotation comes a
    fixed random one: coordinates by falling variance make Adam, which steps equally far in each, learn the noise of the
    last as fast as the signal of the first; turned at random, each holds a share of everything, as columns do.
    """
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    Z, basis = rows - mean, None
    if rotate:
        Z, basis = row_space(Z)
        turn = _random_rotation(Z.shape[1])
        Z, basis = Z @ turn, basis @ turn
    scale = float(np.sqrt((Z.astype(np.float64) ** 2).mean())) or 1.0
    return (Z / np.float32(scale)).astype(np.float32), Frame(mean, basis, scale)


def _random_rotation(size: int) -> np.ndarray:
    """An orthogonal matrix ``(size, size)``, float32, always the same one for a size."""
    gaussian = np.random.default_rng(size).normal(size=(size, size))
    return torch.linalg.qr(torch.from_numpy(gaussian))[0].float().numpy()
