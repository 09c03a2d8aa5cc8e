from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offshelf.backbones.load import load_backbone
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset
from offshelf.errors import BackboneError, UsageError
from offshelf.interpret.differentiable_head import EXPLAINABLE, differentiable_head
from offshelf.interpret.explainable import explainable
from offshelf.interpret.explanations import explain, serving
from offshelf.transfer.classifier import FeatureClassifier, FinetunedClassifier
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.finetune import FineTune
from offshelf.transfer.pipelines import Arm, make_pipeline
from tests.conftest import write_folder


def table(n: int = 60, d: int = 12, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (random.normal(size=(n, d)) + 2 * np.eye(classes, d)[labels] + 3).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("head", EXPLAINABLE)
def test_layers_say_what_the_head_says(head: str, classes: int) -> None:
    X, y = table(classes=classes)
    pipeline = make_pipeline(Arm("deep", head)).fit(X, y)
    layers = differentiable_head(pipeline, f"deep + {head}")
    fresh, _ = table(20, classes=classes, seed=1)
    scores = layers.module(torch.from_numpy(fresh))
    assert scores.shape == (20, classes)
    found = layers.probability(scores).detach().numpy()
    np.testing.assert_allclose(found, pipeline.predict_proba(fresh), rtol=2e-3, atol=2e-5)
    assert found.std(axis=0).min() > 0.01
    if classes == 2 and head not in ("slp", "mlp", "ridge"):
        torch.testing.assert_close(scores[:, 0], -scores[:, 1])


@pytest.mark.filterwarnings("ignore:code_dim=")
def test_codes_of_the_autoencoder_are_followed_too() -> None:
    X, y = table()
    pipeline = make_pipeline(Arm("reproductive", "logistic"), code_dim=6, hidden_dim=16).fit(X, y)
    layers = differentiable_head(pipeline, "reproductive + logistic")
    found = layers.probability(layers.module(torch.from_numpy(X))).detach().numpy()
    np.testing.assert_allclose(found, pipeline.predict_proba(X), rtol=1e-3, atol=1e-5)


def test_copies_apart() -> None:
    X, y = table(d=24)
    pipeline = make_pipeline(Arm("deep", "off-the-shelf"), copies=2).fit(X, y)
    pipeline[-1].power = 2.0  # as with sixteen copies
    layers = differentiable_head(pipeline, "deep + off-the-shelf")
    found = layers.probability(layers.module(torch.from_numpy(X))).detach().numpy()
    np.testing.assert_allclose(found, pipeline.predict_proba(X), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", ["svm-rbf", "knn"])
def test_heads_without_a_gradient_are_named_with_what_to_do(head: str) -> None:
    X, y = table()
    pipeline = make_pipeline(Arm("deep", head)).fit(X, y)
    with pytest.raises(UsageError, match=rf"deep \+ {head}.*logistic, ridge, svm-linear.*offshelf fit DATA --heads"):
        differentiable_head(pipeline, f"deep + {head}")


def test_linear_margins_want_a_linear_kernel() -> None:
    X, y = table()
    svm = make_pipeline(Arm("deep", "svm-rbf")).fit(X, y)[-1]
    with pytest.raises(UsageError, match="kernel='rbf': its margins are not linear"):
        svm.linear_margins()


def fitted(root: Path, head: str = "logistic", **settings: Any) -> tuple[FeatureClassifier, Any]:
    dataset = open_dataset(str(write_folder(root, 6)))
    features = DeepFeatures(**({"backbones": ["test_resnet.random"], "input_size": 64, "exact": True} | settings)).fit()
    rows = features.transform(dataset)
    pipeline = make_pipeline(Arm("deep", head), copies=features.copies).fit(rows, np.array(dataset["label"]))
    return FeatureClassifier(features, pipeline, ["across", "down", "disc"], f"deep + {head}"), as_samples(dataset)


@pytest.mark.parametrize(
    ("settings", "size", "apart"),
    [
        ({}, (64, 64), 1e-4),
        ({"backbones": ["test_vit.random"], "readout": "logits"}, (64, 64), 1e-4),
        ({"backbones": ["test_resnet.random", "test_efficientnet.random"], "copies": 2}, (64, 64), 1e-4),
        ({"grid": (2, 1)}, (128, 64), 0.05),  # tiles are cut before or after the change of size
        # Each backbone's own way to resize, before or after the change to the first one's size.
        ({"backbones": ["test_resnet.random", "test_vit2.random"], "input_size": None}, (160, 160), 0.01),
    ],
)
def test_in_one_step_as_in_two(tmp_path: Path, settings: dict[str, Any], size: tuple[int, int], apart: float) -> None:
    classifier, samples = fitted(tmp_path / "photos", **settings)
    subject = explainable(classifier)
    pixels, errors = subject.pixels(samples, lambda n: None)
    assert not errors and pixels.shape == (18, 3, *size) and pixels.dtype == np.uint8
    found = subject.probability(subject.logits(pixels)).numpy()
    by_two = classifier.predict(samples).probabilities
    assert np.abs(found - by_two).max() < apart
    assert by_two.std(axis=0).min() > 0.05 and subject.classes == ["across", "down", "disc"]


def test_one_backbone_over_whole_pictures_has_a_map_and_two_have_none(tmp_path: Path) -> None:
    classifier, samples = fitted(tmp_path / "photos")
    subject = explainable(classifier)
    x = subject.inputs(subject.pixels(samples, lambda n: None)[0])[:3]
    classes = torch.tensor([0, 1, 2])
    names, refused = serving(subject.model, x[:1])
    assert names == ["grad-cam", "input-x-gradient"] and "no layers of attention" in refused["attention-rollout"]
    # With average pooling and a linear head Grad-CAM is the class's row of weights times the map, over h w.
    network: Any = load_backbone("test_resnet.random", num_classes=0)
    last = network.forward_features(x)
    scale, head = classifier.pipeline[0], classifier.pipeline[-1]
    weights = torch.from_numpy(head.coef_ / scale.scale_).float()[classes]
    by_hand = torch.einsum("bc,bchw->bhw", weights, last).relu() / (last.shape[2] * last.shape[3])
    found = explain(subject.model, x, classes, ["grad-cam"])["grad-cam"]
    enlarged = torch.nn.functional.interpolate(by_hand[:, None], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, enlarged.detach(), rtol=1e-3, atol=1e-6)

    both = explainable(fitted(tmp_path / "more", backbones=["test_resnet.random", "test_efficientnet.random"])[0])
    names, refused = serving(both.model, x[:1])
    assert names == ["input-x-gradient"] and "gives no intermediate maps" in refused["grad-cam"]
    with pytest.raises(BackboneError, match="FeatureReader gives no intermediate maps"):
        explain(both.model, x, classes, ["grad-cam"])


def test_a_transformer_under_a_head_is_rolled_out(tmp_path: Path) -> None:
    classifier, samples = fitted(tmp_path / "photos", backbones=["test_vit.random"])
    subject = explainable(classifier)
    x = subject.inputs(subject.pixels(samples, lambda n: None)[0])[:2]
    found = explain(subject.model, x, torch.tensor([0, 1]))
    assert list(found) == ["attention-rollout", "input-x-gradient"] and found["attention-rollout"].min() > 0


def test_a_fine_tuned_network_and_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos", 6)
    dataset = open_dataset(str(root))
    estimator = FineTune("test_resnet.random", image_size=32, epochs=1, batch_size=8)
    estimator.fit(dataset, np.array(dataset["label"]))
    classifier = FinetunedClassifier(estimator, ["across", "disc", "down"])
    subject = explainable(classifier)
    (root / "disc" / "000.jpg").write_bytes(b"no picture")
    samples = as_samples(open_dataset(str(root)))
    pixels, errors = subject.pixels(samples, lambda n: None)
    assert [samples.name(row) for row in errors] == ["disc/000.jpg"]
    found = subject.probability(subject.logits(pixels)).numpy()
    expected = classifier.predict(samples).probabilities
    read = np.isfinite(expected).all(axis=1)
    np.testing.assert_allclose(found[read], expected[read], atol=1e-5)


def test_several_labels_are_answered_by_the_sigmoid(tmp_path: Path) -> None:
    dataset = open_dataset(str(write_folder(tmp_path / "photos", 4)))
    several = np.eye(3, dtype=np.float32)[np.array(dataset["label"])]
    estimator = FineTune("test_resnet.random", image_size=32, epochs=1, batch_size=8, multi_label=True)
    subject = explainable(FinetunedClassifier(estimator.fit(dataset, several), ["a", "b", "c"]))
    assert subject.multi_label
    torch.testing.assert_close(subject.probability(torch.zeros(1, 3)), torch.full((1, 3), 0.5))
