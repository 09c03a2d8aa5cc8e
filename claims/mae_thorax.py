"""MAE for chest X-rays (arXiv 2210.12843), its claim measured again, small, on three kinds of chest X-rays.

The claim: a plain vision transformer that is pre-trained on chest X-rays without labels, with 90 % of the patches
hidden and gentle crops, is fine-tuned to more than the same network from scratch, and to more than after the recipe for
photographs.

Rule, fixed before running (``RULE``):
Difference of balanced accuracy on held-out pictures with a 95 % interval by drawing patients and seeds again. Part i:
the recipe for X-rays beats the network from scratch with the same fine-tuning. Part ii: it beats the network from
scratch that sees as many pictures as pre-training and fine-tuning together. Part iii: it beats the mask ratio and crops
for photographs. A part is shown when its interval lies above 0 and contradicted when below; the claim is shown when all
are, contradicted when any is.

Every arm has the same network, its positions starting from the same codes, the same fine-tuning and the same labelled
pictures, drawn anew for each seed; networks from scratch have an own draw of weights for each seed. Each pre-training
is run once, so what another draw of it would change is not in the intervals.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.common import Clock, better, data_folder, keep, seeded_interval, together
from claims.spark import balanced, shown
from offshelf.backbones.export import save_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset
from offshelf.engine.train import Training, train
from offshelf.pretrain.mae_thorax import MAE
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "mae-thorax", 1
RULE = (
    "Difference of balanced accuracy on held-out pictures with a 95 % interval by drawing patients and seeds again. "
    "Part i: the recipe for X-rays beats the network from scratch with the same fine-tuning. Part ii: it beats the "
    "network from scratch that sees as many pictures as pre-training and fine-tuning together. Part iii: it beats the "
    "mask ratio and crops for photographs. A part is shown when its interval lies above 0 and contradicted when below; "
    "the claim is shown when all are, contradicted when any is."
)
ARCHITECTURE = "vit_tiny_patch16_224"
RECIPES: dict[str, dict[str, Any]] = {
    "thorax": {"mask_ratio": 0.9, "crop_scale": (0.5, 1.0)},
    "natural": {"mask_ratio": 0.75, "crop_scale": (0.2, 1.0)},
}
ARMS = {
    "thorax": "90 % hidden, crops from 0.5 on, then fine-tuned",
    "scratch": "from scratch, the same fine-tuning",
    "longer": "from scratch, as many pictures in all",
    "natural": "75 % hidden, crops from 0.2 on, then fine-tuned",
}
PARTS = (("thorax", "scratch"), ("thorax", "longer"), ("thorax", "natural"))
BESIDE = (("natural", "scratch"),)


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 80
    patch: int = 8
    width: int = 96
    depth: int = 3
    heads: int = 3
    pretrain_epochs: int = 40
    pretrain_batch: int = 64
    decoder_width: int = 48
    labels_a_class: int = 60
    finetune_epochs: int = 30
    batch: int = 64
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)

    def longer_epochs(self, unlabelled: int, classes: int) -> int:
        """Epochs over the labelled pictures in which scratch sees as many as both phases together."""
        return self.finetune_epochs + round(self.pretrain_epochs * unlabelled / (self.labels_a_class * classes))

    def network(self) -> dict[str, Any]:
        """Arguments of the architecture."""
        return {
            "img_size": self.side,
            "patch_size": self.patch,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
        }


@dataclass
class Pictures:
    """Decoded pictures ``(n, 3, S, S)`` uint8 with class numbers, and patients of the test pictures."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    test_patients: np.ndarray


