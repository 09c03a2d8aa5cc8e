"""Fixed banks of filters that need no data: DCT, Gabor, edges, Haar, random signs.

A spatial bank is ``(n, kh, kw)`` of unit-norm filters; `coloured` makes it a bank over channels by a Kronecker product
with an orthonormal basis of them, for three channels grey and two opponents. Every bank is ordered so that its first
filters are the ones to take when fewer are wanted.

Sources: Ahmed, Natarajan and Rao (1974) for the DCT; Daugman (1985) for Gabor functions; Haar (1910), on lengths that
are no powers of two the unbalanced basis of Girardi and Sweldens (1997); Sobel and Feldman (1968).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from offshelf.errors import UsageError

ORIENTATIONS = 8
GREY_AND_OPPONENTS = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])


def dct_filters(height: int, width: int) -> np.ndarray:
    """All DCT-II filters ``(height * width, height, width)``, orthonormal, in zig-zag order; the first is constant.

    ``b_uv(x, y) = c_u c_v cos(pi (2x + 1) u / 2k) cos(pi (2y + 1) v / 2k)``, ``c_0 = sqrt(1/k)``, else ``sqrt(2/k)``.
    """
    rows, columns = dct_basis(height), dct_basis(width)
    places = sorted(
        ((u, v) for u in range(height) for v in range(width)),
        key=lambda one: (sum(one), one[0] if sum(one) % 2 else one[1]),
    )
    return np.stack([np.outer(rows[u], columns[v]) for u, v in places])


def dct_basis(length: int) -> np.ndarray:
    """The orthonormal DCT-II of one dimension, ``(length, length)``, one frequency a row."""
    place, frequency = np.arange(length), np.arange(length)[:, None]
    basis = np.cos(np.pi * (2 * place + 1) * frequency / (2 * length)) * math.sqrt(2 / length)
    basis[0] = math.sqrt(1 / length)
    return basis


def gabor_filters(
    height: int,
    width: int,
    orientations: int = ORIENTATIONS,
    wavelengths: Sequence[float] | None = None,
    phases: Sequence[float] = (0.0, math.pi / 2),
    aspect: float = 0.5,
) -> np.ndarray:
    """Gabor filters ``(orientations * wavelengths * phases, height, width)``, mean 0, unit norm.

    Orientations are ordered so that every beginning of the bank spreads over the half circle. Two wavelengths by
    default, half and the whole of the smaller side, but no fewer than 2.5 pixels.

    Raises
    ------
    UsageError
        For sides below 3 pixels, on which an orientation cannot be told.
    """
    side = min(height, width)
    if side < 3:
        raise UsageError(f"gabor on {height} x {width} filters: expected 3 x 3 or more. Take dct or a random rule.")
    waves = wavelengths or (max(2.5, side / 2), max(3.5, float(side)))
    angles = [math.pi * place / orientations for place in spread(orientations)]
    return np.stack(
        [gabor(height, width, angle, wave, phase, aspect) for angle in angles for wave in waves for phase in phases]
    )


def gabor(height: int, width: int, angle: float, wavelength: float, phase: float, aspect: float = 0.5) -> np.ndarray:
    """One Gabor filter ``(height, width)``: mean 0, unit norm; its deviation is 0.56 of the wavelength.

    ``exp(-(x'^2 + g^2 y'^2) / 2 s^2) cos(2 pi x' / wavelength + phase)``, ``x' = x cos t + y sin t``,
    ``y' = -x sin t + y cos t``.
    """
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    envelope = np.exp(-(along**2 + aspect**2 * across**2) / (2 * (0.56 * wavelength) ** 2))
    return unit(_centred(envelope * np.cos(2 * math.pi * along / wavelength + phase)))


def spread(n: int) -> list[int]:
    """0 to n - 1 in an order whose every beginning is spread: 0, n/2, n/4, 3n/4, ... (bits reversed)."""
    bits = max(1, (n - 1).bit_length())
    order = [int(format(i, f"0{bits}b")[::-1], 2) for i in range(2**bits)]
    return [i for i in order if i < n]


def edge_filters(height: int, width: int) -> np.ndarray:
    """Six derivatives ``(6, height, width)``, unit norm: Sobel along x and y, both diagonals, Laplacian, d2/dxdy.

    Larger sides are smoothed by binomial weights, so that 3 x 3 gives the well-known Sobel filters.

    Raises
    ------
    UsageError
        For sides below 3 pixels.
    """
    if min(height, width) < 3:
        raise UsageError(f"edges on {height} x {width} filters: expected 3 x 3 or more. Take dct or a random rule.")

    def parts(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        smooth = _binomial(length - 2)
        return tuple(np.convolve(smooth, taps) for taps in ([1, 2, 1], [-1, 0, 1], [1, -2, 1]))  # type: ignore[return-value]

    (flat_y, first_y, second_y), (flat_x, first_x, second_x) = parts(height), parts(width)
    across, down = unit(np.outer(flat_y, first_x)), unit(np.outer(first_y, flat_x))
    bend = unit(np.outer(flat_y, second_x)) + unit(np.outer(second_y, flat_x))
    found = (across, down, across + down, across - down, bend, np.outer(first_y, first_x))
    return np.stack([unit(one) for one in found])


def haar_filters(height: int, width: int) -> np.ndarray:
    """The Haar basis ``(height * width, height, width)``, orthonormal, coarse before fine; the first is constant."""
    rows, columns = haar_basis(height), haar_basis(width)
    places = sorted(((u, v) for u in range(height) for v in range(width)), key=lambda one: (max(one), sum(one), one))
    return np.stack([np.outer(rows[u], columns[v]) for u, v in places])


def haar_basis(length: int) -> np.ndarray:
    """Orthonormal Haar basis of any length ``(length, length)``: each step divides a stretch in two, as evenly as can
    be, and weighs the parts so that they cancel."""
    found, stretches = [np.full(length, 1 / math.sqrt(length))], [(0, length)]
    while stretches:
        first, last = stretches.pop(0)
        middle = (first + last + 1) // 2
        if last - first < 2:
            continue
        step, left, right = np.zeros(length), middle - first, last - middle
        step[first:middle], step[middle:last] = 1 / left, -1 / right
        found.append(unit(step))
        stretches += [(first, middle), (middle, last)]
    return np.stack(found)


def random_sign_filters(n: int, channels: int, height: int, width: int, seed: int) -> np.ndarray:
    """``(n, channels, height, width)`` of random signs, unit norm."""
    signs = np.random.default_rng([seed, 21]).integers(0, 2, (n, channels, height, width)) * 2.0 - 1
    return signs / math.sqrt(channels * height * width)


def coloured(bank: np.ndarray, channels: int, by_filter: bool = True) -> np.ndarray:
    """The Kronecker product of a spatial bank ``(n, kh, kw)`` with a basis of the channels.

    Parameters
    ----------
    by_filter
        Order: each filter in all colours before the next one, or the whole bank in grey before the other colours.

    Returns
    -------
    bank
        ``(n * channels, channels, kh, kw)``; unit norms stay, and orthonormal banks stay so. Three channels have grey
        and two opponents, other numbers the DCT-II along the channels, whose first vector is their mean.
    """
    basis = GREY_AND_OPPONENTS if channels == 3 else dct_basis(channels)
    product = np.einsum("cd,nhw->ncdhw", basis, bank)
    if not by_filter:
        product = product.swapaxes(0, 1)
    return product.reshape(-1, channels, *bank.shape[1:])


def unit(one: np.ndarray) -> np.ndarray:
    """A filter of norm 1."""
    return one / np.linalg.norm(one)


def _centred(one: np.ndarray) -> np.ndarray:
    return one - one.mean()


def _binomial(length: int) -> np.ndarray:
    """Rows of Pascal's triangle: 1; 1 1; 1 2 1; ..."""
    return np.array([math.comb(length - 1, i) for i in range(length)], dtype=float)
