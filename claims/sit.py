"""SiT (arXiv 2104.03602), its claim measured again, small, on CIFAR-10.

The claim: a vision transformer that learns reconstruction, rotation and contrast together is fine-tuned with few labels
to a higher accuracy than the same network from scratch, and the three tasks are at least as good as reconstruction
alone.

Rule, fixed before running (``RULE``):
Difference of balanced accuracy on held-out pictures with a 95 % interval by drawing test pictures and seeds again.
Part i: SiT beats the network from scratch with the same fine-tuning. Part ii: it beats the network from scratch that
sees as many views as SiT does in pre-training and fine-tuning together. Part iii: it is at least as good as
pre-training by reconstruction alone, within 0.01. A part is shown when its interval lies above 0 (part iii: above
-0.01) and contradicted when below; the claim is shown when all three are, contradicted when any is.

Every arm has the same network, recipe and labelled pictures, drawn anew for each seed; networks from scratch have an
own draw of weights for each seed. Each pre-training is run once, with the same views, so what another draw of it would
change is not in the intervals. Linear heads on the frozen mean of both tokens are measured beside, outside the rule.
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
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from claims.cifar import Pictures, balanced, load_pictures, shown
from claims.common import Clock, better, keep, seeded_interval, together
from offshelf.backbones.export import save_backbone
from offshelf.backbones.readout import read
from offshelf.data.augment import normalised, resized
from offshelf.data.picture_views import PictureViews
from offshelf.engine.train import Training, train
from offshelf.engine.undisturbed import undisturbed
from offshelf.pretrain.sit import SiT
from offshelf.transfer.finetune import FineTune
from offshelf.transfer.ridge_path import RidgePath

SLUG, VERSION = "sit", 1
MARGIN = 0.01
RULE = (
    "Difference of balanced accuracy on held-out pictures with a 95 % interval by drawing test pictures and seeds "
    "again. Part i: SiT beats the network from scratch with the same fine-tuning. Part ii: it beats the network from "
    "scratch that sees as many views as SiT does in pre-training and fine-tuning together. Part iii: it is at least as "
    "good as pre-training by reconstruction alone, within 0.01. A part is shown when its interval lies above 0 (part "
    "iii: above -0.01) and contradicted when below; the claim is shown when all three are, contradicted when any is."
)
ARCHITECTURE = "deit_tiny_distilled_patch16_224"  # both tokens are the network's own, and two heads are averaged
NETWORK: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4}
TASKS: dict[str, dict[str, bool]] = {"sit": {}, "reconstruction": {"rotate": False, "contrast": False}}
ARMS = {
    "sit": "SiT, then fine-tuned",
    "reconstruction": "reconstruction alone, then fine-tuned",
    "scratch": "from scratch, the same fine-tuning",
    "longer": "from scratch, as many views as SiT in all",
}
FROZEN = {"sit": "SiT", "reconstruction": "reconstruction alone", "scratch": "random weights"}
PARTS = {("sit", "scratch"): 0.0, ("sit", "longer"): 0.0, ("sit", "reconstruction"): MARGIN}
BESIDE = (("reconstruction", "scratch"),)


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    unlabelled: int = 3_000
    pretrain_epochs: int = 12
    pretrain_batch: int = 128
    labels_a_class: int = 50
    test: int = 4_000
    finetune_epochs: int = 25
    finetune_batch: int = 50
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)

    def longer_epochs(self, classes: int) -> int:
        """Epochs over the labelled pictures in which scratch sees as many views as both phases of SiT."""
        extra = 2 * self.pretrain_epochs * self.unlabelled / (self.labels_a_class * classes)
        return self.finetune_epochs + round(extra)


def network(seed: int) -> nn.Module:
    """The network with random weights drawn from ``seed``."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE, num_classes=0, **NETWORK)


