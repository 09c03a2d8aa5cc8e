from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError
from offshelf.interpret.saliency import class_activation, data_uri, overlaid


def network(name: str = "test_byobnet.random", classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = load_backbone(name, num_classes=classes)
    nn.init.normal_(model.get_classifier().weight)  # type: ignore[operator]
    return model


def test_with_average_pooling_and_a_linear_head_it_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: the sum over channels of the classifier's weight times the map; Grad-CAM is that over h w."""
    model = network()
    x = torch.randn(4, 3, 96, 96)
    classes = torch.tensor([0, 1, 2, 1])
    found = class_activation(model, x, classes)
    last = model.forward_features(x)  # type: ignore[operator]
    by_hand = torch.einsum("bc,bchw->bhw", model.get_classifier().weight[classes], last)  # type: ignore[operator]
    assert found.shape == (4, 3, 3)
    torch.testing.assert_close(found * 9, by_hand.relu().float(), rtol=1e-4, atol=1e-5)
    assert (by_hand < 0).any(), "a map without what speaks against the class would not test the cut at 0"
    scores = by_hand.mean(dim=(1, 2)) + model.get_classifier().bias[classes]  # type: ignore[operator]
    torch.testing.assert_close(scores, model(x).gather(1, classes[:, None])[:, 0], rtol=1e-4, atol=1e-5)


def test_each_picture_is_explained_by_itself_and_the_network_is_left_as_it_was() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, classes = torch.randn(3, 3, 64, 64), torch.tensor([2, 0, 1])
    together = class_activation(model, x, classes)
    alone = torch.cat([class_activation(model, x[i : i + 1], classes[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_map_lies_where_the_evidence_is() -> None:
    """A network that sums one colour: the map of its class is the pooled picture of that colour."""

    class Red(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.fc.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])

        def forward_intermediates(self, x, indices, output_fmt):  # type: ignore[no-untyped-def]
            final = nn.functional.avg_pool2d(x, 8)
            return final, [final]

        def forward_head(self, x):  # type: ignore[no-untyped-def]
            return self.fc(x.mean(dim=(2, 3)))

    x = torch.zeros(1, 3, 32, 32)
    x[0, 0, :8, 24:] = 1.0  # red in the upper right
    x[0, 1, 24:, :8] = 1.0  # green in the lower left
    red, green = (class_activation(Red(), x, torch.tensor([k]))[0] for k in (0, 1))
    assert red.argmax() == 3 and green.argmax() == 12
    assert (red > 0).sum() == (green > 0).sum() == 1


def test_transformers() -> None:
    x, classes = torch.randn(2, 3, 160, 160), torch.tensor([0, 1])
    with pytest.raises(BackboneError, match="does not rest on its last map"):
        class_activation(network("test_vit.random"), x, classes)  # reads its class token
    model = network("test_vit2.random")
    if getattr(model, "global_pool", "") != "avg":
        pytest.skip("timm's test_vit2 no longer takes the mean of its tokens")
    assert class_activation(model, torch.randn(2, 3, 64, 64), classes).shape == (2, 4, 4)


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(BackboneError, match="Linear gives no intermediate maps"):
        class_activation(nn.Linear(3, 2), torch.zeros(1, 3), torch.tensor([0]))


def test_overlay_by_hand() -> None:
    picture = np.full((3, 4, 4), 100, np.uint8)
    heat = np.zeros((2, 2), np.float32)
    assert np.array_equal(overlaid(picture, heat), picture)
    heat[0, 0] = 5.0
    shown = overlaid(picture, heat, strength=0.5)
    assert shown[:, 0, 0].tolist() == [178, 178, 50]  # half of 100 and half of yellow (255, 255, 0)
    assert shown[:, 3, 3].tolist() == [100, 100, 100]


def test_data_uri_is_a_small_jpeg() -> None:
    uri = data_uri(np.full((3, 50, 200), 80, np.uint8), side=100)
    kind, code = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(code)))
    assert image.size == (100, 25)
    assert abs(np.asarray(image).astype(int) - 80).max() <= 2
