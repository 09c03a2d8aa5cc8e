"""The claim of battle-of-the-backbones, small: tasks rank backbones alike, and CNNs lead ViTs of their size.

Twelve entries, four designs of a few hundred thousand parameters (two CNNs, two ViTs) by three ways to come by weights:
random, supervised on six classes of CIFAR-10, self-supervised on the same pictures (SparK for CNNs, a masked
autoencoder for ViTs). Each is made three times from other seeds. `offshelf.evaluate.battle.gauntlet` then asks the
thirty-six networks, frozen: the other four classes of CIFAR-10 with few labels (linear probe, neighbours, retrieval,
damaged pictures) and chest X-rays (linear probe).

Rule, fixed before running (``RULE``). What was seen before: the speed of a training step of the four designs.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.cifar import Pictures, balanced, load_pictures
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, Clock, better, data_folder, keep, together
from offshelf.backbones.export import save_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.console import Console
from offshelf.engine.train import Training, train
from offshelf.evaluate.battle.agreement import correlate
from offshelf.evaluate.battle.decks import Place
from offshelf.evaluate.battle.gather import make_grid
from offshelf.evaluate.battle.gauntlet import Gauntlet
from offshelf.evaluate.battle.grid import Grid
from offshelf.evaluate.battle.replicates import score
from offshelf.evaluate.seeds import over_seeds
from offshelf.pretrain.mae_thorax import MAE
from offshelf.pretrain.spark import SparK
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "battle-of-the-backbones", 1
SIDE = 32
CNN, VIT = {"output_stride": 8}, {"img_size": SIDE, "patch_size": 4}
DESIGNS: dict[str, dict[str, Any]] = {"test_resnet": CNN, "test_convnext": CNN, "test_vit": VIT, "test_vit2": VIT}
WAYS = ("random", "supervised", "self-supervised")
LEARNT, HELD_BACK = tuple(range(6)), tuple(range(6, 10))
STRONG = 0.5
COLUMNS = (
    "cifar/linear/v1@100%",
    "cifar/knn/v1@100%",
    "x-rays/linear/v1@100%",
    "cifar/retrieval/v1",
    "cifar/robustness/v1@100%",
)
RULE = (
    "Tasks agree: the mean rank correlation (Spearman) over all pairs of five settings, each entry the mean of three "
    f"seeds, with a 95 % interval by drawing entries again. Part i, all twelve entries: shown when the interval lies "
    f"above {STRONG}, contradicted when below. Part ii, the eight entries that learnt something: shown when it lies "
    "above 0, contradicted when below. Part iii: overall score of the supervised CNNs minus that of the supervised "
    "ViTs, with a 95 % interval by drawing tested pictures and seeds again: shown above 0, contradicted below. The "
    "claim is shown when all parts are, contradicted when any is."
)


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    learning: int = 6_000
    supervised_epochs: int = 4
    self_supervised_epochs: int = 3
    batch: int = 64
    learning_rate: float = 3e-3
    decoder_width: int = 64
    few: int = 400
    test: int = 1_000
    seeds: tuple[int, ...] = (0, 1, 2)


def network(design: str, seed: int) -> nn.Module:
    """A design with random weights drawn from ``seed``."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(design, num_classes=0, **DESIGNS[design])


def supervised(start: nn.Module, design: str, pictures: Pictures, sizes: Sizes, seed: int, place: Path) -> nn.Module:
    """The network after training on the labels of the six classes, without its classifier."""
    folder = save_backbone(start, place / "start", model_args=DESIGNS[design])
    classifier = FineTune(
        backbone=str(folder),
        image_size=SIDE,
        epochs=sizes.supervised_epochs,
        batch_size=sizes.batch,
        learning_rate=sizes.learning_rate,
        trunk_scale=1.0,  # the start is random
        flip=True,
        random_state=seed,
    ).fit(pictures.train, pictures.train_labels)
    model = classifier.model_
    model.reset_classifier(0)  # type: ignore[operator]
    return model


