"""fp32 islands: losses, statistics and targets in full precision, whatever runs around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def full_precision(near: torch.Tensor) -> Any:
    """A context without autocast on the device of ``near``; cast what enters with ``.float()``.

    On a CPU autocast leaves softmax, norms, sums and variances in bf16, unlike on a GPU.
    """
    import torch

    return torch.autocast(near.device.type, enabled=False)
