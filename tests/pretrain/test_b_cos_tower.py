"""An image tower and its B-cos copy: the loss by hand, and a student that comes nearer to its teacher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from offshelf.backbones.b_cosification import BCosNetwork
from offshelf.errors import UsageError
from offshelf.interpret.b_cos_explanation import explain_b_cos
from offshelf.pretrain.b_cos_tower import TowerDistillation, b_cosify_tower, siglip_loss


def test_the_worked_number_and_a_slow_loop() -> None:
    both = torch.eye(2) * 3
    assert float(siglip_loss(both, both)) == pytest.approx(math.log(2) + math.log1p(math.exp(-10)))
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    total = 0.0
    for i in range(3):
        for j in range(3):
            logit = 10 * float(F.cosine_similarity(student[i], teacher[j], dim=0)) - 10
            total += math.log1p(math.exp(-logit if i == j else logit))
    assert float(siglip_loss(student, teacher)) == pytest.approx(total / 3, rel=1e-5)


def test_only_the_student_learns() -> None:
    module = TowerDistillation(timm.create_model("test_resnet", num_classes=8)).train()
    assert not module.teacher.training and module.student.training
    module({"picture": torch.rand(4, 3, 32, 32)})["loss"].backward()
    assert all(p.grad is not None for p in module.student.parameters())
    assert all(p.grad is None for p in module.teacher.parameters())
    assert module.student.offset == 0 and not module.student.per_place


def test_a_student_comes_near_its_teacher_and_explains_itself() -> None:
    torch.manual_seed(0)
    teacher: Any = timm.create_model("test_resnet", num_classes=8).eval()
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (32, 3, 4, 4)).astype(np.uint8)
    pictures = coarse.repeat(8, axis=2).repeat(8, axis=3)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    records: list[dict[str, Any]] = []
    student = b_cosify_tower(
        teacher, pictures, epochs=6, batch_size=16, learning_rate=3e-3, told=lambda record: records.append(dict(record))
    )
    assert isinstance(student, BCosNetwork) and not student.training
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    found = explain_b_cos(student, torch.from_numpy(pictures[:2]).float() / 255, torch.tensor([0, 1]))
    assert found.remainder.abs().max() < 1e-3 * found.logits.abs().max()
    with pytest.raises(UsageError, match=r"expected uint8 \(n, 3, S, S\)"):
        b_cosify_tower(teacher, pictures.astype(np.float32))
