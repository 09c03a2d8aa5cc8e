"""MAE with the thorax recipe (arXiv 2210.12843), its claim measured again, small, on the NIH part of chest-xray.

The claim: a small vision transformer that is pre-trained on chest X-rays by masking 90 % of their patches after gentle
crops (half of the area or more) classifies them better than the same network from scratch, and better than with the
masking and crops that suit natural images (75 %, a fifth of the area or more).

Rule, fixed before running (``RULE``):
Difference of the area under the ROC curve, mean over four findings and three folds of patients, with a 95 % interval by
drawing patients and folds again. The thorax recipe beats, part i, the network from scratch with as many epochs of
fine-tuning; part ii, the network from scratch trained for as long as pre-training and fine-tuning together took; part
iii, pre-training with the masking and crops for natural images. A part is shown when its interval lies above 0 and
contradicted when below; the claim is shown when all three are, contradicted when any is.

Every fold is a repetition of its own: its patients are new, and so are the draw of weights, the pre-training (on the
other folds' pictures, without labels) and the fine-tuning. Networks from scratch are trained without layer decay, which
would hold their first layers back. Findings: those with more than 70 positive pictures, but for pneumonia, which is the
same as the folder that a picture lies in.
"""

from __future__ import annotations

import csv
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.common import Clock, better, data_folder, keep, together
from offshelf.backbones.export import save_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.engine.train import Training, train
from offshelf.evaluate.ranking import auroc
from offshelf.evaluate.resampling import resampled_weights
from offshelf.pretrain.mae_thorax import MAE
from offshelf.pretrain.tokens import fix_positions, token_grid
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "mae-thorax", 1
RULE = (
    "Difference of the area under the ROC curve, mean over four findings and three folds of patients, with a 95 % "
    "interval by drawing patients and folds again. The thorax recipe beats, part i, the network from scratch with as "
    "many epochs of fine-tuning; part ii, the network from scratch trained for as long as pre-training and fine-tuning "
    "together took; part iii, pre-training with the masking and crops for natural images. A part is shown when its "
    "interval lies above 0 and contradicted when below; the claim is shown when all three are, contradicted when any "
    "is."
)
FINDINGS = ("Infiltration", "Atelectasis", "Edema", "Effusion")
ARCHITECTURE = "vit_tiny_patch16_224"
NETWORK: dict[str, Any] = {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "global_pool": "avg"}
DECODER = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "thorax": {"mask_ratio": 0.9, "crop_scale": (0.5, 1.0)},
    "natural": {"mask_ratio": 0.75, "crop_scale": (0.2, 1.0)},
}
FINE_TUNING: dict[str, Any] = {  # the paper's, for four blocks instead of twelve
    "multi_label": True,
    "drop_path": 0.1,
    "rand_augment": "rand-m6-mstd0.5-inc1",
    "head_std": 2e-5,
    "label_smoothing": 0.0,
    "flip": True,
}
LAYER_DECAY = 0.75
ARMS = {
    "thorax": "MAE, 90 % masked, crops of half the area or more",
    "natural": "MAE, 75 % masked, crops of a fifth of the area or more",
    "scratch": "from scratch, as many epochs",
    "longer": "from scratch, as much time as MAE in all",
}
PARTS = (("thorax", "scratch"), ("thorax", "longer"), ("thorax", "natural"))


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 80
    folds: int = 3
    pretrain_epochs: int = 40
    pretrain_batch: int = 64
    pretrain_rate: float = 1e-3
    finetune_epochs: int = 20
    finetune_batch: int = 32
    learning_rate: float = 1e-3


@dataclass
class XRays:
    """Decoded pictures ``(n, 3, S, S)`` uint8, findings ``(n, K)`` of 0 and 1, and patients ``(n,)`` as numbers."""

    pixels: np.ndarray
    findings: np.ndarray
    patients: np.ndarray


