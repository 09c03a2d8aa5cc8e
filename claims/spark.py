"""SparK (arXiv 2301.03580), its claim measured again, small, on CIFAR-10.

The claim: an ordinary convolutional network that is pre-trained by sparse, hierarchical masked modelling on pictures
without labels is fine-tuned to a higher accuracy than the same network from scratch; and masking only the picture
instead of all layers loses most of the gain.

Rule, fixed before running (``RULE``):
Difference of balanced accuracy on held-out pictures with a 95 % interval by drawing test pictures and seeds again.
Part i: SparK beats the network from scratch with the same fine-tuning. Part ii: it beats the network from scratch that
sees as many pictures as SparK does in pre-training and fine-tuning together. A part is shown when its interval lies
above 0 and contradicted when below; the claim is shown when both are, contradicted when any is.

Every arm has the same network, recipe and labelled pictures, drawn anew for each seed; networks from scratch have an
own draw of weights for each seed. Each pre-training is run once, so what another draw of it would change is not in the
intervals. Zero-filled pre-training (the same masks and decoder, ordinary layers) is measured beside, outside the rule.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.cifar import Pictures, balanced, load_pictures, shown
from claims.common import Clock, better, keep, seeded_interval, together
from offshelf.backbones.export import save_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.train import Training, train
from offshelf.pretrain.spark import SparK
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "spark", 1
RULE = (
    "Difference of balanced accuracy on held-out pictures with a 95 % interval by drawing test pictures and seeds "
    "again. Part i: SparK beats the network from scratch with the same fine-tuning. Part ii: it beats the network from "
    "scratch that sees as many pictures as SparK does in pre-training and fine-tuning together. A part is shown when "
    "its interval lies above 0 and contradicted when below; the claim is shown when both are, contradicted when any is."
)
ARCHITECTURE = "resnet18"
NETWORK: dict[str, Any] = {  # stem to stride 4, stages of strides 4, 8, 8, 8: cells of 8 pixels, a 4 x 4 grid
    "layers": [1, 1, 1, 1],
    "channels": [32, 64, 128, 128],
    "output_stride": 8,
    "stem_type": "deep",
    "stem_width": 16,
}
ARMS = {
    "spark": "SparK, then fine-tuned",
    "scratch": "from scratch, the same fine-tuning",
    "longer": "from scratch, as many pictures as SparK in all",
    "zeros": "zero-filled masking, then fine-tuned",
}
PARTS = (("spark", "scratch"), ("spark", "longer"))
BESIDE = (("spark", "zeros"), ("zeros", "scratch"))


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 32
    unlabelled: int = 8_000
    pretrain_epochs: int = 6
    pretrain_batch: int = 128
    decoder_width: int = 64
    labels_a_class: int = 100
    test: int = 5_000
    finetune_epochs: int = 25
    finetune_batch: int = 64
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)

    def longer_epochs(self, classes: int) -> int:
        """Epochs over the labelled pictures in which scratch sees as many as both phases of SparK."""
        extra = self.pretrain_epochs * self.unlabelled / (self.labels_a_class * classes)
        return self.finetune_epochs + round(extra)


class ZeroFilled(SparK):
    """The same masks, tokens and decoder around a dense network: hidden cells are zero in the picture only."""

    def encode(self, pictures: torch.Tensor, seen: torch.Tensor) -> list[torch.Tensor]:
        """Stages of the ordinary network, coarsest first; they are not zero at hidden positions."""
        with self.visible.only(seen):
            hidden = self.visible.masked(pictures)
        maps = self.backbone.forward_intermediates(hidden, intermediates_only=True, output_fmt="NCHW")
        return [maps[i] for i in self.stages]


def network(seed: int) -> nn.Module:
    """The network with random weights drawn from ``seed``."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE, num_classes=0, **NETWORK)


