"""Write a network as a plain timm folder, which timm alone can load again with the same preprocessing and outputs.

The folder holds ``config.json`` (architecture, arguments, ``pretrained_cfg``) and ``model.safetensors``, and loads by
``timm.create_model("local-dir:FOLDER", pretrained=True)`` or `load_backbone`. Preprocessing is written inside
``pretrained_cfg``; at the top of the file timm would not read it. An architecture of ours that
timm lacks needs `offshelf.register_architectures()` before timm alone loads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.card import BackboneCard
from offshelf.engine.files import write_json, write_through
from offshelf.errors import BackboneError, UsageError

_SOURCE_KEYS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
_TEST_KEYS = ("test_input_size", "test_crop_pct", "test_pool_size")
_NOT_ARGUMENTS = ("pretrained", "num_classes", "img_size", "device", "dtype", "cache_dir", "pretrained_model_args")


def save_backbone(
    model: nn.Module,
    folder: str | Path,
    *,
    card: BackboneCard | None = None,
    pretrained_cfg: dict[str, Any] | None = None,
    model_args: dict[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
) -> Path:
    """Write ``model`` to ``folder``; each file appears whole, and ``config.json`` last.

    Parameters
    ----------
    model : nn.Module
        A timm network, with or without classifier.
    folder : path
        Made when missing; files of the same names in it are replaced.
    card : BackboneCard, optional
        Whose preprocessing, licence and note are written; by default the network's own ``.card`` where it has one.
    pretrained_cfg : dict, optional
        timm settings that go before the card's: ``input_size`` (3, H, W), ``mean``, ``std``, ``interpolation``,
        ``crop_pct``, ``license``, ...
    model_args : dict, optional
        Arguments the network was built with beyond its name, such as ``patch_size``; those timm remembers are
        written without being named.
    label_names : sequence of str, optional
        The classes of the classifier, in its order.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    BackboneError
        When timm could not build this network from what would be written.
    """
    from safetensors.torch import save_file

    network: Any = model
    card = card if card is not None else getattr(network, "card", None)
    settings = _settings(network, card, pretrained_cfg or {})
    if label_names is not None:
        if len(label_names) != network.num_classes:
            raise UsageError(
                f"label_names: {len(label_names)} names; expected one for each of the "
                f"classifier's {network.num_classes} classes"
            )
        settings["label_names"] = list(label_names)
    config: dict[str, Any] = {
        "architecture": settings.pop("architecture"),
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "model_args": _arguments(network, model_args),
        "pretrained_cfg": settings,
    }
    if card is not None:
        config["offshelf"] = {"licence": card.licence, "note": card.note, "from": card.label}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    _check_loads(config, tensors)

    place = Path(folder)
    # Without a config.json no reader takes the folder for complete, so it goes first and comes last.
    (place / "config.json").unlink(missing_ok=True)
    write_through(
        place / "model.safetensors", lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"})
    )
    write_json(place / "config.json", config)
    return place


def _settings(network: Any, card: BackboneCard | None, given: dict[str, Any]) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    settings = {
        key: value
        for key, value in dict(network.pretrained_cfg).items()
        if key not in _SOURCE_KEYS and value is not None
    }
    settings.update(resolve_model_data_config(network))
    if card is not None:
        settings.update(
            input_size=(3, *card.input_size),
            mean=card.mean,
            std=card.std,
            interpolation=card.interpolation,
            crop_pct=card.crop_pct,
        )
        if card.weights != "random" and card.licence != "unknown":
            settings["license"] = card.licence
    settings.update(given)
    size, strict = _built_for(network)
    if size is not None and tuple(settings["input_size"][1:]) != size:
        if strict and "input_size" in given:
            raise UsageError(f"input_size={given['input_size']}: this network is built for {size} pixels only")
        if strict or (card is None and "input_size" not in given):
            settings["input_size"] = (settings["input_size"][0], *size)
    settings["num_classes"] = network.num_classes
    for key in (*_TEST_KEYS, "pool_size", "label_offset"):  # recommendations for the weights this network came from
        settings.pop(key, None)
    if network.num_classes != network.pretrained_cfg.get("num_classes"):
        for key in ("label_names", "label_descriptions"):
            settings.pop(key, None)
    return settings


def _built_for(network: Any) -> tuple[tuple[int, int] | None, bool]:
    """Height and width for which a network with a table of positions is built, and whether it takes no other."""
    embed = getattr(network, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    if size is None:
        return None, False
    return (int(size[0]), int(size[1])), bool(getattr(embed, "strict_img_size", False))


def remembered_arguments(network: Any) -> dict[str, Any]:
    """The arguments that timm remembers a network was built with, beyond its name and what a reader sets anew."""
    return {
        key: value
        for key, value in getattr(network, "_model_args", {}).items()
        if key not in _NOT_ARGUMENTS and not key.endswith(("drop_rate", "drop_path_rate"))
    }


def _arguments(network: Any, given: dict[str, Any] | None) -> dict[str, Any]:
    arguments = {**remembered_arguments(network), **(given or {})}
    size, _ = _built_for(network)
    if size is not None:
        arguments["img_size"] = list(size)
    for key, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise BackboneError(
                f"model argument {key}={value!r} cannot be written as JSON; give one that can through model_args="
            ) from error
    return arguments


def _check_loads(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Build the network from what would be written, and compare names and shapes."""
    import timm

    register_architectures()
    name = config["architecture"]
    with torch.random.fork_rng(devices=[]):
        try:
            again = timm.create_model(
                name,
                pretrained=False,
                pretrained_cfg={**config["pretrained_cfg"], "architecture": name},
                **{**config["model_args"], "num_classes": config["num_classes"]},
            )
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise BackboneError(
                f"{name}: timm does not build this network from {config['model_args']} ({error}); give model_args="
            ) from error
    expected = {key: tuple(value.shape) for key, value in again.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise BackboneError(
            f"{name}: the network differs from what timm builds by this name ({len(wrong)} tensors, first {wrong[0]}: "
            f"{found.get(wrong[0])} instead of {expected.get(wrong[0])}), so the folder would not load; give the "
            "arguments it was built with as model_args=, or save it before changing its modules"
        )