FineTuner = Callable[[Path, np.ndarray, np.ndarray, np.ndarray, bool, int, int, Sizes], np.ndarray]
"""(folder of the network, pictures, findings, test pictures, pre-trained?, epochs, seed, sizes) -> scores (n, K)."""


def load_xrays(sizes: Sizes) -> XRays:
    """The NIH pictures of chest-xray, both splits together."""
    root = data_folder("chest-xray")
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["Infiltration"]]  # the others have no findings noted
    pixels, errors = load_pixels(as_samples([str(root / row["file"]) for row in rows]), sizes.side)
    if errors:
        raise next(iter(errors.values()))
    findings = np.array([[float(row[name]) for name in FINDINGS] for row in rows], dtype=np.float32)
    return XRays(pixels, findings, np.unique([row["patient"] for row in rows], return_inverse=True)[1])


def folds_of(xrays: XRays, folds: int) -> np.ndarray:
    """The fold of each picture (n,): no patient in two, pictures with any finding spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    found, of = xrays.findings.max(axis=1), np.zeros(len(xrays.findings), dtype=int)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(found, found, xrays.patients)
    for fold, (_, test) in enumerate(splits):
        of[test] = fold
    return of


def network(seed: int, sizes: Sizes) -> nn.Module:
    """The network with random weights drawn from ``seed``, and the fixed positions that every arm starts from."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(ARCHITECTURE, num_classes=0, img_size=sizes.side, **NETWORK)
    fix_positions(model, token_grid(model, sizes.side))
    return model


def pretrained(recipe: str, pixels: np.ndarray, seed: int, sizes: Sizes) -> tuple[nn.Module, dict[str, float]]:
    """The network after pre-training on ``pixels``; loss and seconds."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the decoder's weights
        objective = MAE(network(seed, sizes), sizes.side, **RECIPES[recipe], **DECODER)
    data = PictureViews(pixels, objective.views(), seed=seed)
    rates = replace(objective.recipe, batch_size=sizes.pretrain_batch, learning_rate=sizes.pretrain_rate)
    told = train(objective, data, Training.of(rates, n=len(data), epochs=sizes.pretrain_epochs, seed=seed)).history
    return objective.export(), {
        "first_loss": float(told[0]["loss"]),
        "last_loss": float(np.mean([record["loss"] for record in told[-5:]])),
        "seconds": time.perf_counter() - started,
    }


def fine_tuned(
    folder: Path,
    pixels: np.ndarray,
    findings: np.ndarray,
    test: np.ndarray,
    is_pretrained: bool,
    epochs: int,
    seed: int,
    sizes: Sizes,
) -> np.ndarray:
    """Sigmoid scores (n, K) on ``test`` of the network after multi-label fine-tuning."""
    return (
        FineTune(
            backbone=str(folder),
            image_size=sizes.side,
            epochs=epochs,
            batch_size=sizes.finetune_batch,
            learning_rate=sizes.learning_rate,
            trunk_scale=1.0,
            layer_decay=LAYER_DECAY if is_pretrained else None,
            random_state=seed,
            **FINE_TUNING,
        )
        .fit(pixels, findings)
        .predict_proba(test)
    )


def repetition(xrays: XRays, test: np.ndarray, fold: int, sizes: Sizes, tune: FineTuner) -> dict[str, Any]:
    """One fold: all arms pre-trained and fine-tuned on the pictures outside ``test`` (n,) bool.

    Returns
    -------
    dict
        ``scores`` arm -> (pictures in test, K), ``seconds`` arm -> of the fine-tuning, ``pretraining`` recipe -> losses
        and seconds, ``longer_epochs``.
    """
    pixels, findings = xrays.pixels[~test], xrays.findings[~test]
    begun = {recipe: pretrained(recipe, pixels, fold, sizes) for recipe in RECIPES}
    starts = {recipe: start for recipe, (start, _) in begun.items()}
    told = {"pretraining": {recipe: about for recipe, (_, about) in begun.items()}}
    scores, seconds = {}, {}
    epochs = sizes.finetune_epochs
    with tempfile.TemporaryDirectory() as place:
        for arm in ARMS:  # the longer one last: its epochs follow from the others' seconds
            if arm == "longer":
                epochs += math.ceil(epochs * told["pretraining"]["thorax"]["seconds"] / seconds["scratch"])
            start = starts[arm] if arm in starts else network(fold, sizes)
            folder = save_backbone(start, Path(place) / arm, model_args=NETWORK)
            began = time.perf_counter()
            scores[arm] = tune(folder, pixels, findings, xrays.pixels[test], arm in starts, epochs, fold, sizes)
            seconds[arm] = time.perf_counter() - began
    return {"scores": scores, "seconds": seconds, "longer_epochs": epochs, **told}


def mean_auroc(findings: np.ndarray, scores: np.ndarray, of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each fold, mean over findings: (folds, B).

    A finding that a fold has only pictures with or only pictures without is undefined there and left out of the mean.

    Parameters
    ----------
    findings, scores : (n, K)
    of : (n,) the fold of each picture. weights : (n, B) of each picture in B resamples.
    """
    folds = []
    for fold in range(of.max() + 1):
        rows = of == fold
        each = [auroc(findings[rows, k] == 1, scores[rows, k], weights[rows]) for k in range(findings.shape[1])]
        folds.append(np.nanmean(each, axis=0))
    return np.stack(folds)


