"""Row space: the few coordinates in which a tall or wide feature matrix really lives.

With n rows of d features, all that the rows say about each other lies in at most min(n - 1, d) directions. Rotating onto
them loses nothing (distances, inner products, squared errors and L2 penalties are kept) and turns tens of thousands of
columns into hundreds.
"""

from __future__ import annotations

import numpy as np
import torch


def row_space(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate centred rows onto their principal directions by a thin singular value decomposition.

    Parameters
    ----------
    centred : array, shape (n, d)
        Rows whose mean is zero.

    Returns
    -------
    coordinates : float32 array, shape (n, r)
        The rows in the new basis, r <= min(n - 1, d), columns by falling variance.
    basis : float32 array, shape (d, r)
        Orthonormal columns; ``coordinates = centred @ basis`` and, for these rows, ``centred = coordinates @ basis.T``.
    """
    rows = torch.from_numpy(np.ascontiguousarray(centred, dtype=np.float64))
    n, d = rows.shape
    # The smaller Gram matrix in double precision: its eigenvectors cost far less than a decomposition of the rows.
    variance, vectors = torch.linalg.eigh(rows.T @ rows if d < n else rows @ rows.T)
    keep = torch.argsort(variance, descending=True)[: min(n - 1, d)]
    keep = keep[variance[keep] > max(float(variance[-1]), 0.0) * 1e-12]
    if not len(keep):  # constant features: one arbitrary direction keeps shapes sound
        basis = np.zeros((d, 1), dtype=np.float32)
        basis[0] = 1.0
        return np.zeros((n, 1), dtype=np.float32), basis
    if d < n:
        basis64 = vectors[:, keep]
    else:
        # Directions far below the first are blurred by rounding; a QR step makes all columns orthonormal again.
        basis64, triangle = torch.linalg.qr(rows.T @ (vectors[:, keep] / variance[keep].sqrt()))
        basis64 = basis64 * torch.sign(torch.diagonal(triangle))
    return (rows @ basis64).float().numpy(), basis64.float().numpy()
