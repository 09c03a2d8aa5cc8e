from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from offshelf.errors import DataError
from offshelf.evaluate.live_probe import LiveProbe, divide, neighbours, weighted_votes
from tests.conftest import draw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Thumbnails(nn.Module):
    """timm's interface over 4 x 4 averages: features known by hand. ``lost``: the same for every picture."""

    def __init__(self, lost: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.lost = lost

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(x)) * self.scale
        return torch.nn.functional.avg_pool2d(x, x.shape[-1] // 4)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.ones_like(flat) if self.lost else flat


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """96 pictures of three kinds that differ in brightness from place to place."""
    labels = np.arange(96) % 3
    table = np.stack([draw(kind, number, 16).transpose(2, 0, 1) for number, kind in enumerate(labels)])
    return table, labels


def probe_of(pictures: tuple[np.ndarray, np.ndarray], groups: np.ndarray | None = None, seed: int = 0) -> LiveProbe:
    return LiveProbe(*pictures, groups, MEAN, STD, image_size=16, seed=seed)


def test_the_choice_hangs_on_the_seed_alone_and_is_stratified(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    one, same, other = probe_of(pictures), probe_of(pictures), probe_of(pictures, seed=1)
    assert one.test.tolist() == same.test.tolist() and one.train.tolist() == same.train.tolist()
    assert one.test.tolist() != other.test.tolist()
    assert not set(one.test) & set(one.train)
    assert (len(one.test), len(one.train)) == (32, 64)
    assert np.bincount(pictures[1][one.test]).tolist() in ([11, 11, 10], [11, 10, 11], [10, 11, 11])


def test_limits_and_unknown_labels() -> None:
    labels = np.random.default_rng(0).integers(-1, 4, 9000)
    train, test = divide(labels, np.arange(9000), seed=0)
    assert len(train) == 2000 and len(test) == 1000
    assert (labels[np.concatenate([train, test])] >= 0).all()
    assert len(set(train) | set(test)) == 3000


def test_groups_are_never_divided(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    groups = np.arange(96) // 6  # each group holds all three classes
    probe = probe_of(pictures, groups)
    assert not set(groups[probe.test]) & set(groups[probe.train])
    assert len(probe.test) + len(probe.train) == 96 and abs(len(probe.test) - 32) <= 3
    for rows in (probe.test, probe.train):
        assert (np.bincount(groups[rows])[np.unique(groups[rows])] == 6).all()
    record = probe(Thumbnails())
    assert record["n_groups"] == len(probe.test) / 6


def test_large_groups_are_thinned_and_two_sites_are_enough() -> None:
    labels, groups = np.arange(1000) % 2, np.arange(1000) // 500
    train, test = divide(labels, groups, seed=0)
    assert len(train) == len(test) == 100
    assert len(set(groups[train])) == len(set(groups[test])) == 1
    # one site's commonest class is the other's rarest: they can still be divided
    labels = np.where(groups == 0, np.arange(1000) % 3 > 0, np.arange(1000) % 3 == 0).astype(int)
    train, test = divide(labels, groups, seed=0)
    assert len(train) == len(test) == 100


def test_what_cannot_be_judged_is_said(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    table, labels = pictures
    for given, groups, said in (
        (None, None, "No labels"),
        (np.full(96, -1), None, "No labels"),
        (labels, np.zeros(96), "of one group"),
        (np.zeros(96, int), None, "Fewer than two classes"),
        (labels, labels, "Every class lies in one group"),
    ):
        probe = LiveProbe(table, given, groups, MEAN, STD, 16)
        assert said in probe.note
        assert set(probe(Thumbnails())) == {"feature_rank", "feature_std"}
        assert len(probe.watched) == 96
    with pytest.raises(DataError, match=r"labels have shape \(2,\), expected \(96,\)"):
        LiveProbe(table, [0, 1], None, MEAN, STD, 16)


def test_features_that_tell_and_features_that_do_not(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    probe = probe_of(pictures)
    record = probe(Thumbnails())
    assert json.loads(json.dumps(record)) == record
    assert record["knn_accuracy"] > 0.9 and record["linear_accuracy"] > 0.9
    assert record["chance"] == pytest.approx(1 / 3, abs=0.03)
    assert (record["n"], record["n_groups"], record["n_train"], record["k"]) == (32, 32, 64, 20)
    assert record["feature_rank"] > 3
    lost = probe(Thumbnails(lost=True))
    assert lost["feature_rank"] == pytest.approx(1) and lost["feature_std"] == pytest.approx(0, abs=1e-6)
    assert lost["linear_accuracy"] < 0.5


def test_labels_without_meaning_stay_near_chance(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    table, labels = pictures
    shuffled = np.random.default_rng(0).permutation(labels)
    record = LiveProbe(table, shuffled, None, MEAN, STD, 16)(Thumbnails())
    assert record["knn_accuracy"] < 0.6 and record["linear_accuracy"] < 0.6


def test_drift_is_one_less_the_mean_cosine(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    probe, backbone = probe_of(pictures), Thumbnails()
    assert "drift" not in probe(backbone)
    probe.remember(backbone)
    assert probe(backbone)["drift"] == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        backbone.scale.fill_(3.0)  # length is no drift
    assert probe(backbone)["drift"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        backbone.scale.fill_(-1.0)
    assert probe(backbone)["drift"] == pytest.approx(2, abs=1e-6)


def test_a_probe_leaves_no_trace(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    probe, backbone = probe_of(pictures), Thumbnails()
    backbone.train()
    backbone.norm.eval()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    first = probe(backbone)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert backbone.training and not backbone.norm.training and backbone.drop.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert probe(backbone) == first


def test_features_that_are_not_numbers_give_none(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    probe, backbone = probe_of(pictures), Thumbnails()
    probe.remember(backbone)
    with torch.no_grad():
        backbone.scale.fill_(torch.nan)
    record = probe(backbone)
    for name in ("knn_accuracy", "linear_accuracy", "feature_rank", "feature_std", "drift"):
        assert record[name] is None


def test_weighted_votes_by_hand() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    votes = weighted_votes(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), rows, np.array([0, 1, 1]), 2, k=3)
    assert votes[0] == pytest.approx([1, 2])  # all three equally near
    assert votes[1] == pytest.approx([1, 2 * np.exp(-1 / 0.07)])  # the near one outweighs two at right angles
    assert weighted_votes(torch.tensor([[1.0, 0.1]]), rows, np.array([0, 1, 1]), 2, k=1).tolist() == [[1, 0]]
    assert [neighbours(2000, 10), neighbours(12, 3), neighbours(2, 5)] == [20, 4, 1]
