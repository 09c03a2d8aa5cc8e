"""Properties of the fine-tuning recipe of arXiv 2003.13145."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from timm.models import adapt_input_conv

from offshelf.backbones.load import load_backbone
from offshelf.data.augment import affine
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.engine.order import Order
from offshelf.engine.train import Trained
from offshelf.errors import DataError, UsageError
from offshelf.transfer.covid_screening import CovidScreening
from offshelf.transfer.finetune import FineTune
from tests.conftest import draw

TINY = {"backbone": "test_resnet.random", "image_size": 32, "batch_size": 12}
LEARNT = "test_byobnet.offshelf_finetune_cifar10"


def pictures(per_class: tuple[int, ...] = (12, 12)) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    table = np.stack([draw(k, i, 32) for k, n in enumerate(per_class) for i in range(n)])
    return np.ascontiguousarray(table.transpose(0, 3, 1, 2)), labels


def watched(monkeypatch: pytest.MonkeyPatch, estimator: CovidScreening, X: np.ndarray, y: np.ndarray) -> list[tuple]:
    """The (input, target) batches that training asked for; the network itself is not trained."""
    from offshelf.transfer import finetune

    batches: list[tuple] = []

    def record(module, data, training, **rest):  # type: ignore[no-untyped-def]
        order = Order(len(data), training.batch_size, training.seed)
        for keys in order.batches(0, training.steps):
            batch = data.__getitems__(keys)
            batches.append((batch["image"], batch["target"]))
        return Trained("complete", training.steps)

    monkeypatch.setattr(finetune, "train", record)
    estimator.fit(X, y)
    return batches


def test_the_recipe_is_the_papers_with_our_amounts() -> None:
    tuner = CovidScreening().finetuner()
    assert (tuner.rotation, tuner.scale, tuner.translation, tuner.balanced) == (10.0, 0.1, 0.1, True)
    assert (tuner.flip, tuner.shift, tuner.label_smoothing) == (False, 0.0, 0.0)  # the heart lies on the left
    assert tuner.learning_rate == pytest.approx(3e-3)  # of the head
    assert tuner.learning_rate * tuner.trunk_scale == pytest.approx(3e-4)
    assert (tuner.early_stopping, tuner.validation_share) == (tuner.epochs, 0.2)  # the best epoch, never early
    assert CovidScreening(validation_share=0.0).finetuner().early_stopping is None
    plain = CovidScreening(augment=False, oversample_to_balance=False).finetuner()
    assert (plain.rotation, plain.scale, plain.translation, plain.balanced) == (0.0, 0.0, 0.0, False)


def test_augmentation_touches_training_pictures_only() -> None:
    X, y = pictures()
    estimator = CovidScreening(**TINY, epochs=1).fit(X, y)
    first, second = estimator.predict_proba(X), estimator.predict_proba(X)
    np.testing.assert_array_equal(first, second)
    card = estimator.finetuner_.card_
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    torch.testing.assert_close(estimator.inputs(X), (torch.from_numpy(X).float() / 255 - mean) / std)
    np.testing.assert_allclose(
        estimator.finetuner_.model_(estimator.inputs(X)).softmax(1).detach().numpy(), first, atol=1e-5
    )


@pytest.mark.parametrize("augment", [True, False])
def test_a_training_picture_looks_different_each_time_only_when_augmented(
    monkeypatch: pytest.MonkeyPatch, augment: bool
) -> None:
    X, y = pictures()
    settings = TINY | {"batch_size": 24, "validation_share": 0.0}
    estimator = CovidScreening(**settings, epochs=3, augment=augment, oversample_to_balance=False)
    batches = watched(monkeypatch, estimator, X, y)
    as_they_are = estimator.inputs(X)
    assert len(batches) == 3
    for inputs, target in batches:
        distance = (inputs[:, None] - as_they_are[None]).abs().amax(dim=(2, 3, 4)).min(dim=1)
        assert sorted(target.tolist()) == sorted(y.tolist())
        if augment:
            assert (distance.values > 1e-2).all()
        else:
            assert (distance.values < 1e-5).all()
            assert sorted(distance.indices.tolist()) == list(range(24))  # each picture once an epoch


def test_amounts_of_nothing_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures()
    still = {"rotation": 0.0, "scale": 0.0, "translation": 0.0, "oversample_to_balance": False}
    with_zero = watched(monkeypatch, CovidScreening(**TINY, epochs=1, augment=True, **still), X, y)
    without = watched(monkeypatch, CovidScreening(**TINY, epochs=1, augment=False, **still), X, y)
    for a, b in zip(with_zero, without, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-6)


def test_a_turn_and_its_inverse_restore_the_interior() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    x = (torch.sin(rows / 6) + torch.cos(columns / 7))[None, None].repeat(2, 3, 1, 1)
    angle, one, still = np.deg2rad([10.0, -10.0]), np.ones(2), np.zeros((2, 2))
    turned = affine(x, angle, one, still)
    restored = affine(turned, -angle, one, still)
    inside = slice(16, 48)
    assert (turned - x)[..., inside, inside].abs().max() > 0.3
    assert (restored - x)[..., inside, inside].abs().max() < 0.02


def test_every_class_is_shown_equally_often_when_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures((90, 24, 6))
    for balanced, expected in ((True, [1 / 3] * 3), (False, [0.75, 0.2, 0.05])):
        settings = TINY | {"batch_size": 30, "epochs": 15, "validation_share": 0.0}
        estimator = CovidScreening(**settings, augment=False, oversample_to_balance=balanced)
        shown = torch.cat([target for _, target in watched(monkeypatch, estimator, X, y)])
        assert len(shown) == 15 * 120
        share = np.bincount(shown.numpy(), minlength=3) / len(shown)
        np.testing.assert_allclose(share, expected, atol=1e-12)


def test_the_epoch_is_chosen_on_patients_that_were_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures((20, 20))
    patients = np.arange(40) // 2
    tuner = CovidScreening(**TINY, epochs=3).fit(X, y, patients).finetuner_
    aside = tuner.validation_rows_
    assert np.bincount(y[aside]).tolist() == [4, 4]
    assert not set(patients[aside]) & set(np.delete(patients, aside))
    losses = [record["validation_loss"] for record in tuner.history_]
    assert len(losses) == 3 and tuner.best_epoch_ == int(np.argmin(losses)) + 1


def test_a_new_head_leaves_every_other_tensor_as_it_was() -> None:
    learnt, fresh = load_backbone(LEARNT, num_classes=None), load_backbone(LEARNT, num_classes=3)
    head = {name for name in fresh.state_dict() if name.startswith("head.fc.")}
    assert sum(fresh.state_dict()[name].numel() for name in head) == 256 * 3 + 3
    for name, tensor in fresh.state_dict().items():
        if name not in head:
            assert torch.equal(tensor, learnt.state_dict()[name]), name


def test_grey_pictures_are_read_as_three_equal_channels() -> None:
    """So the first layer may as well be folded to one channel, by adding its kernels up (equal mean and deviation)."""
    grey = as_samples(np.stack([draw(k, 0, 32)[..., 0] for k in range(3)]))
    pixels, _ = load_pixels(grey, 32)
    assert (pixels[:, 0] == pixels[:, 1]).all() and (pixels[:, 0] == pixels[:, 2]).all()
    model = load_backbone(LEARNT, num_classes=3)
    name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))
    x = (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5
    expected = model(x)
    folded = torch.nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)
    folded.weight.data = adapt_input_conv(1, first.weight.detach())
    assert first.bias is None
    model.set_submodule(name, folded)
    torch.testing.assert_close(model(x[:, :1]), expected, rtol=1e-4, atol=1e-5)


def test_it_learns_and_equal_seeds_give_equal_answers() -> None:
    X, y = pictures((20, 20, 8))
    settings = TINY | {"epochs": 10, "learning_rate": 1e-3, "translation": 0.05}
    estimator = CovidScreening(**settings).fit(X, y)
    assert (estimator.predict(X) == y).mean() > 0.85  # 0.42 for the commonest class
    assert isinstance(estimator.finetuner_, FineTune)
    twin = clone(estimator).fit(X, y)
    np.testing.assert_array_equal(twin.predict_proba(X), estimator.predict_proba(X))
    assert estimator.score(X, y) == (estimator.predict(X) == y).mean()


def test_wrong_settings_and_labels_are_refused(folder: Path) -> None:
    X, y = pictures()
    with pytest.raises(UsageError, match="head_scale=0: expected a number above 0"):
        CovidScreening(**TINY, head_scale=0).fit(X, y)
    with pytest.raises(UsageError, match="validation_share=1: expected from 0 to below 1"):
        CovidScreening(**TINY, validation_share=1).fit(X, y)
    with pytest.raises(UsageError, match="epochs=0"):
        CovidScreening(**TINY, epochs=0).fit(X, y)
    with pytest.raises(DataError, match="one class only"):
        CovidScreening(**TINY).fit(X, np.zeros(len(X)))
