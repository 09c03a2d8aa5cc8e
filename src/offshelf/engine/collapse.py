"""Has a network stopped telling pictures apart? Two numbers from its features, and a rule that seldom cries wolf.

Source of the effective rank: Garrido et al., "RankMe" (ICML 2023, arXiv 2210.02885), equation 1; of the normalised
standard deviation: Chen and He, "Exploring Simple Siamese Representation Learning" (CVPR 2021), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Far below what networks show that were never trained (rank 3.8 and more, deviation 0.14 and more, on pictures of
# stripes and discs through seven designs), so that a low start is not taken for a collapse.
LEAST_RANK = 1.5
LEAST_DEVIATION = 0.01


def effective_rank(features: torch.Tensor) -> float:
    """The number of directions that the rows of ``features`` (n, d) use: exp(entropy of the singular values' shares).

    1 when all rows are multiples of one, ``min(n, d)`` when all singular values are equal; 0 when all are zero; NaN
    when any value is not finite. The rows are not centred, as in the paper.
    """
    import torch

    rows = features.detach().double().cpu()
    if not bool(torch.isfinite(rows).all()):
        return math.nan
    values = torch.linalg.svdvals(rows)
    # Rows of float32 that ought to be equal differ in their last bits; such values are no directions.
    values = values[values > 1e-7 * values.max()] if len(values) else values
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def normalised_std(features: torch.Tensor) -> float:
    """Mean over the d dimensions of the standard deviation of the rows at unit length, times the root of d.

    0 when all rows of ``features`` (n, d) point one way, about 1 when they point everywhere alike. NaN when any value
    is not finite.
    """
    import torch

    rows = torch.nn.functional.normalize(features.detach().double().cpu(), dim=1)
    return float(rows.std(dim=0, unbiased=False).mean() * rows.shape[1] ** 0.5)


def feature_numbers(features: torch.Tensor) -> dict[str, float | None]:
    """``feature_rank`` and ``feature_std`` of features (n, d); None where they are not finite."""
    numbers = {"feature_rank": effective_rank(features), "feature_std": normalised_std(features)}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def collapsed(numbers: Mapping[str, Any]) -> str | None:
    """Why the features count as collapsed, in one sentence, or None when they do not.

    Parameters
    ----------
    numbers
        ``feature_rank`` and ``feature_std``, as of `feature_numbers`; other entries are not looked at.
    """
    rank, deviation = numbers["feature_rank"], numbers["feature_std"]
    if rank is None or deviation is None:
        return "The features are no longer finite numbers: the training diverged. Lower the learning rate."
    if deviation < LEAST_DEVIATION:
        return (
            f"The features collapsed: nearly the same for every picture (normalised standard deviation "
            f"{deviation:.4f}, below {LEAST_DEVIATION}). Lower the learning rate, or choose another method."
        )
    if rank < LEAST_RANK:
        return (
            f"The features collapsed onto one direction (effective rank {rank:.2f}, below {LEAST_RANK}). "
            "Lower the learning rate, or choose another method."
        )
    return None