def objective(sizes: Sizes, seed: int, recipe: str) -> MAE:
    """The network with random weights drawn from ``seed`` and positions that start from codes, in its autoencoder."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = timm.create_model(ARCHITECTURE, num_classes=0, **sizes.network())
        return MAE(
            backbone,
            sizes.side,
            decoder_width=sizes.decoder_width,
            decoder_depth=1,
            decoder_heads=sizes.heads,
            fixed_positions=True,
            **RECIPES[recipe],
        )


def load_pictures(sizes: Sizes) -> Pictures:
    """Chest X-rays in their given splits, which share no patient."""
    folder = data_folder("chest-xray")
    dataset = open_dataset(folder)
    with (folder / "labels.csv").open(newline="") as file:
        patient_of = {row["file"]: row["patient"] for row in csv.DictReader(file)}
    labels, splits = np.array(dataset["label"][:]), np.array(dataset["split"][:])
    patients = np.unique([patient_of[name] for name in dataset["id"][:]], return_inverse=True)[1]
    table, errors = load_pixels(as_samples(dataset), sizes.side)
    if errors:
        raise next(iter(errors.values()))
    train_rows, test_rows = splits == "train", splits == "test"
    return Pictures(table[train_rows], labels[train_rows], table[test_rows], labels[test_rows], patients[test_rows])


def pretrained(recipe: str, pictures: Pictures, sizes: Sizes) -> tuple[nn.Module, dict[str, float]]:
    """The network after one pre-training on the training pictures, without their labels; loss and seconds."""
    started = time.perf_counter()
    method = objective(sizes, 0, recipe)
    data = PictureViews(pictures.train, method.views(), seed=0)
    plan = Training.of(
        method.recipe, n=len(data), epochs=sizes.pretrain_epochs, batch_size=sizes.pretrain_batch, seed=0
    )
    told = train(method, data, plan).history
    return method.export(), {
        "first_loss": float(told[0]["loss"]),
        "last_loss": float(told[-1]["loss"]),
        "seconds": time.perf_counter() - started,
    }


def answers(pictures: Pictures, starts: dict[str, Callable[[int], nn.Module]], sizes: Sizes) -> dict[str, Any]:
    """Predictions ``(seeds, n)`` of every arm on the test pictures, and seconds of each fine-tuning."""
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in starts}
    seconds: dict[str, list[float]] = {arm: [] for arm in starts}
    classes = len(np.unique(pictures.train_labels))
    longer = sizes.longer_epochs(len(pictures.train), classes)
    with tempfile.TemporaryDirectory() as place:
        for seed in sizes.seeds:
            everything = np.arange(len(pictures.train))
            rows = balanced(pictures.train_labels, everything, sizes.labels_a_class * classes, seed)
            for arm, start in starts.items():
                folder = save_backbone(start(seed), Path(place) / f"{arm}-{seed}", model_args=sizes.network())
                began = time.perf_counter()
                classifier = FineTune(
                    backbone=str(folder),
                    image_size=sizes.side,
                    epochs=longer if arm == "longer" else sizes.finetune_epochs,
                    batch_size=sizes.batch,
                    learning_rate=sizes.learning_rate,
                    trunk_scale=1.0,  # every arm alike: a folder of random weights must not move more slowly
                    flip=True,
                    random_state=seed,
                ).fit(pictures.train[rows], pictures.train_labels[rows])
                found[arm].append(classifier.predict(pictures.test))
                seconds[arm].append(round(time.perf_counter() - began, 1))
    return {"predictions": {arm: np.stack(rows) for arm, rows in found.items()}, "seconds": seconds}


def numbers_of(
    labels: np.ndarray, patients: np.ndarray, predictions: dict[str, np.ndarray], n_boot: int = 2000
) -> dict[str, Any]:
    """Balanced accuracies and their paired differences with intervals over patients and seeds."""
    units = np.unique(patients, return_inverse=True)[1]

    def interval(a: str, b: str | None = None) -> dict[str, float]:
        other = None if b is None else predictions[b]
        return seeded_interval(labels, predictions[a], other, units, "balanced_accuracy", n_boot=n_boot)

    return {
        "arms": {arm: interval(arm) for arm in ARMS},
        "differences": {f"{a} - {b}": interval(a, b) for a, b in PARTS + BESIDE},
        "by_seed": {
            arm: [float(np.mean([(p[labels == k] == k).mean() for k in np.unique(labels)])) for p in predictions[arm]]
            for arm in ARMS
        },
        "test_pictures": len(labels),
        "test_patients": int(units.max()) + 1,
    }


def verdict_of(differences: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its three parts."""
    parts = {
        f"{a} - {b}": better(differences[f"{a} - {b}"]["low"], differences[f"{a} - {b}"]["high"]) for a, b in PARTS
    }
    return together(list(parts.values())), parts