def pretrained(kind: type[SparK], pictures: Pictures, sizes: Sizes) -> tuple[nn.Module, dict[str, float]]:
    """The network after one pre-training on the training pictures, without their labels; loss and seconds."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the decoder's weights
        objective = kind(network(0), sizes.side, decoder_width=sizes.decoder_width)
    data = PictureViews(pictures.train, objective.views(), seed=0)
    plan = Training.of(
        objective.recipe, n=len(data), epochs=sizes.pretrain_epochs, batch_size=sizes.pretrain_batch, seed=0
    )
    told = train(objective, data, plan).history
    return objective.export(), {
        "first_loss": float(told[0]["loss"]),
        "last_loss": float(told[-1]["loss"]),
        "seconds": time.perf_counter() - started,
    }


def answers(pictures: Pictures, starts: dict[str, Callable[[int], nn.Module]], sizes: Sizes) -> dict[str, Any]:
    """Predictions ``(seeds, n)`` of every arm on the test pictures, and seconds of each fine-tuning."""
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in starts}
    seconds: dict[str, list[float]] = {arm: [] for arm in starts}
    classes = len(np.unique(pictures.train_labels))
    with tempfile.TemporaryDirectory() as place:
        for seed in sizes.seeds:
            everything = np.arange(len(pictures.train))
            rows = balanced(pictures.train_labels, everything, sizes.labels_a_class * classes, seed)
            for arm, start in starts.items():
                folder = save_backbone(start(seed), Path(place) / f"{arm}-{seed}", model_args=NETWORK)
                began = time.perf_counter()
                classifier = FineTune(
                    backbone=str(folder),
                    image_size=sizes.side,
                    epochs=sizes.longer_epochs(classes) if arm == "longer" else sizes.finetune_epochs,
                    batch_size=sizes.finetune_batch,
                    learning_rate=sizes.learning_rate,
                    trunk_scale=1.0,  # every arm alike: a folder of random weights must not move more slowly
                    flip=True,
                    random_state=seed,
                ).fit(pictures.train[rows], pictures.train_labels[rows])
                found[arm].append(classifier.predict(pictures.test))
                seconds[arm].append(round(time.perf_counter() - began, 1))
    return {"predictions": {arm: np.stack(rows) for arm, rows in found.items()}, "seconds": seconds}


def numbers_of(labels: np.ndarray, predictions: dict[str, np.ndarray], n_boot: int = 2000) -> dict[str, Any]:
    """Balanced accuracies and their paired differences with intervals."""
    units = np.arange(len(labels))

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
    }


def verdict_of(differences: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its two parts."""
    parts = {
        f"{a} - {b}": better(differences[f"{a} - {b}"]["low"], differences[f"{a} - {b}"]["high"]) for a, b in PARTS
    }
    return together(list(parts.values())), parts


def record(numbers: dict[str, Any], sizes: Sizes, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers["differences"])
    cells = {name: shown(cell) for name, cell in numbers["differences"].items()}
    rows = [[ARMS[arm], shown(cell)] for arm, cell in numbers["arms"].items()]
    for a, b in PARTS + BESIDE:
        within = " (in the rule)" if (a, b) in PARTS else ""
        rows.append([f"{ARMS[a]} minus {ARMS[b]}{within}", cells[f"{a} - {b}"]])
    losses = numbers["pretraining"]
    labelled = sizes.labels_a_class * classes
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"A small residual network on CIFAR-10 with {labelled:,} labels; balanced accuracy with 95 % "
        f"intervals: SparK minus from scratch {cells['spark - scratch']}, {parts['spark - scratch']}; minus from "
        f"scratch with as many pictures seen {cells['spark - longer']}, {parts['spark - longer']}. Sparse minus "
        f"zero-filled pre-training {cells['spark - zeros']}.",
        "rule": RULE,
        "setting": f"timm's {ARCHITECTURE} with {NETWORK}, {sizes.side} pixels, {(sizes.side // 8) ** 2} cells of 8 "
        f"pixels of which 60 % are hidden, decoder width {sizes.decoder_width}. Pre-trained on {sizes.unlabelled:,} "
        f"pictures for {sizes.pretrain_epochs} epochs; fine-tuned on {labelled:,} of them for "
        f"{sizes.finetune_epochs} epochs (from scratch also for {sizes.longer_epochs(classes)}) in batches of "
        f"{sizes.finetune_batch} at learning rate {sizes.learning_rate:g}, {len(sizes.seeds)} seeds; "
        f"{numbers['test_pictures']:,} test pictures, chance {1 / classes:.3f}. 2,000 resamples.",
        "table": {"header": ["Arm", "balanced accuracy"], "rows": rows},
        "notes": [
            "Each pre-training was run once: another draw of its weights and masks may give another result, and that "
            "is not in the intervals. The paper trains for 1,600 epochs on 1.28 million pictures, with networks "
            "hundreds of times as costly; its authors expect less of very small networks.",
            "Squared error of hidden pixels at the end of pre-training, where painting nothing scores about 1: SparK "
            f"{losses['spark']['last_loss']:.3f}, zero-filled {losses['zeros']['last_loss']:.3f}.",
            f"Pre-training took {losses['spark']['seconds']:.0f} s (sparse) and {losses['zeros']['seconds']:.0f} s "
            f"(zero-filled), a fine-tuning {np.mean(numbers['seconds']['spark']):.0f} s, the longer one from scratch "
            f"{np.mean(numbers['seconds']['longer']):.0f} s.",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Pre-train, fine-tune all arms, and make the record."""
    sparse, sparse_told = pretrained(SparK, pictures, sizes)
    dense, dense_told = pretrained(ZeroFilled, pictures, sizes)
    starts = {"spark": lambda seed: sparse, "scratch": network, "longer": network, "zeros": lambda seed: dense}
    found = answers(pictures, starts, sizes)
    numbers = numbers_of(pictures.test_labels, found["predictions"])
    numbers |= {
        "pretraining": {"spark": sparse_told, "zeros": dense_told},
        "seconds": found["seconds"],
        "test_pictures": len(pictures.test),
    }
    return record(numbers, sizes, len(np.unique(pictures.train_labels)))


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    return keep(SLUG, VERSION, compare(load_pictures(sizes.side, sizes.unlabelled, sizes.test), sizes), clock)
