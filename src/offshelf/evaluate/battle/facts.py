"""What is known about a backbone before it is asked anything: its kind of network, its size, what it learnt from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from offshelf.backbones.card import BackboneCard, card_of
from offshelf.backbones.embedded import embedded_card
from offshelf.backbones.load import load_backbone
from offshelf.backbones.names import Source, resolve
from offshelf.engine.files import read_json
from offshelf.evaluate.battle_of_the_backbones import size_tier

# What timm's tags say about the pictures a network learnt from: a word of the tag, the kind, the set, how many
# pictures. A tag is read from the left, its first match decides (`mae_in1k_ft_in1k` is self-supervised first).
TAGS = (
    (r"openai", "image-text", "WIT-400M", 400_000_000),
    (r"laion2b", "image-text", "LAION-2B", 2_000_000_000),
    (r"laion400m", "image-text", "LAION-400M", 400_000_000),
    (r"datacomp", "image-text", "DataComp-1B", 1_280_000_000),
    (r"webli|siglip", "image-text", "WebLI", None),
    (r"clip", "image-text", "image-text pairs", None),
    (r"lvd142m", "self-supervised", "LVD-142M", 142_000_000),
    (r"lvd1689m", "self-supervised", "LVD-1689M", 1_689_000_000),
    (r"dino|mae|moco|mim|beit|ssl|ijepa|vicreg|fcmae", "self-supervised", "ImageNet", None),
    (r"in21k|in22k|miil_in21k", "supervised", "ImageNet-21k", 14_000_000),
    (r"in12k", "supervised", "ImageNet-12k", 12_000_000),
    (r"in1k", "supervised", "ImageNet-1k", 1_281_167),
)


def facts_of(name: str) -> dict[str, Any]:
    """One backbone as a row of the leaderboard; loads it once.

    Returns
    -------
    dict
        ``name``, ``label``, ``architecture``, ``tag``, ``family``, ``tier``, ``parameters``, ``pretraining``,
        ``pretraining_kind``, ``pretraining_images``, ``input_size``, ``weights_hash``, ``identity``: what the key of a
        result says about the backbone.

    Raises
    ------
    BackboneError
        When it cannot be loaded.
    """
    source, model = resolve(name), load_backbone(name)
    card = card_of(model)
    kind, told, pictures = pretraining_of(source)
    return {
        "name": name,
        "label": card.label,
        "architecture": card.architecture,
        "tag": name.partition(".")[2] if source.kind in ("tag", "random", "embedded") else Path(name).name,
        "family": family_of(model),
        "tier": size_tier(card.parameters),
        "parameters": card.parameters,
        "pretraining": told,
        "pretraining_kind": kind,
        "pretraining_images": pictures,
        "input_size": card.input_size[0],
        "weights_hash": card.weights_hash,
        "identity": identity_of(card),
    }


def identity_of(card: BackboneCard) -> list[Any]:
    """What a number depends on besides the pictures: weights and preprocessing, not the name of a folder."""
    return [
        card.architecture,
        card.weights_hash,
        list(card.input_size),
        list(card.mean),
        list(card.std),
        card.interpolation,
    ]


def family_of(model: nn.Module) -> str:
    """The kind of network: "CNN", "ViT", "hybrid" (attention and more than a stem of convolutions) or "other"."""
    attention = any(
        "attention" in type(m).__name__.lower() and "pool" not in type(m).__name__.lower() for m in model.modules()
    )
    spatial = sum(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules())
    if attention:
        return "hybrid" if spatial > 1 else "ViT"
    return "CNN" if spatial > 1 else "other"


def pretraining_of(source: Source) -> tuple[str, str, int | None]:
    """Kind of pre-training, what it was, and from how many pictures; "unknown" where nothing says so."""
    if source.kind == "random":
        return "random", "random", None
    if source.kind == "embedded":
        method, _, data = source.name.partition(".offshelf_")[2].partition("_")
        kind = "supervised" if method == "finetune" else "self-supervised"
        return kind, f"{_method(method)}, {data}", embedded_card(source.name).get("images")
    if source.kind == "run":
        return _of_run(source.folder.parent)
    tag = source.name.partition(".")[2] if source.kind == "tag" else source.repository.partition(".")[2]
    for pattern, kind, data, pictures in TAGS:
        if re.search(pattern, tag):
            return kind, f"{kind}, {data}", pictures
    return "unknown", "unknown", None


def _of_run(folder: Path) -> tuple[str, str, int | None]:
    """What a run of pretrain or finetune says about itself."""
    record, results = read_json(folder / "run.json"), folder / "results.json"
    asked = record.get("arguments", {})
    data = Path(str(asked.get("source", ""))).name or "own data"
    found = read_json(results) if results.is_file() else {}
    pictures = (found.get("data") or {}).get("n_used") or (found.get("data") or {}).get("n")
    if record.get("verb") == "pretrain":
        return "self-supervised", f"{asked.get('method')}, {data}", pictures
    return "supervised", f"supervised, {data}", pictures


def _method(word: str) -> str:
    return "supervised" if word == "finetune" else word
