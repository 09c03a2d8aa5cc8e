from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from offshelf.backbones.embedded import EMBEDDED
from offshelf.backbones.export import save_backbone
from offshelf.backbones.fresh import fresh_copy
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError


def test_a_fresh_copy_has_the_same_tensors_and_other_weights() -> None:
    model = load_backbone(EMBEDDED[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, again, other = fresh_copy(model, 3), fresh_copy(model, 3), fresh_copy(model, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    first = "conv1.0.weight"
    assert {key: value.shape for key, value in one.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert torch.equal(one.state_dict()[first], again.state_dict()[first])
    assert not torch.equal(one.state_dict()[first], other.state_dict()[first])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_settings_beyond_the_name_are_kept(tmp_path: Path) -> None:
    settings = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    save_backbone(timm.create_model("resnet18", num_classes=0, **settings), tmp_path / "m", model_args=settings)
    assert fresh_copy(load_backbone(tmp_path / "m"), 0).layer1[0].conv1.weight.shape[0] == 8


def test_a_network_that_was_changed_has_no_fresh_copy() -> None:
    model = load_backbone("test_resnet.random")
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(BackboneError, match="it has other tensors than these weights"):
        fresh_copy(model, 0)
    model._model_args = {"no_such_setting": 1}
    with pytest.raises(BackboneError, match="timm does not build this network from .*no_such_setting"):
        fresh_copy(model, 0)
