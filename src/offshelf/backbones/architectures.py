"""Architectures of ours that timm lacks: a written list, made known to timm when names are looked up.

A builder is a plain function ``name(pretrained=False, **settings)`` in timm's way; its module holds ``default_cfgs``.
"""

from __future__ import annotations

from importlib import import_module

OURS: dict[str, tuple[str, ...]] = {
    "plain_cnn": ("plain_cnn",),
}
"""Module of ``backbones`` -> the names of its builders."""


def register_architectures() -> None:
    """Make every architecture of ours known to timm, so that ``timm.create_model`` and all verbs build it by name.

    It may be called any number of times. `load_backbone` calls it; call it yourself before ``timm.create_model``.
    """
    from timm.models import is_model, register_model

    for module, builders in OURS.items():
        missing = [name for name in builders if not is_model(name)]
        if missing:
            ours = import_module(f"offshelf.backbones.{module}")
            for name in missing:
                register_model(getattr(ours, name))
