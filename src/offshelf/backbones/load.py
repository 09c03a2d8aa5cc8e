"""From a name or a folder to a frozen network with a card.

Weights are used only when every tensor of the network came out of the file: a network that is in part random without
anyone having asked for it is refused, as are pickles. Preprocessing comes from the weights' own configuration.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offshelf.backbones import embedded, hub
from offshelf.backbones.card import BackboneCard, WeightsOrigin, weights_hash
from offshelf.backbones.names import Source, architectures, resolve
from offshelf.backbones.readout import read
from offshelf.engine.files import read_json
from offshelf.errors import BackboneError, RunError, near

_PREPROCESSING = ("mean", "std", "input_size", "interpolation", "crop_pct")


def load_backbone(
    name_or_path: str | os.PathLike[str], *, num_classes: int | None = 0, drop_path: float = 0.0
) -> nn.Module:
    """Load a network, frozen and in evaluation mode, with what is known about it as ``.card``.

    Parameters
    ----------
    name_or_path : str or path
        ``arch.tag``, ``arch`` (timm's default tag), ``arch.random`` or ``arch.random_7`` (random weights, seed 0 or 7),
        ``arch.offshelf_<method>_<data>`` (comes with the package), ``hf-hub:owner/name``, a folder with ``config.json``
        and ``model.safetensors``, or the folder of a run that trained a network.
    num_classes : int or None
        0: no classifier, the network gives pooled features (B, width). None: the weights' own classifier is kept.
        Another number: a new classifier, drawn from torch's global generator.
    drop_path : float
        Largest chance with which training leaves out a residual block's path for a picture (Huang et al. 2016,
        stochastic depth), rising from 0 over the depth; it has no effect in evaluation mode.

    Returns
    -------
    torch.nn.Module
        A timm network with ``.card``, a `BackboneCard`.

    Raises
    ------
    BackboneError
        For unknown names (with near ones), weights that cannot be had (with those that can), weights that are damaged,
        incomplete or pickled; for ``drop_path`` in a network that has no paths to drop.
    """
    source = resolve(name_or_path)
    make = {"random": _random, "tag": _tagged, "hub": _repository}.get(source.kind, _local)
    try:
        model, origin, licence, note = make(source, **({"drop_path_rate": drop_path} if drop_path else {}))
    except BackboneError as error:
        if drop_path and "drop_path_rate" in str(error.__cause__):
            raise _no_paths(source.name, drop_path) from error
        raise
    if drop_path and not any(getattr(m, "drop_prob", None) for m in model.modules() if type(m).__name__ == "DropPath"):
        raise _no_paths(source.name, drop_path)
    if num_classes is not None:
        _replace_classifier(model, num_classes)
    model.eval().requires_grad_(False)
    model.card = _card(model, source.name, origin, licence, note)  # type: ignore[assignment]
    return model


def _no_paths(name: str, drop_path: float) -> BackboneError:
    return BackboneError(
        f"{name}: drop_path={drop_path}, but this network has no residual paths to drop; expected 0 for it. Residual "
        "networks and transformers of some depth have them (resnet18, convnext_atto, vit_tiny_patch16_224)."
    )


def _random(source: Source, **settings: Any) -> tuple[nn.Module, WeightsOrigin, str, str]:
    model = _create(source.name, source.architecture, source.seed, pretrained=False, **settings)
    return model, "random", "none needed (random weights)", f"drawn from seed {source.seed}; has seen no data"


def _tagged(source: Source, **settings: Any) -> tuple[nn.Module, WeightsOrigin, str, str]:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(source.name)
    assert config is not None  # names.resolve found it
    if not config.hf_hub_id:
        file = str(config.url or "a pickled file").rpartition("/")[2]
        raise BackboneError(hub.pickle_refusal(f"{source.name}: timm's registry", [file]))
    path = _fetched(source, config.hf_hub_id, hub.WEIGHTS_FILE)
    _check_weights(path, source.name)
    # by its tag's name and not by its settings: timm asks for some tags by name (ConvNeXt V2's fcmae)
    overlay = {"file": str(path), "custom_load": False}
    model = _create(source.name, source.name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    _forget_place(model)
    return model, "hub", config.license or "unknown", _origin(config.hf_hub_id, path)


def _repository(source: Source, **settings: Any) -> tuple[nn.Module, WeightsOrigin, str, str]:
    config = _fetched(source, source.repository, hub.CONFIG_FILE, source.revision)
    weights = _fetched(source, source.repository, hub.WEIGHTS_FILE, source.revision)
    if config.parent != weights.parent:
        raise BackboneError(
            f"{source.name}: its config.json and model.safetensors in the hub cache are of different revisions; "
            f"remove {weights.parents[2]} and load it again"
        )
    model, licence, _ = _from_folder(source.name, config.parent, **settings)
    return model, "hub", licence, _origin(source.repository, weights)


def _local(source: Source, **settings: Any) -> tuple[nn.Module, WeightsOrigin, str, str]:
    model, licence, note = _from_folder(source.name, source.folder, **settings)
    if source.kind == "run":
        return model, "run", licence, note
    if source.kind == "folder":
        return model, "folder", licence, note
    card = embedded.embedded_card(source.name)
    return model, "embedded", card["licence"], f"learnt from {card['data']}; {card['accuracy']} ({card['date']})"


def _from_folder(name: str, folder: Path, **settings: Any) -> tuple[nn.Module, str, str]:
    """A network out of a folder in timm's format, its licence and its note."""
    config = _read_config(name, folder)
    _check_weights(folder / hub.WEIGHTS_FILE, name)
    model = _create(name, f"local-dir:{folder}", pretrained=True, **settings)
    recorded = config.get("offshelf") or {}
    licence = recorded.get("licence") or config.get("pretrained_cfg", config).get("license") or "unknown"
    _forget_place(model)
    return model, str(licence), str(recorded.get("note") or "")


