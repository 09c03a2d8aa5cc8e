"""Fine-tuning of B-cos networks: the loss, the settings, the estimator and its product."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offshelf.backbones.b_cosification import BCosNetwork
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.engine.optimise import adaptively_clip
from offshelf.errors import UsageError
from offshelf.interpret.b_cos_explanation import explain_b_cos
from offshelf.transfer.b_cos_recipe import BCosClassification, b_cos_loss, b_cos_network, b_cos_targets, optimisation
from offshelf.transfer.classification import binary_cross_entropy
from offshelf.transfer.finetune import FineTune


def made(n: int = 48, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose class is their colour."""
    random, labels = np.random.default_rng(0), np.arange(n) % classes
    pictures = random.integers(0, 90, (n, 3, 32, 32))
    pictures[np.arange(n), labels] += 150
    return pictures.astype(np.uint8), labels


def test_the_worked_numbers_of_the_loss() -> None:
    torch.testing.assert_close(b_cos_targets(torch.tensor([3]), 5), torch.tensor([[0.2, 0.2, 0.2, 1.0, 0.2]]))
    mixed = b_cos_targets(torch.tensor([[0.9, 0.1, 0.0, 0.0, 0.0]]), 5)
    torch.testing.assert_close(mixed, torch.tensor([[0.9, 0.2, 0.2, 0.2, 0.2]]))
    assert float(b_cos_loss(torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]))) == pytest.approx(math.log(2))
    # logits of -log(C - 1), the offset alone: each sigmoid is 1 / C, and only the right class has anything to gain
    logits = torch.full((1, 5), -math.log(4), requires_grad=True)
    b_cos_loss(logits, torch.tensor([3])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0, 0, 0, (0.2 - 1) / 5, 0]]), rtol=1e-5, atol=1e-7)


def test_several_labels_keep_their_own_loss() -> None:
    network: Any = b_cos_network(load_backbone("test_resnet.random", num_classes=2), 2.0)
    logits, target = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, float("nan")]])
    found = BCosClassification(network, multi_label=True).loss(logits, target, 0.3)
    assert found == binary_cross_entropy(logits, target)
    assert found == F.softplus(torch.tensor(-1.0))
    single = BCosClassification(network).loss(logits, torch.tensor([0]), 0.3)
    assert single == b_cos_loss(logits, torch.tensor([0]))


def test_adaptive_clipping_by_hand() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    layer.weight.grad = torch.tensor([[0.6, 0.8], [1e-6, 0.0]])
    adaptively_clip(layer, 0.01)
    # the first row may have a hundredth of 5; the second, of no length, a hundredth of 0.001
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.03, 0.04], [1e-6, 0.0]]))


def test_a_b_cos_network_has_neither_weight_decay_nor_the_common_clip() -> None:
    plain = load_backbone("test_resnet.random", num_classes=2)
    assert optimisation(plain, 0.05) == {"weight_decay": 0.05, "clip": 1.0}
    network = b_cos_network(plain, 2.0)
    assert optimisation(network, 0.05) == {"weight_decay": 0.0, "adaptive_clip": 0.01}
    assert b_cos_network(plain, None) is plain
    assert b_cos_network(network, 2.0) is network
    with pytest.raises(UsageError, match="b_cos=1.5: this backbone is a B-cos network with B = 2 already"):
        b_cos_network(network, 1.5)


def test_the_estimator_learns_explains_and_its_folder_goes_on(tmp_path: Path) -> None:
    pictures, labels = made()
    settings = {"image_size": 32, "batch_size": 16, "shift": 0.0, "precision": "fp32", "random_state": 0}
    start = "test_resnet.offshelf_finetune_cifar10"
    told = FineTune(start, epochs=6, b_cos=2.0, learning_rate=0.02, trunk_scale=1.0, **settings).fit(pictures, labels)
    assert (told.predict(pictures) == labels).mean() > 0.9
    assert told.history_[0]["loss"] > told.history_[-1]["loss"]
    model: Any = told.model_
    assert isinstance(model, BCosNetwork) and model.b == 2
    assert model.card.mean == told.views().mean == (0.0, 0.0, 0.0)
    assert "as a B-cos network (B = 2)" in model.card.note
    found = explain_b_cos(model, told.views().plain(pictures[:4]), torch.from_numpy(labels[:4]))
    assert found.remainder.abs().max() < 1e-4
    assert (found.contributions.sum((1, 2)) > 0).all()  # what spoke for the right class is in the picture

    save_backbone(model, tmp_path)
    again: Any = load_backbone(tmp_path, num_classes=None)
    torch.testing.assert_close(again(found_input := told.views().plain(pictures)), model(found_input))
    more = FineTune(str(tmp_path), epochs=1, **settings).fit(pictures, labels)  # trained as a B-cos network, unasked
    assert isinstance(more.model_, BCosNetwork)
    assert "B-cos" in more.model_.card.note


def test_a_setting_out_of_range_is_refused() -> None:
    pictures, labels = made(6)
    with pytest.raises(UsageError, match="b_cos=0.5: expected 1 or more, or None"):
        FineTune("test_resnet.random", b_cos=0.5).fit(pictures, labels)
