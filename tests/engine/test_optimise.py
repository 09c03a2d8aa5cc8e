from __future__ import annotations

import torch
from timm.models.convit import ConVit

from offshelf.engine.optimise import freeze_unreached
from offshelf.transfer.classification import Classification


def test_a_buffer_made_in_the_first_pass_is_not_filled_with_its_placeholder() -> None:
    """timm's ConViT makes its relative coordinates then; zeros in their place would switch its positions off."""
    model = ConVit(img_size=16, patch_size=4, num_classes=2, embed_dim=4, depth=2, num_heads=4, local_up_to_layer=1)
    layer = model.blocks[0].attn
    assert layer.rel_indices.shape == (1, 1, 1, 3)
    batch = {"image": torch.randn(2, 3, 16, 16), "target": torch.tensor([0, 1])}
    assert freeze_unreached(Classification(model).train(), batch) == []
    assert torch.equal(layer.rel_indices, layer.get_rel_indices(16))