def _forget_place(model: Any) -> None:
    """Where the weights lay on this machine is nothing to export."""
    model.pretrained_cfg.update(file=None, source=None)


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / hub.CONFIG_FILE
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in hub.PICKLES)
    if not (folder / hub.WEIGHTS_FILE).is_file():
        if pickles:
            raise BackboneError(hub.pickle_refusal(name, pickles))
        raise BackboneError(f"{name}: {hub.WEIGHTS_FILE} is missing; expected it beside config.json, in timm's format")
    if not path.is_file():
        raise BackboneError(
            f"{name}: config.json is missing; expected one with 'architecture' and 'pretrained_cfg' beside "
            f"{hub.WEIGHTS_FILE} (timm.models.save_for_hf and save_backbone write it)"
        )
    try:
        config = read_json(path)
    except RunError as error:
        raise BackboneError(str(error)) from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise BackboneError(f"{path}: it names no 'architecture'; expected a config.json in timm's format")
    architecture = config["architecture"]
    if architecture not in architectures():
        raise BackboneError(f"{path}: timm knows no architecture {architecture!r}{near(architecture, architectures())}")
    settings = config.get("pretrained_cfg")
    if isinstance(settings, dict):
        outside = [key for key in _PREPROCESSING if key in config and config[key] != settings.get(key)]
        if outside:
            raise BackboneError(
                f"{path}: {', '.join(outside)} stands outside 'pretrained_cfg', where timm does not read it; "
                "move it there"
            )
        if settings.get("custom_load"):
            raise BackboneError(
                f"{path}: 'custom_load' asks for a foreign weight format; expected timm's own state dict"
            )
    return config