def pretrained(arm: str, pictures: Pictures, sizes: Sizes) -> tuple[nn.Module, dict[str, float]]:
    """The network after one pre-training on the training pictures, without labels; its last numbers and seconds."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the heads' weights
        objective = SiT(network(0), NETWORK["img_size"], **TASKS[arm])
    data = PictureViews(pictures.train, objective.views(), seed=0)
    plan = Training.of(
        objective.recipe, n=len(data), epochs=sizes.pretrain_epochs, batch_size=sizes.pretrain_batch, seed=0
    )
    told = train(objective, data, plan).history
    last = {name: float(value) for name, value in told[-1].items()}
    return objective.export(), last | {"seconds": time.perf_counter() - started}


def features(model: nn.Module, table: np.ndarray) -> np.ndarray:
    """What the classifier would see of pictures as they are: the mean of both tokens, ``(n, d)``."""
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]  # type: ignore[index]
    with undisturbed(model):
        parts = [
            read(model, normalised(resized(torch.from_numpy(part), NETWORK["img_size"]), mean, std)).float()
            for part in np.array_split(table, max(1, len(table) // 256))
        ]
    return torch.cat(parts).numpy()


def answers(pictures: Pictures, starts: dict[str, Callable[[int], nn.Module]], sizes: Sizes) -> dict[str, Any]:
    """Predictions ``(seeds, n)`` of every arm, fine-tuned and frozen, and seconds of each fine-tuning."""
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    frozen: dict[str, list[np.ndarray]] = {arm: [] for arm in FROZEN}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    classes = len(np.unique(pictures.train_labels))
    for seed in sizes.seeds:
        rows = balanced(pictures.train_labels, np.arange(len(pictures.train)), sizes.labels_a_class * classes, seed)
        table, labels = pictures.train[rows], pictures.train_labels[rows]
        for arm in FROZEN:
            model = starts[arm](seed)
            head = make_pipeline(StandardScaler(), RidgePath(random_state=seed)).fit(features(model, table), labels)
            frozen[arm].append(head.predict(features(model, pictures.test)))
        for arm in ARMS:
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as place:
                folder = save_backbone(starts[arm](seed), Path(place) / arm, model_args=NETWORK)
                fitted = FineTune(
                    backbone=str(folder),
                    image_size=NETWORK["img_size"],
                    epochs=sizes.longer_epochs(classes) if arm == "longer" else sizes.finetune_epochs,
                    batch_size=sizes.finetune_batch,
                    learning_rate=sizes.learning_rate,
                    trunk_scale=1.0,  # every arm alike: a folder of random weights must not move more slowly
                    flip=True,
                    precision="fp32",  # as in pre-training
                    random_state=seed,
                ).fit(table, labels)
            found[arm].append(fitted.predict(pictures.test))
            seconds[arm].append(round(time.perf_counter() - began, 1))
    return {
        "predictions": {arm: np.stack(one) for arm, one in found.items()},
        "frozen": {arm: np.stack(one) for arm, one in frozen.items()},
        "seconds": seconds,
    }


def numbers_of(
    labels: np.ndarray, predictions: dict[str, np.ndarray], frozen: dict[str, np.ndarray], n_boot: int = 2000
) -> dict[str, Any]:
    """Balanced accuracies and their paired differences with intervals."""
    units = np.arange(len(labels))

    def interval(a: np.ndarray, b: np.ndarray | None = None) -> dict[str, float]:
        return seeded_interval(labels, a, b, units, "balanced_accuracy", n_boot=n_boot)

    return {
        "arms": {arm: interval(predictions[arm]) for arm in ARMS},
        "differences": {f"{a} - {b}": interval(predictions[a], predictions[b]) for a, b in [*PARTS, *BESIDE]},
        "frozen": {arm: interval(frozen[arm]) for arm in FROZEN},
        "frozen_differences": {
            f"{a} - {b}": interval(frozen[a], frozen[b]) for a, b in (("sit", "scratch"), ("sit", "reconstruction"))
        },
        "by_seed": {
            arm: [float(np.mean([(p[labels == k] == k).mean() for k in np.unique(labels)])) for p in predictions[arm]]
            for arm in ARMS
        },
    }


def verdict_of(differences: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its three parts."""
    parts = {}
    for (a, b), margin in PARTS.items():
        cell = differences[f"{a} - {b}"]
        parts[f"{a} - {b}"] = better(cell["low"], cell["high"], margin)
    return together(list(parts.values())), parts


