"""A CvT out of a folder of transformers: its design, its weights and its preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.cvt import CvT
from offshelf.backbones.cvt_weights import State, convert_cvt_weights
from offshelf.engine.files import read_json
from offshelf.errors import BackboneError, RunError


def cvt_from_transformers(folder: str | Path, act_layer: str = "gelu") -> CvT:
    """The network of a folder that transformers' ``CvtModel`` or ``CvtForImageClassification`` was saved to.

    transformers itself is not needed. `save_backbone` writes the network as a folder that every verb takes.

    Parameters
    ----------
    folder : with ``config.json`` and ``model.safetensors``; ``preprocessor_config.json`` gives size, mean and standard
        deviation where it is there, else ImageNet's at 224 pixels.
    act_layer : "gelu" gives what transformers gives; "quick_gelu" is what the published weights were trained with.

    Returns
    -------
    CvT
        Frozen, in evaluation mode; without a classifier where the folder has none.

    Raises
    ------
    BackboneError
        For a folder of another kind, a design that ours does not cover, and weights that are damaged, pickled,
        incomplete or not this design's.
    """
    place = Path(folder)
    config, state = _read_config(place), _read_weights(place)
    settings, architecture = _design(place, config)
    settings |= {"num_classes": len(state.get("classifier.weight", ())), "act_layer": act_layer}
    register_architectures()
    with torch.random.fork_rng(devices=[]):  # every drawn weight is replaced
        model: Any = timm.create_model(
            architecture, pretrained_cfg_overlay=_preprocessing(place, config, settings), **settings
        )
    model.load_state_dict(convert_cvt_weights(state, model))
    model.pretrained_cfg["file"] = None
    return model.eval().requires_grad_(False)


def _read_config(place: Path) -> dict[str, Any]:
    config = _json(place / "config.json")
    if config.get("model_type") != "cvt":
        raise BackboneError(
            f"{place / 'config.json'}: model_type is {config.get('model_type')!r}; expected 'cvt', as transformers "
            "writes it. A folder in timm's format is loaded by load_backbone."
        )
    return config


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BackboneError(f"{path} is missing; expected a folder as transformers' save_pretrained writes it.")
    try:
        found = read_json(path)
    except RunError as error:
        raise BackboneError(str(error)) from error
    if not isinstance(found, dict):
        raise BackboneError(f"{path}: expected an object with settings, as transformers writes it.")
    return found


def _read_weights(place: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from offshelf.backbones.hub import PICKLES, WEIGHTS_FILE, pickle_refusal

    path = place / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in place.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise BackboneError(pickle_refusal(str(place), pickles))
        raise BackboneError(f"{path} is missing; expected the weights in one file beside config.json.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BackboneError(f"{path} is cut short or damaged ({error}); restore it, or fetch it again.") from error


_PER_STAGE = {
    "embed_dim": "embed_dims",
    "depth": "depths",
    "num_heads": "heads",
    "patch_sizes": "patch_kernels",
    "patch_stride": "patch_strides",
    "patch_padding": "patch_paddings",
}
_ALIKE = {
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "kernel_qkv": "qkv_kernel",
    "stride_kv": "kv_stride",
    "qkv_projection_method": "projection",
}
_DESIGNS = {(1, 4, 16): "cvt_21", (2, 2, 20): "cvt_w24"}


def _design(place: Path, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Arguments of `CvT`, and the name of the design they come nearest to."""
    lacking = [key for key in (*_PER_STAGE, *_ALIKE, "cls_token", "stride_q") if key not in config]
    if lacking:
        raise BackboneError(
            f"{place / 'config.json'}: {', '.join(lacking)} missing; expected every setting of the design, as "
            "transformers' save_pretrained writes them."
        )
    settings: dict[str, Any] = {ours: list(config[key]) for key, ours in _PER_STAGE.items()}
    settings |= {ours: _alike(place, key, config[key]) for key, ours in _ALIKE.items()}
    tokens, pads = list(config["cls_token"]), settings["qkv_kernel"] // 2
    others = {
        "cls_token": (any(tokens[:-1]), "a class token in the last stage only"),
        "stride_q": (any(stride != 1 for stride in config["stride_q"]), "1 in every stage"),
        "padding_q": (any(p != pads for p in config.get("padding_q", [pads])), f"{pads} in every stage"),
        "padding_kv": (any(p != pads for p in config.get("padding_kv", [pads])), f"{pads} in every stage"),
    }
    for key, (wrong, words) in others.items():
        if wrong:
            raise BackboneError(f"{place / 'config.json'}: {key} is {config[key]}; expected {words}. {_NOT_COVERED}")
    settings |= {"class_token": bool(tokens[-1]), "in_chans": config.get("num_channels", 3)}
    return settings, _DESIGNS.get(tuple(settings["depths"]), "cvt_13")


_NOT_COVERED = "Our CvT does not cover this design; run it in transformers."


def _alike(place: Path, key: str, values: list[Any]) -> Any:
    if len(set(values)) != 1:
        raise BackboneError(
            f"{place / 'config.json'}: {key} is {values}; expected one value for all stages. {_NOT_COVERED}"
        )
    return values[0]


def _preprocessing(place: Path, config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """timm's settings of the weights, out of ``preprocessor_config.json`` where there is one."""
    path = place / "preprocessor_config.json"
    found = _json(path) if path.is_file() else {}
    size = found.get("size", 224)
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height") or 224
    classes, names = settings["num_classes"], config.get("id2label") or {}
    overlay: dict[str, Any] = {
        "input_size": (settings["in_chans"], int(size), int(size)),
        "num_classes": classes,
        "interpolation": {2: "bilinear", 3: "bicubic"}.get(found.get("resample", 3), "bicubic"),
        "crop_pct": float(found.get("crop_pct") or 0.875),
    }
    overlay |= {ours: tuple(found[key]) for key, ours in (("image_mean", "mean"), ("image_std", "std")) if key in found}
    if classes and len(names) == classes:
        overlay["label_names"] = [str(names[str(number)]) for number in range(classes)]
    return overlay
