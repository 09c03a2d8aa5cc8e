"""offshelf: take a pre-trained backbone off the shelf, make it yours, and know that it works.

The public names, loaded when first used, so that ``import offshelf`` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_WHERE = {
    "DeepFeatures": "offshelf.transfer.deep_features",
    "FineTune": "offshelf.transfer.finetune",
    "HaloAttention": "offshelf.backbones.halo_attention",
    "KernelSVM": "offshelf.transfer.kernel_svm",
    "LogisticPath": "offshelf.transfer.logistic_path",
    "OffTheShelf": "offshelf.transfer.off_the_shelf",
    "OffshelfError": "offshelf.errors",
    "ReproductiveFeatures": "offshelf.transfer.reproductive_features",
    "RetrievalWhitening": "offshelf.transfer.off_the_shelf",
    "audit": "offshelf.jobs.audit",
    "battle": "offshelf.jobs.battle",
    "bcosify": "offshelf.backbones.b_cosification",
    "convit": "offshelf.backbones.convit",
    "cvt_from_transformers": "offshelf.backbones.cvt_transformers",
    "demo": "offshelf.jobs.demo",
    "design": "offshelf.jobs.design",
    "design_filters": "offshelf.interpret.filter_design",
    "evaluate": "offshelf.jobs.evaluate",
    "explain": "offshelf.jobs.explain",
    "explain_b_cos": "offshelf.interpret.b_cos_explanation",
    "finetune": "offshelf.jobs.finetune",
    "fit": "offshelf.jobs.fit",
    "haloing_cost": "offshelf.backbones.halo_cost",
    "inspect": "offshelf.jobs.inspect",
    "load_backbone": "offshelf.backbones.load",
    "locality_study": "offshelf.interpret.locality",
    "make_head": "offshelf.transfer.heads",
    "open_dataset": "offshelf.data.sources",
    "predict": "offshelf.jobs.predict",
    "pretrain": "offshelf.jobs.pretrain",
    "race": "offshelf.jobs.race",
    "register_architectures": "offshelf.backbones.architectures",
    "set_residual_scale": "offshelf.backbones.residual_scale",
}

__all__ = sorted(_WHERE)  # noqa: PLE0605


class _Package(ModuleType):
    """A verb may share its name with a room: ``offshelf.pretrain`` is the verb, whatever was imported before.

    Importing ``offshelf.pretrain.spark`` would otherwise put the room in the verb's place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'offshelf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
