"""What an inspection asks of a network's attention: some pictures of a data set are shown, and the answer is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.backbones.card import card_of
from offshelf.backbones.preprocess import to_input
from offshelf.data.images import decode_image, read_bytes
from offshelf.data.samples import as_samples
from offshelf.errors import ImageError, NotApplicable
from offshelf.interpret.attention import attentions
from offshelf.interpret.locality import locality_study

LOOKED_AT = 32  # pictures of a data set that are drawn
NAMED = 4  # networks that get a sentence


def look(model: nn.Module, pictures: Any, seed: int) -> dict[str, Any] | None:
    """What `offshelf inspect` asks of a network: `locality_study` on some pictures of a data set, drawn from ``seed``.

    Pictures that cannot be read are left out and counted under ``unreadable``. None where the network has nothing that
    can be told: no attention over all patches, or no gates and no pictures.

    Raises
    ------
    ImageError
        When none of the pictures drawn can be read.
    """
    if not attentions(model):
        return None
    try:
        if pictures is None:
            return locality_study(model)
        shown, unreadable = _drawn(model, pictures, seed)
        return locality_study(model, shown) | {"unreadable": unreadable}
    except NotApplicable:
        return None


def hint(model: nn.Module, pictures: Any) -> str:
    """What to say to somebody who looks into a transformer without pictures; nothing otherwise."""
    return "" if pictures is not None or not attentions(model) else " With --data PICTURES its attention is looked at."


def _drawn(model: nn.Module, pictures: Any, seed: int) -> tuple[torch.Tensor, int]:
    """Some pictures of a data set as the network takes them, and how many of those drawn cannot be read."""
    card = card_of(model)
    samples = as_samples(pictures)
    readable, errors = [], []
    for row in np.sort(np.random.default_rng(seed).permutation(len(samples))[:LOOKED_AT]):
        name = samples.name(row)
        try:
            picture = decode_image(read_bytes(samples.image(row)), name=name, at_least=2 * max(card.input_size))
        except ImageError as error:
            errors.append(error)
            continue
        readable.append(to_input(picture, card))
    if not readable:
        raise errors[0] if errors else NotApplicable("no pictures to look at")
    return torch.stack(readable), len(errors)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What was found, ``{network: study}``, in a sentence a network; the first `NAMED` alone."""
    said = []
    for network, study in list(found.items())[:NAMED]:
        far = [layer["non_locality"] for layer in study["layers"] if layer["non_locality"] is not None]
        gates = [layer["gate"] for layer in study["layers"] if layer["gate"] is not None]
        parts = []
        if far:
            parts.append(
                f"heads look {far[0]:.2f} patches away in the first layer and {far[-1]:.2f} in the last (everywhere "
                f"alike: {study['uniform']:.2f})"
            )
        if gates:
            parts.append(
                f"gates give positions a share of {gates[0]:.3f} in the first layer, {min(gates):.3f} at least"
            )
        said.append(f"{network}: {', and '.join(parts)}.")
    return said