def record(numbers: dict[str, Any], sizes: Sizes, unlabelled: int, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers["differences"])
    cells = {name: shown(cell) for name, cell in numbers["differences"].items()}
    rows = [[ARMS[arm], shown(cell)] for arm, cell in numbers["arms"].items()]
    for a, b in PARTS + BESIDE:
        within = " (in the rule)" if (a, b) in PARTS else ""
        rows.append([f"{ARMS[a]} minus {ARMS[b]}{within}", cells[f"{a} - {b}"]])
    losses, labelled = numbers["pretraining"], sizes.labels_a_class * classes
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"A small vision transformer on chest X-rays of {classes} kinds with {labelled:,} labels; balanced "
        f"accuracy with 95 % intervals: the recipe for X-rays minus from scratch {cells['thorax - scratch']}, "
        f"{parts['thorax - scratch']}; minus from scratch with as many pictures seen {cells['thorax - longer']}, "
        f"{parts['thorax - longer']}; minus the mask ratio and crops for photographs {cells['thorax - natural']}, "
        f"{parts['thorax - natural']}.",
        "rule": RULE,
        "setting": f"timm's {ARCHITECTURE} with {sizes.network()}, {(sizes.side // sizes.patch) ** 2} patches, "
        f"positions that start from sine and cosine codes in every arm; decoder of width {sizes.decoder_width} and one "
        f"block. Pre-trained on {unlabelled:,} pictures for "
        f"{sizes.pretrain_epochs} epochs; fine-tuned on {labelled:,} of "
        f"them for {sizes.finetune_epochs} epochs (from scratch also for {sizes.longer_epochs(unlabelled, classes)}) "
        f"in batches of {sizes.batch} at learning rate {sizes.learning_rate:g}, {len(sizes.seeds)} seeds; "
        f"{numbers['test_pictures']:,} test pictures of {numbers['test_patients']:,} other patients, chance "
        f"{1 / classes:.3f}. 2,000 resamples.",
        "table": {"header": ["Arm", "balanced accuracy"], "rows": rows},
        "notes": [
            "Each pre-training was run once: another draw of its weights and masks may give another result, and that "
            "is not in the intervals. The paper trains on 266,340 X-rays for 800 epochs, and fine-tunes on 75,312 with "
            "14 findings each.",
            "The kinds come from different hospitals, and a network can tell some of them by borders and letters: the "
            "accuracies say nothing about medical skill.",
            "Squared error of hidden pixels in the first and the last steps of pre-training: for X-rays "
            f"{losses['thorax']['first_loss']:.3f} and {losses['thorax']['last_loss']:.3f}, for photographs "
            f"{losses['natural']['first_loss']:.3f} and {losses['natural']['last_loss']:.3f}.",
            f"Pre-training took {losses['thorax']['seconds']:.0f} s (90 % hidden) and "
            f"{losses['natural']['seconds']:.0f} s (75 %), a fine-tuning "
            f"{np.mean(numbers['seconds']['thorax']):.0f} s, the longer one from scratch "
            f"{np.mean(numbers['seconds']['longer']):.0f} s.",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Pre-train, fine-tune all arms, and make the record."""
    learnt = {recipe: pretrained(recipe, pictures, sizes) for recipe in RECIPES}
    starts: dict[str, Callable[[int], nn.Module]] = {
        "thorax": lambda seed: learnt["thorax"][0],
        "scratch": lambda seed: objective(sizes, seed, "thorax").export(),
        "longer": lambda seed: objective(sizes, seed, "thorax").export(),
        "natural": lambda seed: learnt["natural"][0],
    }
    found = answers(pictures, starts, sizes)
    numbers = numbers_of(pictures.test_labels, pictures.test_patients, found["predictions"])
    numbers |= {"pretraining": {recipe: told for recipe, (_, told) in learnt.items()}, "seconds": found["seconds"]}
    return record(numbers, sizes, len(pictures.train), len(np.unique(pictures.train_labels)))


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    return keep(SLUG, VERSION, compare(load_pictures(sizes), sizes), clock)