def self_supervised(start: nn.Module, design: str, pictures: Pictures, sizes: Sizes, seed: int) -> nn.Module:
    """The network after painting hidden parts of the same pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the decoder's weights
        if DESIGNS[design] is CNN:
            objective: Any = SparK(start, SIDE, decoder_width=sizes.decoder_width)
        else:
            objective = MAE(
                start,
                SIDE,
                mask_ratio=0.75,
                crop_scale=(0.2, 1.0),
                norm_pix_loss=True,
                decoder_width=sizes.decoder_width,
                decoder_depth=2,
                decoder_heads=4,
            )
    data = PictureViews(pictures.train, objective.views(), seed=seed)
    plan = Training.of(
        objective.recipe, n=len(data), epochs=sizes.self_supervised_epochs, batch_size=sizes.batch, seed=seed
    )
    train(objective, data, plan)
    return objective.export()


def entry(design: str, way: str, seed: int) -> str:
    """The name of one network."""
    return f"{design}-{way}-{seed}"


def make_networks(pictures: Pictures, sizes: Sizes, place: Path) -> dict[str, Path]:
    """All networks as folders, by name."""
    found = {}
    for design in DESIGNS:
        for way in WAYS:
            for seed in sizes.seeds:
                model, name = network(design, seed), entry(design, way, seed)
                if way == "supervised":
                    model = supervised(model, design, pictures, sizes, seed, place)
                elif way == "self-supervised":
                    model = self_supervised(model, design, pictures, sizes, seed)
                found[name] = save_backbone(model, place / name, model_args=DESIGNS[design])
    return found


def six_classes(sizes: Sizes) -> Pictures:
    """Pictures of the first six classes to learn from."""
    return _of_classes(load_pictures(SIDE, round(sizes.learning * 10 / len(LEARNT)), 10), LEARNT)


def _of_classes(pictures: Pictures, classes: tuple[int, ...]) -> Pictures:
    train, test = np.isin(pictures.train_labels, classes), np.isin(pictures.test_labels, classes)
    return Pictures(
        pictures.train[train], pictures.train_labels[train], pictures.test[test], pictures.test_labels[test]
    )


def write_four_classes(sizes: Sizes, place: Path) -> Path:
    """The other four classes as a folder with given splits: a few pictures to train on, more to test on."""
    from PIL import Image

    asked = load_pictures(SIDE, round(sizes.few * 10 / 4), round(sizes.test * 10 / 4))
    four = _of_classes(asked, HELD_BACK)
    rows = balanced(four.train_labels, np.arange(len(four.train)), sizes.few, 0)
    parts = (("train", four.train[rows], four.train_labels[rows]), ("test", four.test, four.test_labels))
    for split, pixels, labels in parts:
        for number, (picture, label) in enumerate(zip(pixels, labels)):
            folder = place / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{number:05d}.png")
    return place


def fight(networks: dict[str, Path], cifar: Path, place: Path, workers: int | None = None) -> Grid:
    """All networks through all contests; the grid's backbones are the names."""
    xrays = data_folder("chest-xray") / "labels.csv"
    places = [
        Place(str(cifar), "cifar"),
        Place(str(xrays.resolve()), "x-rays", path_column="file", label_column=("label",), group_column="patient"),
    ]
    gauntlet = Gauntlet(
        [str(folder) for folder in networks.values()],
        places,
        protocols=("linear", "knn", "retrieval", "robustness"),
        workers=workers,
        console=Console(quiet=True),
    )
    place.mkdir()
    grid = make_grid(gauntlet.run(place))
    names = {str(folder): name for name, folder in networks.items()}
    return Grid([names[folder] for folder in grid.backbones], grid.settings, grid.values, grid.drawn)


def agreement(grid: Grid, sizes: Sizes, ways: tuple[str, ...]) -> dict[str, Any]:
    """Mean rank correlation of the five settings over the entries of ``ways``, each the mean of its seeds."""
    columns = [[setting.id for setting in grid.settings].index(name) for name in COLUMNS]
    names = [(design, way) for design in DESIGNS for way in ways]
    rows = [[grid.backbones.index(entry(*name, seed)) for seed in sizes.seeds] for name in names]
    table = np.stack([grid.values[row][:, columns].mean(axis=0) for row in rows])
    found = correlate(table)
    return {
        "value": float(found["mean_spearman"]),
        "low": float(found["low"]),
        "high": float(found["high"]),
        "n": int(found["n"]),
        "spearman": found["spearman"].tolist(),
        "entries": [" ".join(name) for name in names],
        "values": table.tolist(),
    }


def lead(grid: Grid, sizes: Sizes, way: str) -> dict[str, float]:
    """Overall score of the CNNs of one way minus that of its ViTs."""
    scores = score(grid).overall
    assert scores.replicates is not None

    def mean(kind: dict[str, Any], seed: int) -> tuple[float, np.ndarray]:
        rows = [grid.backbones.index(entry(design, way, seed)) for design, of in DESIGNS.items() if of is kind]
        return float(scores.values[rows].mean()), scores.replicates[rows].mean(axis=0)  # type: ignore[index]

    pairs = [(mean(CNN, seed), mean(VIT, seed)) for seed in sizes.seeds]
    drawn = over_seeds(np.stack([cnn[1] - vit[1] for cnn, vit in pairs]), len(sizes.seeds))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "difference": float(np.mean([cnn[0] - vit[0] for cnn, vit in pairs])),
        "low": float(low),
        "high": float(high),
    }


