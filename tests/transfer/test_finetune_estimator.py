"""Fine-tuning: each of its switches does what it says, and equal calls give equal bytes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from offshelf.backbones.load import load_backbone
from offshelf.engine.draws import Draws
from offshelf.engine.launch import Launch
from offshelf.engine.optimise import Average
from offshelf.errors import BackboneError, DataError, RunError, UsageError
from offshelf.jobs.predict import encode, said
from offshelf.transfer.best_epoch import BestEpoch, left_out, rarest_class
from offshelf.transfer.classification import (
    Classification,
    ClassificationViews,
    LabelledPictures,
    Mixing,
    balanced_rows,
    binary_cross_entropy,
    boxes,
    cross_entropy,
)
from offshelf.transfer.classifier import FinetunedClassifier, load_classifier
from offshelf.transfer.finetune import FineTune
from tests.conftest import draw

TINY = {"backbone": "test_resnet.random", "image_size": 32, "batch_size": 8, "epochs": 2}
VIT, LEARNT = "test_vit.random", "test_byobnet.offshelf_finetune_cifar10"


def pictures(per_class: tuple[int, ...] = (12, 12), side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    table = np.stack([draw(k, i, side) for k, n in enumerate(per_class) for i in range(n)])
    return np.ascontiguousarray(table.transpose(0, 3, 1, 2)), labels


def weights(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in model.state_dict().items()}


def seen(monkeypatch: pytest.MonkeyPatch, estimator: FineTune, X: np.ndarray, y: np.ndarray) -> tuple:
    """Module, data and training as they reach the loop; nothing is trained."""
    from offshelf.transfer import finetune

    found: list[tuple] = []

    class ReachedError(Exception):
        pass

    def stop(module, data, training, **rest):  # type: ignore[no-untyped-def]
        found.append((module, data, training))
        raise ReachedError

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "train", stop)
        with pytest.raises(ReachedError):
            estimator.fit(X, y)
    return found[0]


# ---- losses --------------------------------------------------------------------------------------


def test_label_smoothing_value() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    p = np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum()
    expected = -(0.9 + 0.1 / 3) * np.log(p[0]) - 0.1 / 3 * (np.log(p[1]) + np.log(p[2]))
    assert cross_entropy(logits, torch.tensor([0]), 0.1).item() == pytest.approx(expected, rel=1e-6)
    shares = torch.tensor([[1.0, 0.0, 0.0]])
    assert cross_entropy(logits, shares, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_skips_what_is_unknown() -> None:
    logits = torch.tensor([[0.0, 2.0, 5.0], [1.0, -3.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0, float("nan")], [float("nan"), 1.0, float("nan")]])
    loss = binary_cross_entropy(logits, target)
    known = [np.log(2), 2 + np.log1p(np.exp(-2.0)), 3 + np.log1p(np.exp(-3.0))]
    assert loss.item() == pytest.approx(np.mean(known), rel=1e-6)
    loss.backward()
    assert (logits.grad[target.isnan()] == 0).all() and (logits.grad[~target.isnan()] != 0).all()
    smooth = binary_cross_entropy(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.1).item()
    assert smooth == pytest.approx(np.log1p(np.exp(-2.0)) + 0.05 * 2.0, rel=1e-5)
    assert binary_cross_entropy(logits, torch.full((2, 3), float("nan"))).item() == 0


# ---- what a network is shown ---------------------------------------------------------------------


def batch(n: int = 6, side: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3, side, side)).astype(np.float32))
    return x, torch.nn.functional.one_hot(torch.arange(n), n).float()


def test_mixup_is_the_weighted_sum_and_targets_sum_to_one() -> None:
    x, target = batch()
    mixed, shares = Mixing(mixup=0.8)(x, target, Draws(0, 0, range(6)))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
    assert len(set(shares.max(dim=1).values.tolist())) == 6  # each picture has a share of its own
    torch.testing.assert_close(mixed, torch.einsum("ij,jchw->ichw", shares, x))
    assert all((row > 0).sum() == 2 for row in shares)  # itself and one partner, never itself alone
    assert (shares.diagonal() > 0).all()
    again = Mixing(mixup=0.8)(x, target, Draws(0, 0, range(6)))
    assert torch.equal(mixed, again[0]) and torch.equal(shares, again[1])
    assert not torch.equal(shares, Mixing(mixup=0.8)(x, target, Draws(0, 1, range(6)))[1])


def test_the_share_in_cutmix_is_the_true_area() -> None:
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 10).contiguous()
    target = torch.eye(6)
    mixed, shares = Mixing(cutmix=1.0)(x, target, Draws(3, 0, range(6)))
    for row in range(6):
        for other in range(6):
            area = (mixed[row, 0] == other).float().mean().item()
            assert shares[row, other].item() == pytest.approx(area, abs=1e-6)
    assert 0.05 < 1 - shares.diagonal().mean().item() < 0.9
    inside, area = boxes(np.array([0.25, 0.25]), np.array([[0.5, 0.5], [0.0, 0.0]]), (10, 10))
    assert area.tolist() == [0.25, 0.09] and inside.mean(axis=(1, 2)).tolist() == [0.25, 0.09]  # cut off in the corner


def test_mixing_takes_both_kinds_and_many_labels() -> None:
    x, target = batch(64)
    shares = Mixing(mixup=1.0, cutmix=1.0)(x, target, Draws(0, 0, range(64)))[1]
    own = shares.diagonal().double().numpy() * 100
    whole = np.isclose(own, np.round(own), atol=1e-4).mean()  # shares of 10 x 10 pixels
    assert 0.3 < whole < 0.7
    many = torch.tensor([[1.0, 0.0], [1.0, float("nan")], [0.0, 1.0]])
    mixed = Mixing(mixup=1.0)(x[:3], many, Draws(0, 0, range(3)))[1]
    assert ((mixed >= 0) & (mixed <= 1) | mixed.isnan()).all()
    assert mixed[:, 1].isnan().sum() == 2  # the one with the unknown label, and the one that took it as partner
    assert not Mixing()


def test_every_class_is_shown_equally_often_when_balanced() -> None:
    codes = np.repeat([0, 1, 2], [70, 24, 8]).astype(np.int64)
    first, second = balanced_rows(codes, 0, 0), balanced_rows(codes, 0, 1)
    assert np.bincount(codes[first]).tolist() == [34, 34, 34] and len(first) == 102
    assert np.array_equal(first, balanced_rows(codes, 0, 0)) and not np.array_equal(first, second)
    shown = np.bincount(first, minlength=102)
    assert set(shown[codes == 0]) == {0, 1} and set(shown[codes == 2]) == {4, 5}  # evenly within a class
    X, _ = pictures((102,))
    views = ClassificationViews(32, (0.5,) * 3, (0.5,) * 3, shift=0.2)
    data = LabelledPictures(X, codes, views, 3, balanced=True)
    whole = data.__getitems__([(0, place) for place in range(102)])
    assert np.bincount(whole["target"]).tolist() == [34, 34, 34]
    twice = np.flatnonzero(first == np.bincount(first).argmax())[:3]
    assert len({whole["image"][place].numpy().tobytes() for place in twice}) > 1  # an own draw each time it is shown
    twin = pickle.loads(pickle.dumps(data)).__getitems__([(0, 5), (0, 99)])
    assert torch.equal(twin["image"], whole["image"][[5, 99]])


@pytest.mark.parametrize(
    "setting",
    [{"rand_augment": "rand-m6-mstd0.5-inc1"}, {"crop": 0.3}, {"rotation": 20.0}, {"shift": 0.2, "flip": True}],
    ids=str,
)
def test_views_belong_to_their_pictures(setting: dict) -> None:
    X, _ = pictures((4, 4))
    views = ClassificationViews(24, (0.5,) * 3, (0.5,) * 3, **setting)
    table = torch.from_numpy(X)
    together = views(table, Draws(0, 2, range(8)))["image"]
    assert together.shape == (8, 3, 24, 24)
    alone = views(table[5:6], Draws(0, 2, [5]))["image"][0]
    torch.testing.assert_close(together[5], alone, rtol=0, atol=1e-5)
    assert not torch.equal(together, views(table, Draws(0, 3, range(8)))["image"])
    assert not torch.equal(together, views.plain(X))


def test_nothing_switched_on_changes_nothing() -> None:
    X, _ = pictures((4, 4))
    views = ClassificationViews(32, (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(views(torch.from_numpy(X), Draws(0, 0, range(8)))["image"], views.plain(X))
    torch.testing.assert_close(views.plain(X), torch.from_numpy(X).float() / 127.5 - 1)


# ---- how it moves --------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "scale"), [(VIT, 1.0), (LEARNT, 0.1)])
def test_layer_decay_reaches_the_optimiser(monkeypatch: pytest.MonkeyPatch, backbone: str, scale: float) -> None:
    from offshelf.engine import optimise

    found: list[torch.optim.Optimizer] = []
    make = optimise.make_optimiser

    def kept(*arguments):  # type: ignore[no-untyped-def]
        found.append(make(*arguments))
        return found[0]

    monkeypatch.setattr(optimise, "make_optimiser", kept)
    X, y = pictures()
    settings = TINY | {"backbone": backbone, "layer_decay": 0.5, "learning_rate": 1e-2, "epochs": 1}
    FineTune(**settings).fit(X, y)
    groups = found[0].param_groups
    # what the last step (3 of 3, after no warm-up) was taken with: half a cosine of the base rate
    share = 0.5 * (1 + np.cos(np.pi * 2 / 3))
    rates = {group["layer"]: group["lr"] / share for group in groups if group["trunk"]}
    layers = sorted(rates)
    assert len(layers) >= 3
    for layer in layers:
        assert rates[layer] == pytest.approx(1e-2 * scale * 0.5 ** (layers[-1] + 1 - layer))
    assert [group["lr"] / share for group in groups if not group["trunk"]] == pytest.approx([1e-2] * 2)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_a_pretrained_trunk_moves_by_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures()
    learnt = FineTune(**TINY | {"backbone": LEARNT, "learning_rate": 1e-2})
    module, _, _ = seen(monkeypatch, learnt, X, y)
    rates = {group["trunk"]: group["lr"] for group in module.parameter_groups(1e-2, 0.05)}
    assert rates == {True: pytest.approx(1e-3), False: 1e-2}
    module, _, _ = seen(monkeypatch, FineTune(**TINY), X, y)
    assert {group["lr"] for group in module.parameter_groups(1e-2, 0.05)} == {1e-2}


@pytest.mark.parametrize(("epochs", "moved"), [(1, False), (3, True)])
def test_a_frozen_start_leaves_every_byte_of_the_trunk(epochs: int, moved: bool) -> None:
    X, y = pictures()
    # 3 steps an epoch; batch statistics belong to the trunk as well
    estimator = FineTune(**TINY | {"epochs": epochs, "warm_head": 0.9 if epochs == 1 else 1 / 3}).fit(X, y)
    before = weights(load_backbone(TINY["backbone"], num_classes=2))
    after = weights(estimator.model_)
    head = {"fc.weight", "fc.bias"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed - head == (set(before) - head if moved else set())
    assert head <= changed


def test_drop_path_reaches_blocks_and_not_the_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures()
    module, _, _ = seen(monkeypatch, FineTune(**TINY | {"backbone": VIT, "drop_path": 0.2}), X, y)
    rates = [m.drop_prob for m in module.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2) and rates == sorted(rates)
    estimator = FineTune(**TINY | {"drop_path": 0.2}).fit(X, y)
    FinetunedClassifier(estimator, ["a", "b"]).save(tmp_path)
    again = load_backbone(tmp_path, num_classes=None)
    assert not any(type(m).__name__ == "DropPath" for m in again.modules())
    assert weights(again) == weights(estimator.model_)
    with pytest.raises(BackboneError, match=r"vgg11\.random: drop_path=0\.1, but this network has no residual paths"):
        load_backbone("vgg11.random", drop_path=0.1)


def test_a_new_heads_weights_have_the_deviation_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = pictures((12, 12))
    module, _, _ = seen(monkeypatch, FineTune(**TINY | {"head_std": 0.002}), X, np.arange(24))
    head = module.backbone.get_classifier()
    assert head.weight.std().item() == pytest.approx(0.002, rel=0.1) and not head.bias.any()


def test_the_moving_average_by_hand_and_as_the_product() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = Average(layer, 0.9)
    for step, value in enumerate((2.0, 4.0), start=1):
        layer.weight.data.fill_(value)
        average.update(layer, step)
    # decays are ramped up: 2 / 11, then 3 / 12
    first = 2 / 11 * 1 + 9 / 11 * 2
    assert average.values["weight"].item() == pytest.approx(0.25 * first + 0.75 * 4)
    with average.inside(layer):
        assert layer.weight.item() == pytest.approx(average.values["weight"].item())
    assert layer.weight.item() == 4.0
    X, y = pictures()
    plain = FineTune(**TINY).fit(X, y)
    averaged = FineTune(**TINY | {"average": 0.9}).fit(X, y)
    assert [r["loss"] for r in plain.history_] == [r["loss"] for r in averaged.history_]  # the same path
    assert weights(plain.model_) != weights(averaged.model_)


# ---- the best epoch ------------------------------------------------------------------------------


def test_a_validation_share_is_stratified_and_keeps_groups_whole() -> None:
    codes = np.repeat([0, 1, 2], [50, 30, 20])
    rows = left_out(codes, None, 0.1, 0)
    assert np.bincount(codes[rows]).tolist() == [5, 3, 2]
    assert not np.array_equal(rows, left_out(codes, None, 0.1, 1))
    groups = np.arange(100) // 4
    rows = left_out(codes, groups, 0.2, 0)
    assert not set(groups[rows]) & set(np.delete(groups, rows))
    assert 12 <= len(rows) <= 28 and len(set(codes[rows])) == 3
    rare = np.array([0] * 30 + [1])
    assert 30 not in left_out(rare, None, 0.5, 0)  # the only one of its class stays in training
    labels = np.array([[1, 0, 1], [1, 0, np.nan], [0, 0, 0], [1, 1, 1]], float)
    assert rarest_class(labels).tolist() == [2, 0, 3, 1]


def test_patience_and_the_best_weights(tmp_path: Path) -> None:
    best = BestEpoch(2, tmp_path)
    for epoch, (loss, stop) in enumerate([(0.9, False), (0.5, False), (0.7, False), (float("nan"), True)], start=1):
        assert best.told(epoch, loss, {"w": torch.tensor(float(epoch))}, [{"epoch": epoch}]) is stop
    assert best.epoch == 2 and best.weights["w"].item() == 2.0
    other = BestEpoch(2, tmp_path)
    other.take_up()
    assert (other.epoch, other.stopped, other.history) == (2, True, [{"epoch": 4}])
    assert other.told(5, 0.1, {}, []) is True and other.epoch == 2  # what has stopped takes in no more


def test_early_stopping_keeps_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures((20, 20))
    losses = iter([0.9, 0.4, 0.6, 0.5, 0.1])
    kept: list[dict[str, bytes]] = []

    def scripted(self, module, pixels, targets):  # type: ignore[no-untyped-def]
        kept.append(weights(module.backbone))
        return next(losses)

    monkeypatch.setattr(FineTune, "_validation_loss", scripted)
    told: list[int] = []
    settings = TINY | {"epochs": 9, "early_stopping": 2, "validation_share": 0.2}
    estimator = FineTune(**settings).fit(X, y, after_epoch=lambda epoch, record: told.append(epoch))
    assert estimator.best_epoch_ == 2 and weights(estimator.model_) == kept[1] != kept[3]
    assert [record["validation_loss"] for record in estimator.history_] == [0.9, 0.4, 0.6, 0.5]
    assert told == [0, 1, 2, 3] and estimator.status_ == "complete"
    assert "stopped after epoch 4: the lowest validation loss was that of epoch 2" in estimator.notes_
    assert np.bincount(y[estimator.validation_rows_]).tolist() == [4, 4]


def test_the_validation_loss_is_that_of_what_is_kept() -> None:
    X, y = pictures((20, 20))
    settings = TINY | {"epochs": 3, "early_stopping": 3, "validation_share": 0.25, "average": 0.5, "precision": "fp32"}
    estimator = FineTune(**settings).fit(X, y)
    rows = estimator.validation_rows_
    spread = estimator.probabilities_of(X[rows])
    found = -np.log(spread[np.arange(len(rows)), y[rows]]).mean()
    losses = [record["validation_loss"] for record in estimator.history_]
    assert found == pytest.approx(min(losses), rel=1e-4) and estimator.best_epoch_ == int(np.argmin(losses)) + 1


# ---- the estimator -------------------------------------------------------------------------------

EVERYTHING = {
    "warm_head": 0.3, "layer_decay": 0.7, "drop_path": 0.1, "rand_augment": "rand-m6-mstd0.5-inc1", "crop": 0.5,
    "mixup": 0.2, "cutmix": 1.0, "balanced": True, "rotation": 5.0, "scale": 0.1, "translation": 0.1, "average": 0.9,
    "early_stopping": 3, "validation_share": 0.2, "head_std": 0.01, "flip": True,
}  # fmt: skip


def test_equal_calls_give_equal_bytes_and_leave_the_generators_alone() -> None:
    X, y = pictures((16, 8))
    estimator = FineTune(**TINY | EVERYTHING)
    np.random.seed(5), torch.manual_seed(5)
    state = np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    estimator.fit(X, y)
    assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()) == state
    torch.rand(7), np.random.rand()
    twin = clone(estimator).fit(X, y, after_epoch=lambda epoch, record: torch.rand(2))
    assert weights(twin.model_) == weights(estimator.model_)
    assert [r["loss"] for r in twin.history_] == [r["loss"] for r in estimator.history_]
    other = FineTune(**TINY | EVERYTHING | {"random_state": 1}).fit(X, y)
    assert weights(other.model_) != weights(estimator.model_)


def test_what_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    X, y = pictures((16, 16))
    settings = TINY | EVERYTHING | {"epochs": 4}
    whole = FineTune(**settings).fit(X, y)
    steps = 0
    for _ in range(30):
        told: list[int] = []
        parted = FineTune(**settings).fit(
            X, y, after_epoch=lambda epoch, record, told=told: told.append(epoch), checkpoints=tmp_path, minutes=1e-9
        )
        steps += 1
        if parted.status_ == "complete":
            break
    assert steps == 12  # of three steps an epoch, one each time
    assert weights(parted.model_) == weights(whole.model_) and parted.best_epoch_ == whole.best_epoch_
    assert told == [0, 1, 2, 3]
    with pytest.raises(RunError, match="belongs to another training"):
        FineTune(**settings).fit(X, 1 - y, checkpoints=tmp_path)


def test_many_labels_with_unknown_ones(tmp_path: Path) -> None:
    X, codes = pictures((16, 16, 16))
    y = np.stack([codes == 0, codes != 1, codes == 2], 1).astype(float)
    y[::5, 1] = np.nan
    settings = TINY | {"epochs": 12, "multi_label": True, "learning_rate": 1e-2, "label_smoothing": 0.0, "shift": 0.0}
    estimator = FineTune(**settings).fit(X, y)
    found = estimator.predict_proba(X)
    assert found.shape == (48, 3) and estimator.classes_.tolist() == [0, 1, 2]
    truth = np.stack([codes == 0, codes != 1, codes == 2], 1)
    assert ((found >= 0.5) == truth).mean() > 0.9
    assert np.abs(found.sum(axis=1) - 1).max() > 0.3  # no softmax
    assert np.array_equal(estimator.predict(X), (found >= 0.5).astype(int))
    FinetunedClassifier(estimator, ["a", "b", "c"]).save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.multi_label
    from offshelf.data.samples import as_samples

    answers = loaded.predict(as_samples(np.ascontiguousarray(X.transpose(0, 2, 3, 1))))
    np.testing.assert_allclose(answers.probabilities, found, atol=1e-5)
    assert answers.predicted.tolist() == estimator.predict(X).tolist()
    answers.predicted[0] = -1
    names = said(answers, loaded.classes)
    assert names[0] is None and names[1] == [n for n, yes in zip("abc", estimator.predict(X)[1]) if yes]
    import pyarrow as pa

    table = pa.table({"labels": pa.array([["a", "c"], None, []], pa.list_(pa.string()))})
    assert encode(table, "csv").decode().splitlines()[1:] == ["a;c", '""', '""']
    early = FineTune(**settings | {"epochs": 2, "early_stopping": 1, "validation_share": 0.2, "mixup": 0.4}).fit(X, y)
    assert np.isfinite([record["validation_loss"] for record in early.history_]).all()


def test_the_module_and_its_data_survive_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = pictures()
    module, data, _ = seen(monkeypatch, FineTune(**TINY | EVERYTHING), X, y)
    twin, table = pickle.loads(pickle.dumps((module, data)))
    keys = [(0, place) for place in range(8)]
    assert isinstance(twin, Classification)
    module.eval(), twin.eval()
    assert twin(table.__getitems__(keys))["loss"].item() == module(data.__getitems__(keys))["loss"].item()


REFUSED = [
    ({"epochs": 0}, "epochs=0: expected a whole number, 1 or more"),
    ({"batch_size": 2.5}, "batch_size=2.5: expected a whole number"),
    ({"image_size": 0}, "image_size=0: expected a whole number"),
    ({"store_size": 0}, "store_size=0: expected a whole number, 1 or more, or None"),
    ({"learning_rate": 0.0}, "learning_rate=0.0: expected a number above 0"),
    ({"trunk_scale": -1}, "trunk_scale=-1: expected 0 or more"),
    ({"weight_decay": float("nan")}, "weight_decay=nan: expected 0 or more"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0: expected from 0 to below 1"),
    ({"shift": -0.1}, "shift=-0.1: expected from 0 to below 1"),
    ({"warm_head": 1.0}, "warm_head=1.0: expected from 0 to below 1"),
    ({"layer_decay": 1.5}, "layer_decay=1.5: expected above 0 and at most 1, or None"),
    ({"drop_path": 1.0}, "drop_path=1.0: expected from 0 to below 1"),
    ({"rand_augment": "sharpen"}, "rand_augment='sharpen': timm cannot read it"),
    ({"crop": 0}, "crop=0: expected above 0 and at most 1, or None"),
    ({"mixup": -0.2}, "mixup=-0.2: expected 0 or more"),
    ({"cutmix": "yes"}, "cutmix='yes': expected 0 or more"),
    ({"rotation": 181}, "rotation=181: expected from 0 to 180 degrees"),
    ({"scale": 1.0}, "scale=1.0: expected from 0 to below 1"),
    ({"translation": 1.0}, "translation=1.0: expected from 0 to below 1"),
    ({"average": 1.0}, "average=1.0: expected between 0 and 1, or None"),
    ({"early_stopping": 0}, "early_stopping=0: expected a whole number, 1 or more, or None"),
    ({"validation_share": 0.0}, "validation_share=0.0: expected between 0 and 1"),
    ({"head_std": 0}, "head_std=0: expected a number above 0, or None"),
    ({"precision": "fp16"}, "precision='fp16': expected 'auto', 'bf16' or 'fp32'"),
    ({"balanced": True, "multi_label": True}, "balanced=True with multi_label=True: expected one class a picture"),
    ({"early_stopping": 1, "validation_share": 0.01}, "validation_share=0.01 of 24 pictures leaves none"),
]


@pytest.mark.parametrize(("setting", "sentence"), REFUSED, ids=lambda value: str(value)[:40])
def test_settings_out_of_range_are_refused(setting: dict, sentence: str) -> None:
    X, y = pictures()
    with pytest.raises(UsageError) as caught:
        FineTune(**TINY | setting).fit(X, y)
    assert sentence in str(caught.value)


def test_labels_and_groups_that_do_not_suit_are_refused() -> None:
    X, y = pictures()
    with pytest.raises(UsageError, match=r"labels of shape \(24, 2\): expected \(n,\)"):
        FineTune(**TINY).fit(X, np.zeros((24, 2)))
    with pytest.raises(DataError, match="one class only"):
        FineTune(**TINY).fit(X, np.zeros(24))
    with pytest.raises(UsageError, match="24 pictures and 23 labels"):
        FineTune(**TINY).fit(X, y[:23])
    with pytest.raises(UsageError, match="groups has 3 entries, expected 24"):
        FineTune(**TINY).fit(X, y, groups=[1, 2, 3])
    many = FineTune(**TINY | {"multi_label": True})
    with pytest.raises(UsageError, match=r"labels of shape \(24,\): expected \(n, K\)"):
        many.fit(X, y)
    with pytest.raises(DataError, match=r"a label of 2: expected 0, 1 or NaN"):
        many.fit(X, np.full((24, 2), 2.0))
    with pytest.raises(DataError, match="24 pictures, 0 known labels"):
        many.fit(X, np.full((24, 2), np.nan))
    with pytest.raises(UsageError, match="2 processes: fine-tuning runs in one"):
        FineTune(**TINY).fit(X, y, launch=Launch("cpu", devices=2))