def record(numbers: dict[str, Any], sizes: Sizes, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers["differences"])
    cells = {name: shown(cell) for name, cell in numbers["differences"].items()}
    rows = [[ARMS[arm], shown(cell)] for arm, cell in numbers["arms"].items()]
    for a, b in [*PARTS, *BESIDE]:
        within = " (in the rule)" if (a, b) in PARTS else ""
        rows.append([f"{ARMS[a]} minus {ARMS[b]}{within}", cells[f"{a} - {b}"]])
    rows += [[f"frozen, linear head: {FROZEN[arm]}", shown(cell)] for arm, cell in numbers["frozen"].items()]
    for name, cell in numbers["frozen_differences"].items():
        a, b = name.split(" - ")
        rows.append([f"frozen, linear head: {FROZEN[a]} minus {FROZEN[b]}", shown(cell)])
    told = numbers["pretraining"]
    ends = ", ".join(f"{task} {told['sit'][f'log_variance_{task}']:.2f}" for task in _tasks(told["sit"]))
    losses = ", ".join(f"{task} {told['sit'][task]:.3f}" for task in _tasks(told["sit"]))
    labelled = sizes.labels_a_class * classes
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"A small vision transformer on CIFAR-10 with {labelled:,} labels; balanced accuracy with 95 % "
        f"intervals: SiT minus from scratch {cells['sit - scratch']}, {parts['sit - scratch']}; minus from scratch "
        f"with as many views seen {cells['sit - longer']}, {parts['sit - longer']}; minus reconstruction alone "
        f"{cells['sit - reconstruction']}, at least as good: {parts['sit - reconstruction']}.",
        "rule": RULE,
        "setting": f"timm's {ARCHITECTURE} with {NETWORK}: 16 patches and two tokens. Pre-trained on "
        f"{sizes.unlabelled:,} pictures, two views of each, for {sizes.pretrain_epochs} epochs in batches of "
        f"{sizes.pretrain_batch}; fine-tuned on {labelled:,} of them for {sizes.finetune_epochs} epochs (from scratch "
        f"also for {sizes.longer_epochs(classes)}) in batches of {sizes.finetune_batch} at learning rate "
        f"{sizes.learning_rate:g}, {len(sizes.seeds)} seeds; {numbers['test_pictures']:,} test pictures, chance "
        f"{1 / classes:.3f}. 2,000 resamples.",
        "table": {"header": ["Arm", "balanced accuracy"], "rows": rows},
        "notes": [
            "Each pre-training was run once: another draw of its weights and views may give another result, and that "
            "is not in the intervals. The paper trains for 501 epochs with a network nearly two hundred times as large "
            "and patches of 16 pixels of pictures of 224.",
            f"Losses at the end of pre-training: {losses} (rotation by chance 1.386, contrast "
            f"{np.log(2 * sizes.pretrain_batch - 1):.3f}); turns told rightly {told['sit']['rotation_accuracy']:.3f} "
            f"(chance 0.25); reconstruction alone {told['reconstruction']['loss']:.3f}.",
            f"The learnt log variances went from 1 to {ends}: in {sizes.pretrain_epochs} epochs they move by little, "
            "so that the weights of the tasks are nearly those of the start.",
            f"Pre-training took {told['sit']['seconds']:.0f} s (SiT) and {told['reconstruction']['seconds']:.0f} s "
            f"(reconstruction), a fine-tuning {np.mean(numbers['seconds']['sit']):.0f} s, the longer one from scratch "
            f"{np.mean(numbers['seconds']['longer']):.0f} s.",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def _tasks(told: dict[str, float]) -> list[str]:
    return [name.removeprefix("log_variance_") for name in told if name.startswith("log_variance_")]


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Pre-train, fine-tune all arms, and make the record."""
    learnt = {arm: pretrained(arm, pictures, sizes) for arm in TASKS}
    starts: dict[str, Callable[[int], nn.Module]] = {
        "sit": lambda seed: learnt["sit"][0],
        "reconstruction": lambda seed: learnt["reconstruction"][0],
        "scratch": network,
        "longer": network,
    }
    found = answers(pictures, starts, sizes)
    numbers = numbers_of(pictures.test_labels, found["predictions"], found["frozen"])
    numbers |= {
        "pretraining": {arm: told for arm, (_, told) in learnt.items()},
        "seconds": found["seconds"],
        "test_pictures": len(pictures.test),
    }
    return record(numbers, sizes, len(np.unique(pictures.train_labels)))


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    pictures = load_pictures(NETWORK["img_size"], sizes.unlabelled, sizes.test)
    return keep(SLUG, VERSION, compare(pictures, sizes), clock)
