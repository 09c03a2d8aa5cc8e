"""Training of small networks on feature rows in memory: Adam, early stopping on rows left out, best epoch restored.

Networks here are lists of tensors ``[W1, b1, W2, b2, ...]`` with ``W`` as (out, in). One thread is used throughout, so
that a seed gives the same bytes whatever the machine's thread count; the count is put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from offshelf.errors import UsageError

Activation = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": torch.nn.functional.gelu,
    "elu": torch.nn.functional.elu,
}


def activation_named(name: str | None) -> Activation:
    """The function behind a name; None is the identity."""
    if name is None:
        return ACTIVATIONS["identity"]
    if name not in ACTIVATIONS:
        raise UsageError(f"activation={name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside, the former number again outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def affine_stack(sizes: Sequence[int], generator: torch.Generator) -> list[torch.Tensor]:
    """Weights and biases for the layer widths ``sizes``, uniform within 1 / sqrt(fan in), as in torch.nn.Linear."""
    parameters = []
    for fan_in, out in zip(sizes, sizes[1:]):
        bound = fan_in**-0.5
        for shape in ((out, fan_in), (out,)):
            parameters.append((torch.rand(shape, generator=generator) * 2 - 1) * bound)
    return parameters


def through(parameters: Sequence[torch.Tensor], x: torch.Tensor, activations: Sequence[Activation]) -> torch.Tensor:
    """Rows ``(n, in)`` through the affine layers, each followed by its activation."""
    for layer, activation in enumerate(activations):
        x = activation(torch.nn.functional.linear(x, parameters[2 * layer], parameters[2 * layer + 1]))
    return x


@dataclass
class History:
    """Mean losses after each epoch; ``best_epoch`` counts from 1 and is the one whose weights are kept."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists and numbers."""
        return {"train": self.train, "validation": self.validation, "best_epoch": self.best_epoch}


def validation_rows(
    n: int, fraction: float, seed: int, groups: Any = None, keep_in_training: np.ndarray | None = None
) -> np.ndarray:
    """Choose the rows that early stopping watches, as sorted indices (none when ``fraction`` is 0).

    Parameters
    ----------
    groups : array-like, shape (n,), optional
        Rows of one group are never divided: whole groups are taken until the fraction is reached.
    keep_in_training : bool array, shape (n,), optional
        Rows that must not be taken (the only row of a class).
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"validation_fraction={fraction}: expected a share from 0 (no early stopping) to below 1")
    if fraction == 0:
        return np.empty(0, dtype=np.int64)
    unit = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(unit) != n:
        raise UsageError(f"groups has {len(unit)} entries, expected {n}: one for each row")
    units = np.unique(unit)
    if keep_in_training is not None:
        units = np.setdiff1d(units, unit[keep_in_training])
    wanted = max(1, round(fraction * n))
    taken = np.zeros(n, dtype=bool)
    for one in np.random.default_rng(seed).permutation(units):
        members = unit == one
        if taken.sum() + members.sum() < n and taken.sum() < wanted:
            taken |= members
    return np.flatnonzero(taken)


def train(
    parameters: list[torch.Tensor],
    loss: Callable[[torch.Tensor], torch.Tensor],
    train_rows: np.ndarray,
    watched_rows: np.ndarray,
    *,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    generator: torch.Generator,
    weight_decay: float = 0.0,
) -> History:
    """Fit ``parameters`` in place.

    Parameters
    ----------
    loss : callable
        Mean loss of the rows with the given indices.
    train_rows, watched_rows : int arrays
        Without watched rows all ``max_epochs`` are run; else training ends after ``patience`` epochs without a lower
        watched loss, and the weights of the best epoch are put back.
    weight_decay : float
        L2 penalty on all parameters, added to the gradient.

    Returns
    -------
    History
    """
    for name, value in (("batch_size", batch_size), ("max_epochs", max_epochs), ("patience", patience)):
        if value < 1:
            raise UsageError(f"{name}={value}: expected at least 1")
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    rows, watched = torch.from_numpy(train_rows), torch.from_numpy(watched_rows)
    history, best, lowest = History(), [p.detach().clone() for p in parameters], float("inf")
    for epoch in range(1, max_epochs + 1):
        total = 0.0
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            batch_loss = loss(batch)
            batch_loss.backward()
            optimizer.step()
            total += float(batch_loss.detach()) * len(batch)
        history.train.append(total / len(rows))
        if not len(watched):
            history.best_epoch = epoch
            continue
        with torch.no_grad():
            history.validation.append(float(loss(watched)))
        if history.validation[-1] < lowest:
            lowest, history.best_epoch = history.validation[-1], epoch
            best = [p.detach().clone() for p in parameters]
        elif epoch - history.best_epoch >= patience:
            break
    for parameter, kept in zip(parameters, best):
        parameter.requires_grad_(False)
        if len(watched):
            parameter.copy_(kept)
    return history
