"""What is known about one loaded network: where its weights came from, what pixels it expects, its width.

The card travels with every number computed from the network, so it is plain data. Its ``weights_hash`` is taken of the
weights as they are used: the same trunk gives the same hash whether it was fetched, exported or loaded from a folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from offshelf.errors import UsageError

WeightsOrigin = Literal["random", "embedded", "folder", "hub", "run"]


@dataclass(frozen=True)
class BackboneCard:
    """Facts about one loaded network.

    Parameters
    ----------
    name : str
        What `load_backbone` was given, with timm's default tag written out.
    architecture : str
        The timm name of the design, without a tag.
    weights : {"random", "embedded", "folder", "hub", "run"}
        Where the weights came from.
    weights_hash : str
        Hexadecimal SHA-256 of the weights as used, see `weights_hash`.
    parameters : int
        Number of parameters of the network as loaded.
    width : int
        Length of the pooled feature vector, measured by one forward pass (timm's ``num_features`` is not it).
    input_size : tuple of int
        Height and width in pixels of the picture the network expects.
    mean, std : tuple of float
        Per-channel (red, green, blue) normalisation of pixels in [0, 1].
    interpolation : str
        ``"bilinear"`` or ``"bicubic"``.
    crop_pct : float
        Share of the resized short side that timm's evaluation geometry keeps.
    licence : str
        Licence of the weights as far as it is recorded, else ``"unknown"``.
    note : str
        One sentence on the origin of the weights; may be empty.
    """

    name: str
    architecture: str
    weights: WeightsOrigin
    weights_hash: str
    parameters: int
    width: int
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    licence: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.weights not in get_args(WeightsOrigin):
            expected = ", ".join(get_args(WeightsOrigin))
            raise UsageError(f"weights={self.weights!r} on the card of {self.name}: expected one of {expected}")

    @property
    def label(self) -> str:
        """The text that names this network in every output; it says so when the weights are random."""
        if self.weights == "random":
            seed = self.name.rpartition(".random")[2].lstrip("_") or "0"
            return f"{self.architecture} (random weights, seed {seed})"
        if self.weights in ("folder", "run"):
            return f"{PurePath(self.name).name} ({self.architecture}, weights of a {self.weights} of yours)"
        return self.name

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-able values; ``label`` is included, since readers of a run show it."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**values, "label": self.label}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneCard:
        """Make the card again from `to_dict`'s values; keys that are not the card's are left aside."""
        known: dict[str, Any] = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        for key in ("input_size", "mean", "std"):
            known[key] = tuple(known[key])
        return cls(**known)


def card_of(model: nn.Module) -> BackboneCard:
    """The card that `load_backbone` put on a network."""
    return cast(BackboneCard, model.card)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the state dict in the order of its names: name, dtype, shape and bytes of every tensor.

    A file's own hash would change with its metadata and its precision on disk; this one changes only with the numbers
    that are used. Memory layout (``channels_last``) and device make no difference.

    Parameters
    ----------
    model : nn.Module
        Any network; for features, one without a classifier, so that equal trunks give equal hashes.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def name_of(model: nn.Module) -> str:
    """A network's name for messages: of its card, else of its class."""
    card: Any = getattr(model, "card", None)
    return card.name if card is not None else type(model).__name__