def verdict_of(numbers: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The verdict of the claim, and that of each part."""
    everything, learnt, ahead = (numbers[key] for key in ("agreement", "agreement_learnt", "lead_supervised"))
    parts = {
        "tasks agree strongly, all entries": _above(everything, STRONG),
        "tasks agree, entries that learnt": _above(learnt, 0.0),
        "supervised CNNs - supervised ViTs": better(ahead["low"], ahead["high"]),
    }
    return together(list(parts.values())), parts


def _above(cell: dict[str, float], line: float) -> str:
    if not np.isfinite([cell["low"], cell["high"]]).all():
        return NOT_SHOWN
    return SHOWN if cell["low"] > line else CONTRADICTED if cell["high"] < line else NOT_SHOWN


def numbers_of(grid: Grid, sizes: Sizes) -> dict[str, Any]:
    """Everything that is told."""
    overall = score(grid).overall.values
    return {
        "agreement": agreement(grid, sizes, WAYS),
        "agreement_learnt": agreement(grid, sizes, WAYS[1:]),
        "lead_supervised": lead(grid, sizes, "supervised"),
        "lead_self_supervised": lead(grid, sizes, "self-supervised"),
        "overall": {name: float(value) for name, value in zip(grid.backbones, overall)},
        "settings": [asdict(setting) for setting in grid.settings],
        "sizes": asdict(sizes),
    }


def record(numbers: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The claim's record."""
    verdict, parts = verdict_of(numbers)
    everything, learnt = numbers["agreement"], numbers["agreement_learnt"]
    ahead, other = numbers["lead_supervised"], numbers["lead_self_supervised"]

    def span(cell: dict[str, float], form: str = ".2f") -> str:
        value = cell["value"] if "value" in cell else cell["difference"]
        return f"{value:{form}} [{cell['low']:{form}}, {cell['high']:{form}}]"

    rows = []
    for place, name in enumerate(everything["entries"]):
        design, _, way = name.partition(" ")
        score_of = np.mean([numbers["overall"][entry(design, way, seed)] for seed in sizes.seeds])
        rows.append([name, *[f"{value:.3f}" for value in everything["values"][place]], f"{score_of:+.2f}"])
    header = ["entry", "linear", "neighbours", "X-rays, linear", "retrieval (mAP)", "damaged", "overall (z)"]
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": "Four small designs by three ways to come by weights; 95 % intervals: mean rank correlation of "
        f"five settings {span(everything)} over all twelve entries, {parts['tasks agree strongly, all entries']} (line "
        f"at {STRONG}); {span(learnt)} over the eight that learnt, {parts['tasks agree, entries that learnt']} (line "
        f"at 0). Supervised CNNs minus supervised ViTs, in standard deviations of the pool: {span(ahead, '+.2f')}, "
        f"{parts['supervised CNNs - supervised ViTs']}; self-supervised {span(other, '+.2f')}.",
        "rule": RULE,
        "setting": f"timm's {', '.join(DESIGNS)} at {SIDE} pixels (CNNs with output stride 8, ViTs with patches of 4); "
        f"{sizes.learning:,} pictures of six classes of CIFAR-10, {sizes.supervised_epochs} epochs supervised or "
        f"{sizes.self_supervised_epochs} self-supervised, batches of {sizes.batch}; asked on {sizes.few} training and "
        f"{sizes.test:,} test pictures of the other four classes and on chest X-rays by patient. Protocols linear/v1, "
        f"knn/v1, retrieval/v1, robustness/v1; {len(sizes.seeds)} seeds of every network.",
        "table": {"header": header, "rows": rows},
        "notes": [
            "Balanced accuracy, and mean average precision for retrieval; mean of the seeds. The overall score is over "
            "all eight settings, those on X-rays included.",
            "The interval of a rank correlation is over draws of entries, of which there are few; it does not hold "
            "another choice of data sets. An epoch of SparK on the residual network took about twice a supervised one.",
        ],
        "numbers": numbers,
    }


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    with tempfile.TemporaryDirectory() as where:
        place = Path(where)
        os.environ.setdefault("OFFSHELF_CACHE", str(place / "cache"))
        networks = make_networks(six_classes(sizes), sizes, place / "networks")
        grid = fight(networks, write_four_classes(sizes, place / "cifar"), place / "battle")
        return keep(SLUG, VERSION, record(numbers_of(grid, sizes), sizes), clock)
