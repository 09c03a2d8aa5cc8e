"""Architectures of ours that timm lacks: a written list, made known to timm when names are looked up.

A builder is a plain function ``name(pretrained=False, **settings)`` in timm's way; its module holds ``default_cfgs``.
"""

from __future__ import annotations

from importlib import import_module

OURS: dict[str, tuple[str, ...]] = {
    "b_cosification": ("b_cos",),
    "convit": ("convit", "convit_mini", "convit_tiny_plus", "convit_small_plus", "convit_base_plus"),
    "cvt": ("cvt_13", "cvt_21", "cvt_w24", "cvt_mini", "cvt_tiny"),
    "halonet": (
        *("halonet_h0", "halonet_h2", "halonet_h3", "halonet_h4", "halonet_h5", "halonet_h6", "halonet_h7"),
        "halonet_tiny",
    ),
    "inception_v4": ("inception_resnet_v1", "inception_resnet_v2_paper", "inception_mini", "inception_resnet_mini"),
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
