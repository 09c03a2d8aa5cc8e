from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch

from offshelf.backbones.input_size import set_input_size
from offshelf.errors import UsageError
from offshelf.transfer.finetune import FineTune


@pytest.mark.parametrize("name", ["convit_tiny", "vit_tiny_patch16_224", "test_resnet"])
def test_a_network_takes_the_new_size(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=2).eval()
    before = {key: value.shape for key, value in model.state_dict().items()}
    set_input_size(model, 64, 64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    changed = {key for key, value in model.state_dict().items() if value.shape != before[key]}
    assert changed == (set() if name == "test_resnet" else {"pos_embed"})


@pytest.mark.parametrize("name", ["convit_tiny", "vit_tiny_patch16_224"])
def test_pictures_smaller_than_a_patch_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"8 x 8 pixels: smaller than the network's patch of 16 x 16"):
        set_input_size(timm.create_model(name), 8, 8)


def test_fine_tuning_resizes_a_vision_transformer() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    fitted = FineTune("vit_tiny_patch16_224.random", image_size=32, epochs=1, batch_size=4).fit(pictures, [0, 1, 0, 1])
    assert tuple(fitted.model_.patch_embed.img_size) == (32, 32)  # type: ignore[union-attr]
    assert fitted.predict_proba(pictures).shape == (4, 2)
