"""Selfie (arXiv 1906.02940), its claim measured again, small, on CIFAR-10.

The claim: the first stages of a residual network, pre-trained to put hidden patches back, give a higher accuracy when
the whole network is fine-tuned on few labels than training from scratch does, and a smaller spread over runs.

Rule, fixed before running (``RULE``):
Balanced accuracy on held-out pictures; differences have a 95 % interval by drawing test pictures and seeds again. Part
i: Selfie beats the network from scratch with the same fine-tuning. Part ii: it beats the network from scratch that
sees as many pictures as Selfie does in pre-training and fine-tuning together. Part iii: the standard deviation over
seeds is larger from scratch than with Selfie; the 95 % interval of their ratio is that of the F distribution. Parts i
and ii are shown when the interval lies above 0 and contradicted when below, part iii likewise with 1; the claim is
shown when all three are, contradicted when any is.

Every arm has the same network and labelled pictures, drawn anew for each seed. Selfie and scratch have each their own
learning rate of fine-tuning, chosen of three on another draw and on training pictures that it leaves out; the longer
arm takes that of scratch. The last stage starts from an own draw of weights in every seed. The pre-training is run
once, so what another draw of it would change is not in the intervals.
"""

from __future__ import annotations

import math
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
from offshelf.backbones.route import has_bf16
from offshelf.data.picture_views import PictureViews
from offshelf.engine.train import Training, train
from offshelf.pretrain.selfie import Selfie
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "selfie", 1
RULE = (
    "Balanced accuracy on held-out pictures; differences have a 95 % interval by drawing test pictures and seeds "
    "again. Part i: Selfie beats the network from scratch with the same fine-tuning. Part ii: it beats the network "
    "from scratch that sees as many pictures as Selfie does in pre-training and fine-tuning together. Part iii: the "
    "standard deviation over seeds is larger from scratch than with Selfie; the 95 % interval of their ratio is that "
    "of the F distribution. Parts i and ii are shown when the interval lies above 0 and contradicted when below, part "
    "iii likewise with 1; the claim is shown when all three are, contradicted when any is."
)
ARCHITECTURE = "resnet18"
NETWORK: dict[str, Any] = {  # stages of strides 4, 8, 8, 8: a patch of 16 pixels leaves 2 x 2 positions, as the paper's
    "layers": [1, 1, 1, 1],
    "channels": [16, 32, 64, 128],
    "output_stride": 8,
    "stem_type": "deep",
    "stem_width": 8,
}
LAST_STAGE = "layer4."  # not pre-trained
ARMS = {
    "selfie": "Selfie, then fine-tuned",
    "scratch": "from scratch, the same fine-tuning",
    "longer": "from scratch, as many pictures as Selfie in all",
}
PARTS = (("selfie", "scratch"), ("selfie", "longer"))
SPREAD = "scratch / selfie"
PILOT = 1_000  # the draw on which learning rates are chosen; no seed of the measurement


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    stored: int = 32
    side: int = 64
    unlabelled: int = 8_000
    pretrain_epochs: int = 6
    pretrain_batch: int = 128
    depth: int = 2
    num_heads: int = 4
    labels_a_class: int = 50
    test: int = 4_000
    finetune_epochs: int = 25
    finetune_batch: int = 50
    learning_rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2)
    pilot: int = 2_000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    longer_seeds: tuple[int, ...] = (0, 1, 2)  # the first of them

    def longer_epochs(self, classes: int) -> int:
        """Epochs over the labelled pictures in which scratch sees as many as both phases of Selfie."""
        extra = self.pretrain_epochs * self.unlabelled / (self.labels_a_class * classes)
        return self.finetune_epochs + round(extra)


def network(seed: int) -> nn.Module:
    """The network with random weights drawn from ``seed``."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE, num_classes=0, **NETWORK)


def transplanted(learnt: nn.Module, seed: int) -> nn.Module:
    """The network of ``seed`` with the pre-trained stages of ``learnt``; its last stage stays as drawn."""
    fresh = network(seed)
    fresh.load_state_dict(
        {name: value for name, value in learnt.state_dict().items() if not name.startswith(LAST_STAGE)}, strict=False
    )
    return fresh


def pretrained(pictures: Pictures, sizes: Sizes) -> tuple[nn.Module, dict[str, float]]:
    """The network after pre-training on the training pictures, without their labels; its numbers and seconds."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the pooling's weights
        objective = Selfie(network(0), sizes.side, depth=sizes.depth, num_heads=sizes.num_heads)
    data = PictureViews(pictures.train, objective.views(), seed=0)
    plan = Training.of(
        objective.recipe,
        n=len(data),
        epochs=sizes.pretrain_epochs,
        batch_size=sizes.pretrain_batch,
        seed=0,
        bf16=has_bf16(),
    )
    told = train(objective, data, plan).history
    return objective.export(), {
        "hidden": float(objective.hidden),
        "first_loss": float(told[0]["loss"]),
        "last_loss": float(told[-1]["loss"]),
        "last_accuracy": float(told[-1]["accuracy"]),
        "seconds": time.perf_counter() - started,
    }