def _check_weights(path: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if not list(file.keys()):
                raise BackboneError(f"{name}: {path} holds no weights; restore or fetch it again")
    except SafetensorError as error:
        raise BackboneError(
            f"{name}: {path} is cut short or damaged ({error}); restore it, or remove it and fetch it again"
        ) from error


def _create(name: str, model_name: str, seed: int = 0, **settings: Any) -> nn.Module:
    """Build a network through timm, silently, with all of its weights or not at all; the draw disturbs no generator."""
    import timm
    from safetensors import SafetensorError

    try:
        with _listening() as said, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(model_name, **settings)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError, SafetensorError) as error:
        # torch writes "Error(s) in loading state_dict for ResNet:" and then the reasons, one a line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:4]) or type(error).__name__
        raise BackboneError(
            f"{name}: these weights do not make the network their configuration describes ({reason[:400]}); "
            "expected a complete folder in timm's format"
        ) from error
    _check_complete(name, model, said)
    return model


def _check_complete(name: str, model: nn.Module, said: list[str]) -> None:
    """Some families are loaded loosely by timm: what a file lacks stays as drawn, and only timm's log says so.

    A final normalisation that is missing is no fault: weights from masked pre-training have none (ConvNeXt V2 FCMAE),
    and it starts as the identity, not at random.
    """
    state = model.state_dict()
    for message in said:
        lacking = re.match(r"Missing keys \((.*?)\)", message)
        keys = lacking[1].split(", ") if lacking else []
        random = [key for key in keys if not (key.startswith("head.") and _constant(state[key]))]
        if random:
            shown = ", ".join(random[:4]) + (", ..." if len(random) > 4 else "")
            raise BackboneError(
                f"{name}: the weights lack {len(random)} of the network's tensors ({shown}), which would be random; "
                "expected a complete file"
            )


def _constant(tensor: torch.Tensor) -> bool:
    return bool((tensor == 0).all() or (tensor == 1).all())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Keep timm's log and warnings off the screen, and hand its messages over."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, listener = logging.getLogger("timm"), Listener()
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.handlers = [listener]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield messages
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def _fetched(source: Source, repository: str, filename: str, revision: str | None = None) -> Path:
    try:
        return hub.fetch(repository, filename, revision)
    except hub.UnreachableError as reason:
        here = []
        if embedded.EMBEDDED:
            here.append(f"{', '.join(embedded.EMBEDDED)} (with the package)")
        if cached := hub.cached_names():
            here.append(f"{', '.join(cached[:6])}{', ...' if len(cached) > 6 else ''} (in the hub cache)")
        random = f"{source.architecture or 'resnet18'}.random (random weights)"
        raise BackboneError(
            f"{source.name}: its weights are not on this machine and {reason}; "
            f"here are {'; '.join([*here, random])}, or give a folder"
        ) from None


def _origin(repository: str, path: Path) -> str:
    return f"{repository} at revision {path.parent.name[:12]}"


def _replace_classifier(model: Any, num_classes: int) -> None:
    if num_classes != 0 or model.num_classes != 0:
        with _listening():
            model.reset_classifier(num_classes)


def _card(model: nn.Module, name: str, origin: WeightsOrigin, licence: str, note: str) -> BackboneCard:
    from timm.data import resolve_model_data_config

    with _listening():
        pixels = resolve_model_data_config(model)
    channels, height, width = pixels["input_size"]
    if channels != 3 or len(pixels["mean"]) != 3:
        raise BackboneError(f"{name}: this network takes {channels} channel(s); expected 3 (red, green, blue)")
    if pixels["interpolation"] not in ("bilinear", "bicubic"):
        raise BackboneError(f"{name}: interpolation {pixels['interpolation']!r}; expected 'bilinear' or 'bicubic'")
    with torch.inference_mode():
        pooled = read(model, torch.zeros(1, 3, height, width))
    config: Any = model.pretrained_cfg
    return BackboneCard(
        name=name,
        architecture=config["architecture"],
        weights=origin,
        weights_hash=weights_hash(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        width=pooled.shape[1],
        input_size=(height, width),
        mean=tuple(float(value) for value in pixels["mean"]),  # type: ignore[arg-type]
        std=tuple(float(value) for value in pixels["std"]),  # type: ignore[arg-type]
        interpolation=pixels["interpolation"],
        crop_pct=float(pixels["crop_pct"]),
        licence=licence,
        note=note,
    )