def numbers_of(
    xrays: XRays, of: np.ndarray, scores: dict[str, np.ndarray], n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Areas of all arms and their paired differences, with intervals over patients and folds drawn again."""
    one = np.ones((len(of), 1))
    folds = int(of.max()) + 1
    drawn_folds = np.random.default_rng([seed, 13]).integers(0, folds, (n_boot, folds))
    points = {arm: mean_auroc(xrays.findings, scores[arm], of, one)[:, 0] for arm in ARMS}
    parts: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for weights in resampled_weights(xrays.patients, n_boot, seed):
        for arm in ARMS:
            parts[arm].append(mean_auroc(xrays.findings, scores[arm], of, weights))
    drawn = {arm: np.concatenate(rows, axis=1) for arm, rows in parts.items()}  # (folds, n_boot)

    def interval(key: str, point: np.ndarray, replicates: np.ndarray) -> dict[str, float]:
        means = replicates[drawn_folds.T, np.arange(n_boot)].mean(axis=0)
        low, high = np.percentile(means, [2.5, 97.5])
        return {key: float(point.mean()), "low": float(low), "high": float(high)}

    return {
        "arms": {arm: interval("value", points[arm], drawn[arm]) for arm in ARMS},
        "differences": {
            f"{a} - {b}": interval("difference", points[a] - points[b], drawn[a] - drawn[b]) for a, b in PARTS
        },
        "by_fold": {arm: points[arm].tolist() for arm in ARMS},
        "by_finding": {
            name: {arm: float(mean_auroc(xrays.findings[:, [k]], scores[arm][:, [k]], of, one).mean()) for arm in ARMS}
            for k, name in enumerate(FINDINGS)
        },
    }


def verdict_of(differences: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its three parts."""
    parts = {
        f"{a} - {b}": better(differences[f"{a} - {b}"]["low"], differences[f"{a} - {b}"]["high"]) for a, b in PARTS
    }
    return together(list(parts.values())), parts


def shown(cell: dict[str, float]) -> str:
    """``0.712 [0.698, 0.725]``, differences with their sign."""
    form, key = ("{:+.3f}", "difference") if "difference" in cell else ("{:.3f}", "value")
    return f"{form.format(cell[key])} [{form.format(cell['low'])}, {form.format(cell['high'])}]"


def record(numbers: dict[str, Any], xrays: XRays, sizes: Sizes) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers["differences"])
    cells = {name: shown(cell) for name, cell in numbers["differences"].items()}
    rows = [[ARMS[arm], shown(cell)] for arm, cell in numbers["arms"].items()]
    rows += [[f"first minus: {ARMS[b]}", cells[f"{a} - {b}"]] for a, b in PARTS]
    told = numbers["repetitions"]
    tokens = (sizes.side // NETWORK["patch_size"]) ** 2

    def seconds(arm: str) -> float:
        return float(np.mean([one["seconds"][arm] for one in told]))

    def before(recipe: str, key: str) -> float:
        return float(np.mean([one["pretraining"][recipe][key] for one in told]))

    found = ", ".join(f"{name} {int(n)}" for name, n in zip(FINDINGS, xrays.findings.sum(axis=0)))
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": "A small vision transformer on chest X-rays; area under the ROC curve, mean of four findings, with "
        f"95 % intervals: the thorax recipe minus from scratch {cells['thorax - scratch']}, "
        f"{parts['thorax - scratch']}; minus from scratch for as long {cells['thorax - longer']}, "
        f"{parts['thorax - longer']}; minus masking and crops for natural images {cells['thorax - natural']}, "
        f"{parts['thorax - natural']}.",
        "rule": RULE,
        "setting": f"{len(xrays.pixels):,} NIH pictures of {len(np.unique(xrays.patients)):,} patients ({found}) in "
        f"{sizes.folds} folds, each with own weights, pre-training and fine-tuning. timm's {ARCHITECTURE} with "
        f"{NETWORK}, {sizes.side} pixels, {tokens} patches; decoder {DECODER}. Pre-trained for "
        f"{sizes.pretrain_epochs} epochs in batches of {sizes.pretrain_batch}, fine-tuned for {sizes.finetune_epochs} "
        f"(from scratch also for {', '.join(str(one['longer_epochs']) for one in told)}) in batches of "
        f"{sizes.finetune_batch}, at rates of learning of {sizes.pretrain_rate:g} and {sizes.learning_rate:g}, layer "
        f"decay {LAYER_DECAY} after pre-training. Chance 0.5. 2,000 resamples.",
        "table": {"header": ["Arm", "mean area under the ROC curve"], "rows": rows},
        "notes": [
            "The paper pre-trains on 266,340 X-rays for 800 epochs at 224 pixels: thousands of times as many pictures "
            "seen. Labels are mined from reports and noisy, and the sick are more often X-rayed in bed, with tubes and "
            "leads, which a network can read as well as the lungs.",
            "Squared error of hidden pixels in the first step and at the end: "
            + "; ".join(
                f"{recipe} {before(recipe, 'first_loss'):.3f} to {before(recipe, 'last_loss'):.3f}"
                for recipe in RECIPES
            )
            + ". They cannot be compared, since the tasks differ.",
            f"Pre-training took {before('thorax', 'seconds'):.0f} s with 90 % hidden and "
            f"{before('natural', 'seconds'):.0f} s with 75 %, a fine-tuning {seconds('thorax'):.0f} s, the longer one "
            f"from scratch {seconds('longer'):.0f} s.",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def compare(xrays: XRays, sizes: Sizes, tune: FineTuner = fine_tuned) -> dict[str, Any]:
    """Pre-train and fine-tune all arms in every fold, and make the record."""
    of = folds_of(xrays, sizes.folds)
    told = [repetition(xrays, of == fold, fold, sizes, tune) for fold in range(sizes.folds)]
    scores = {arm: np.zeros(xrays.findings.shape) for arm in ARMS}
    for fold, one in enumerate(told):
        for arm, values in one.pop("scores").items():
            scores[arm][of == fold] = values
    return record(numbers_of(xrays, of, scores) | {"repetitions": told}, xrays, sizes)


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    return keep(SLUG, VERSION, compare(load_xrays(sizes), sizes), clock)