def classifier(start: nn.Module, pictures: Pictures, rows: np.ndarray, sizes: Sizes, **settings: Any) -> FineTune:
    """The network ``start`` fine-tuned on the labelled pictures ``rows``."""
    with tempfile.TemporaryDirectory() as place:
        folder = save_backbone(start, Path(place) / "start", model_args=NETWORK)
        return FineTune(
            backbone=str(folder),
            image_size=sizes.side,
            batch_size=sizes.finetune_batch,
            trunk_scale=1.0,  # every arm alike: a folder of random weights must not move more slowly
            flip=True,
            **settings,
        ).fit(pictures.train[rows], pictures.train_labels[rows])


def labelled_rows(pictures: Pictures, sizes: Sizes, seed: int) -> np.ndarray:
    """Rows of the labelled pictures of one seed."""
    most = sizes.labels_a_class * len(np.unique(pictures.train_labels))
    return balanced(pictures.train_labels, np.arange(len(pictures.train)), most, seed)


def chosen_rates(pictures: Pictures, starts: dict[str, Callable[[int], nn.Module]], sizes: Sizes) -> dict[str, Any]:
    """The learning rate of each arm: the best on training pictures that the pilot's fine-tuning did not see."""
    rows = labelled_rows(pictures, sizes, PILOT)
    others = np.setdiff1d(np.arange(len(pictures.train)), rows)
    asked = balanced(pictures.train_labels, others, sizes.pilot, PILOT)
    tried: dict[str, dict[float, float]] = {}
    for arm, start in starts.items():
        tried[arm] = {}
        for rate in sizes.learning_rates:
            fitted = classifier(
                start(PILOT),
                pictures,
                rows,
                sizes,
                epochs=sizes.finetune_epochs,
                learning_rate=rate,
                random_state=PILOT,
            )
            tried[arm][rate] = float((fitted.predict(pictures.train[asked]) == pictures.train_labels[asked]).mean())
    rates = {arm: max(found, key=lambda rate: found[rate]) for arm, found in tried.items()}
    return {"rates": rates, "pilot": {arm: {str(k): v for k, v in found.items()} for arm, found in tried.items()}}


def answers(
    pictures: Pictures, starts: dict[str, Callable[[int], nn.Module]], rates: dict[str, float], sizes: Sizes
) -> dict[str, Any]:
    """Predictions ``(seeds, n)`` of every arm on the test pictures, and seconds of each fine-tuning."""
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    longer = sizes.longer_epochs(len(np.unique(pictures.train_labels)))
    for arm in ARMS:
        kind = "scratch" if arm == "longer" else arm
        for seed in sizes.longer_seeds if arm == "longer" else sizes.seeds:
            began = time.perf_counter()
            fitted = classifier(
                starts[kind](seed),
                pictures,
                labelled_rows(pictures, sizes, seed),
                sizes,
                epochs=longer if arm == "longer" else sizes.finetune_epochs,
                learning_rate=rates[kind],
                random_state=seed,
            )
            found[arm].append(fitted.predict(pictures.test))
            seconds[arm].append(round(time.perf_counter() - began, 1))
    return {"predictions": {arm: np.stack(rows) for arm, rows in found.items()}, "seconds": seconds}


def spread(a: list[float], b: list[float], least: float) -> dict[str, float]:
    """Ratio of the standard deviations of ``a`` and ``b`` with its 95 % interval for normal values, drawn apart.

    Deviations below ``least``, what one picture more or less would change, count as ``least``.
    """
    from scipy.stats import f

    ratio = max(float(np.std(a, ddof=1)), least) / max(float(np.std(b, ddof=1)), least)
    far = math.sqrt(float(f.ppf(0.975, len(a) - 1, len(b) - 1))), math.sqrt(float(f.ppf(0.025, len(a) - 1, len(b) - 1)))
    return {"value": ratio, "low": ratio / far[0], "high": ratio / far[1]}


def numbers_of(labels: np.ndarray, predictions: dict[str, np.ndarray], n_boot: int = 2000) -> dict[str, Any]:
    """Balanced accuracies, their paired differences over the seeds that both arms have, and the ratio of spreads."""
    units = np.arange(len(labels))

    def interval(a: str, b: str | None = None) -> dict[str, float]:
        seeds = len(predictions[a]) if b is None else min(len(predictions[a]), len(predictions[b]))
        other = None if b is None else predictions[b][:seeds]
        return seeded_interval(labels, predictions[a][:seeds], other, units, "balanced_accuracy", n_boot=n_boot)

    by_seed = {
        arm: [float(np.mean([(p[labels == k] == k).mean() for k in np.unique(labels)])) for p in predictions[arm]]
        for arm in ARMS
    }
    return {
        "arms": {arm: interval(arm) for arm in ARMS},
        "differences": {f"{a} - {b}": interval(a, b) for a, b in PARTS},
        "by_seed": by_seed,
        "deviations": {arm: float(np.std(values, ddof=1)) for arm, values in by_seed.items()},
        "spread": spread(by_seed["scratch"], by_seed["selfie"], 1 / len(labels)),
    }


