"""Small pre-trained weights that come with the package, so that something real is there without a network.

Each lies in ``weights/<name>/``: ``config.json`` and ``model.safetensors`` in timm's format (matrices and kernels in
half precision, everything one-dimensional in single, since running variances do not fit into half), and ``card.json``,
which says what they learnt from, by which command, how well they do, and under which licence they may be used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from offshelf.engine.files import read_json, write_atomic, write_json
from offshelf.errors import BackboneError, UsageError, near

EMBEDDED: tuple[str, ...] = (
    "test_byobnet.offshelf_finetune_cifar10",
    "test_resnet.offshelf_finetune_cifar10",
    "test_efficientnet.offshelf_finetune_cifar10",
    "test_nfnet.offshelf_finetune_cifar10",
    "mobilenetv3_small_050.offshelf_finetune_cifar10",
    "lcnet_035.offshelf_finetune_cifar10",
    "test_mambaout.offshelf_finetune_cifar10",
    "test_convnext.offshelf_spark_cifar10",
)
"""The names of the embedded weights, the one that serves as a default first; a test compares them with the folder."""

WEIGHTS = Path(__file__).parent / "weights"

CARD_KEYS = ("data", "command", "accuracy", "licence", "date")
_NAME = re.compile(r"[a-z0-9_]+\.offshelf_[a-z0-9]+_[a-z0-9_]+")


def embedded_card(name: str) -> dict[str, Any]:
    """Read what is recorded about one of the embedded weights."""
    if name not in EMBEDDED:
        raise BackboneError(f"{name!r}: no such embedded weights{near(name, EMBEDDED)}")
    return read_json(WEIGHTS / name / "card.json")


def embed(folder: str | Path, name: str, card: dict[str, Any], target: Path | None = None) -> Path:
    """Make embedded weights from a trained folder in timm's format.

    Add ``name`` to `EMBEDDED` afterwards.

    Parameters
    ----------
    folder : path
        Holds ``config.json`` and ``model.safetensors``.
    name : str
        ``arch.offshelf_<method>_<data>``.
    card : dict
        At least ``data``, ``command``, ``accuracy``, ``licence`` and ``date``.
    target : Path, optional
        Where the folder ``name`` is put; the package's own ``weights`` by default.

    Returns
    -------
    Path
        The new folder.
    """
    from safetensors.torch import load_file, save

    source = Path(folder)
    config = read_json(source / "config.json")
    architecture = config.get("architecture")
    if not _NAME.fullmatch(name) or name.partition(".")[0] != architecture:
        raise UsageError(f"name={name!r}: expected '{architecture}.offshelf_<method>_<data>', in small letters")
    if missing := [key for key in CARD_KEYS if not card.get(key)]:
        raise UsageError(f"card of {name}: {', '.join(missing)} missing; expected all of {', '.join(CARD_KEYS)}")
    tensors = {key: _compact(key, value) for key, value in load_file(source / "model.safetensors").items()}
    place = (target or WEIGHTS) / name
    write_atomic(place / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json(place / "card.json", card)
    write_json(place / "config.json", config)
    return place


def _compact(key: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point() or value.ndim < 2:
        return value
    half = value.half()
    if not torch.isfinite(half).all():
        raise BackboneError(f"{key}: its values (up to {value.abs().max():.3g}) do not fit into half precision (65504)")
    return half