def verdict_of(numbers: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its three parts."""
    differences, ratio = numbers["differences"], numbers["spread"]
    parts = {
        f"{a} - {b}": better(differences[f"{a} - {b}"]["low"], differences[f"{a} - {b}"]["high"]) for a, b in PARTS
    }
    parts[SPREAD] = better(ratio["low"] - 1, ratio["high"] - 1)
    return together(list(parts.values())), parts


def record(numbers: dict[str, Any], sizes: Sizes, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers)
    cells = {name: shown(cell) for name, cell in numbers["differences"].items()}
    ratio = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**numbers["spread"])
    deviations, told, rates = numbers["deviations"], numbers["pretraining"], numbers["rates"]
    rows = [[ARMS[arm], shown(cell), f"{deviations[arm]:.4f}"] for arm, cell in numbers["arms"].items()]
    rows += [[f"{ARMS[a]} minus {ARMS[b]} (in the rule)", cells[f"{a} - {b}"], ""] for a, b in PARTS]
    rows.append([f"deviation {ARMS['scratch']} over that of Selfie (in the rule)", "", ratio])
    labelled = sizes.labels_a_class * classes
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"A small residual network on CIFAR-10 with {labelled:,} labels; balanced accuracy with 95 % "
        f"intervals: Selfie minus from scratch {cells['selfie - scratch']}, {parts['selfie - scratch']}; minus from "
        f"scratch with as many pictures seen {cells['selfie - longer']}, {parts['selfie - longer']}. Standard "
        f"deviation over seeds, from scratch over Selfie: {ratio}, {parts[SPREAD]}.",
        "rule": RULE,
        "setting": f"timm's {ARCHITECTURE} with {NETWORK}, pictures of {sizes.stored} pixels enlarged to {sizes.side}, "
        f"patches of 16, {told['hidden']:.0f} of 16 hidden; {sizes.depth} layers of attention pooling with "
        f"{sizes.num_heads} heads. Pre-trained on {sizes.unlabelled:,} pictures for {sizes.pretrain_epochs} epochs; "
        f"fine-tuned on {labelled:,} of them for {sizes.finetune_epochs} epochs, {len(sizes.seeds)} seeds (from "
        f"scratch also for {sizes.longer_epochs(classes)}, {len(sizes.longer_seeds)} of the seeds) in batches of "
        f"{sizes.finetune_batch}; learning rates, chosen of {', '.join(f'{r:g}' for r in sizes.learning_rates)}: "
        f"Selfie {rates['selfie']:g}, from scratch {rates['scratch']:g}. {numbers['test_pictures']:,} test pictures, "
        f"chance {1 / classes:.3f}. 2,000 resamples.",
        "table": {"header": ["Arm", "balanced accuracy", "standard deviation over seeds"], "rows": rows},
        "notes": [
            "The pre-training was run once: another draw of its weights and splits may give another result, and that "
            "is not in the intervals. The paper itself gained next to nothing on CIFAR-10 with a ResNet-50, and most "
            "on ImageNet with few labels, after pre-training that is thousands of times longer.",
            f"At the end of pre-training the right patch was chosen at {told['last_accuracy']:.3f} of the hidden "
            f"positions (chance {1 / told['hidden']:.3f}), with a loss of {told['last_loss']:.3f} (chance "
            f"{math.log(told['hidden']):.3f}).",
            "The interval of the ratio takes the accuracies of seeds as normal and drawn apart in both arms. With six "
            "seeds the ratio must exceed 2.67 for part iii to be shown. Seeds differ in the labelled pictures, the "
            "first weights of what is not pre-trained, and the order and augmentation of pictures.",
            f"Pre-training took {told['seconds']:.0f} s, a fine-tuning {np.mean(numbers['seconds']['selfie']):.0f} s, "
            f"the longer one from scratch {np.mean(numbers['seconds']['longer']):.0f} s.",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Pre-train, choose learning rates, fine-tune all arms, and make the record."""
    learnt, told = pretrained(pictures, sizes)
    starts: dict[str, Callable[[int], nn.Module]] = {
        "selfie": lambda seed: transplanted(learnt, seed),
        "scratch": network,
    }
    chosen = chosen_rates(pictures, starts, sizes)
    found = answers(pictures, starts, chosen["rates"], sizes)
    numbers = numbers_of(pictures.test_labels, found["predictions"])
    numbers |= {"pretraining": told, "seconds": found["seconds"], "test_pictures": len(pictures.test)} | chosen
    return record(numbers, sizes, len(np.unique(pictures.train_labels)))


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    pictures = load_pictures(sizes.stored, sizes.unlabelled, sizes.test)
    return keep(SLUG, VERSION, compare(pictures, sizes), clock)
