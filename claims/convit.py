"""ConViT (arXiv 2103.10697), its claim measured again, small, on CIFAR-10.

The claim: the smaller the training set, the larger the advantage of ConViT over the same vision transformer without
gated positional self-attention.

Rule, fixed before running (``RULE``):
Accuracy on held-out pictures; differences have a 95 % interval by drawing test pictures and seeds again. Part i: with
few training pictures ConViT beats the same network without gated layers. Part ii: its lead with few training pictures
is larger than its lead with many. A part is shown when its interval lies above 0 and contradicted when below; the claim
is shown when both are, contradicted when any is.

Every network has the same recipe and as many updates, whatever the number of pictures, which are drawn anew for each
seed, the few among the many. Both arms draw their weights from the seed of the run. Gated layers without the local
start are measured beside, with few pictures, outside the rule.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.cifar import Pictures, balanced, load_pictures, shown
from claims.common import Clock, better, keep, mean_interval, seeded_interval, together
from offshelf.backbones.convit import convit_mini
from offshelf.data.augment import normalised
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Training, Watch, train
from offshelf.interpret.locality import LocalityProbe
from offshelf.transfer.classification import Classification, ClassificationViews, LabelledPictures

SLUG, VERSION = "convit", 1
RULE = (
    "Accuracy on held-out pictures; differences have a 95 % interval by drawing test pictures and seeds again. Part "
    "i: with few training pictures ConViT beats the same network without gated layers. Part ii: its lead with few "
    "training pictures is larger than its lead with many. A part is shown when its interval lies above 0 and "
    "contradicted when below; the claim is shown when both are, contradicted when any is."
)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "convit": ("ConViT", {}),
    "vit": ("the same without gated layers", {"local_up_to_layer": 0}),
    "unlocal": ("ConViT without the local start", {"local_init": False}),
}
RUNS = (("convit", "few"), ("vit", "few"), ("unlocal", "few"), ("convit", "many"), ("vit", "many"))
LEADS = (("convit", "vit", "few"), ("convit", "vit", "many"))
BESIDE = (("convit", "unlocal", "few"), ("unlocal", "vit", "few"))
SHRINKS = "lead with few minus lead with many"


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 24
    few: int = 1_000
    many: int = 10_000
    test: int = 3_000
    updates: int = 450
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    looked_at: int = 64  # training pictures on which locality is measured
    seeds: tuple[int, ...] = (0, 1, 2)


def network(arm: str, seed: int, sizes: Sizes, classes: int = 10) -> nn.Module:
    """An arm's network with random weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return convit_mini(num_classes=classes, img_size=sizes.side, **ARMS[arm][1])


def trained(
    arm: str, pictures: Pictures, rows: np.ndarray, seed: int, sizes: Sizes, classes: int
) -> tuple[nn.Module, LocalityProbe, float]:
    """A network after its updates on ``rows``, what was seen of its locality before and after, and the last loss."""
    model = network(arm, seed, sizes, classes)
    views = views_of(model, sizes)
    probe = LocalityProbe(views.plain(pictures.train[: sizes.looked_at]))
    recipe = Recipe(
        learning_rate=sizes.learning_rate, weight_decay=sizes.weight_decay, batch_size=sizes.batch_size, clip=1.0
    )
    told = train(
        Classification(model, label_smoothing=sizes.label_smoothing),
        LabelledPictures(pictures.train, pictures.train_labels, views, classes, seed=seed, rows=rows),
        Training(recipe, steps=sizes.updates, batch_size=sizes.batch_size, seed=seed),
        watch=Watch(probe=probe, probe_every=sizes.updates),
    )
    return model.eval(), probe, float(told.history[-1]["loss"])


def views_of(model: Any, sizes: Sizes) -> ClassificationViews:
    """Shift by an eighth and mirror, and the statistics of pixels the network is built for."""
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    return ClassificationViews(sizes.side, mean, std, shift=0.125, flip=True)


def predictions(model: Any, table: np.ndarray) -> np.ndarray:
    """Class numbers (n,) of uint8 pictures, as they are."""
    found = []
    with torch.inference_mode():
        for first in range(0, len(table), 64):
            pixels = torch.from_numpy(table[first : first + 64]).float() / 255
            batch = normalised(pixels, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
            found.append(model(batch).argmax(dim=1))
    return torch.cat(found).numpy()


def answers(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Predictions (seeds, n) of every run, and by run: locality before and after, last losses and seconds."""
    classes = len(np.unique(pictures.train_labels))
    names = [f"{arm} {size}" for arm, size in RUNS]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    told: dict[str, dict[str, list[Any]]] = {name: {"looks": [], "losses": [], "seconds": []} for name in names}
    everything = np.arange(len(pictures.train))
    for seed in sizes.seeds:
        for (arm, size), name in zip(RUNS, names):
            rows = balanced(pictures.train_labels, everything, getattr(sizes, size), seed)
            began = time.perf_counter()
            model, probe, loss = trained(arm, pictures, rows, seed, sizes, classes)
            found[name].append(predictions(model, pictures.test))
            told[name]["looks"].append(probe.rows)
            told[name]["losses"].append(loss)
            told[name]["seconds"].append(round(time.perf_counter() - began, 1))
    return {"predictions": {name: np.stack(rows) for name, rows in found.items()}, "told": told}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def numbers_of(labels: np.ndarray, predicted: dict[str, np.ndarray], n_boot: int = 2000) -> dict[str, Any]:
    """Accuracies, leads at each number of pictures, and the difference of the two leads, with intervals."""
    units = np.arange(len(labels))

    def interval(a: str, b: str | None = None) -> dict[str, float]:
        other = None if b is None else predicted[b]
        return seeded_interval(labels, predicted[a], other, units, "accuracy", n_boot=n_boot)

    right = {name: (rows == labels).astype(float) for name, rows in predicted.items()}
    few, many = (right[f"convit {size}"] - right[f"vit {size}"] for size in ("few", "many"))
    leads = {f"{a} - {b}, {size}": interval(f"{a} {size}", f"{b} {size}") for a, b, size in LEADS + BESIDE}
    return {
        "arms": {name: interval(name) for name in predicted},
        "differences": leads | {SHRINKS: mean_interval(few - many, n_boot=n_boot)},
        "by_seed": {name: rows.mean(axis=1).tolist() for name, rows in right.items()},
    }


def locality_of(looks: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each layer the mean over heads and seeds of gate and non-locality, before and after, and the gates' range."""
    rows = [row for look in looks for row in look]
    layers = []
    for layer in sorted({row["layer"] for row in rows}):
        told: dict[str, Any] = {"layer": layer}
        for when, step in (("before", min(row["step"] for row in rows)), ("after", max(row["step"] for row in rows))):
            own = [row for row in rows if row["layer"] == layer and row["step"] == step]
            gates = [row["gate"] for row in own if row["gate"] is not None]
            told[when] = {
                "non_locality": float(np.mean([row["non_locality"] for row in own])),
                "gate": float(np.mean(gates)) if gates else None,
                "gates": [min(gates), max(gates)] if gates else None,
            }
        layers.append(told)
    return layers


# ---- the record ------------------------------------------------------------------------------------------------------


def verdict_of(differences: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its two parts."""
    parts = {
        name: better(differences[name]["low"], differences[name]["high"]) for name in ("convit - vit, few", SHRINKS)
    }
    return together(list(parts.values())), parts


def record(numbers: dict[str, Any], sizes: Sizes, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers["differences"])
    cells = {name: shown(cell) for name, cell in numbers["differences"].items()}
    counts = {"few": f"{sizes.few:,} pictures", "many": f"{sizes.many:,} pictures"}
    rows = [[f"{ARMS[arm][0]}, {counts[size]}", shown(numbers["arms"][f"{arm} {size}"])] for arm, size in RUNS]
    for a, b, size in LEADS + BESIDE:
        within = " (in the rule)" if (a, b, size) == LEADS[0] else ""
        rows.append([f"{ARMS[a][0]} minus {ARMS[b][0]}, {counts[size]}{within}", cells[f"{a} - {b}, {size}"]])
    rows.append([f"lead of ConViT with {sizes.few:,} minus its lead with {sizes.many:,} (in the rule)", cells[SHRINKS]])
    seen = sizes.updates * sizes.batch_size
    arms = numbers["parameters"]
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"A ConViT of {arms['convit']:,} parameters on CIFAR-10; accuracy with 95 % intervals: its lead "
        f"over the same network without gated layers is {cells['convit - vit, few']} with {counts['few']} "
        f"({parts['convit - vit, few']}) and {cells['convit - vit, many']} with {counts['many']}; the first minus the "
        f"second {cells[SHRINKS]}, {parts[SHRINKS]}.",
        "rule": RULE,
        "setting": f"timm's ConViT with 9 heads of 8, 3 gated layers and 1 ordinary one, {sizes.side} pixels in "
        f"patches of 4 ({(sizes.side // 4) ** 2} tokens); without gated layers {arms['vit']:,} parameters. "
        f"{sizes.updates} updates in batches of {sizes.batch_size} ({seen / sizes.few:.1f} passes over the few, "
        f"{seen / sizes.many:.1f} over the many), AdamW at {sizes.learning_rate:g}, weight decay "
        f"{sizes.weight_decay:g} (none on gates), label smoothing {sizes.label_smoothing:g}, shifts and mirrors, "
        f"{len(sizes.seeds)} seeds; {numbers['test_pictures']:,} test pictures, chance {1 / classes:.3f}. "
        "2,000 resamples.",
        "table": {"header": ["Arm", "accuracy"], "rows": rows},
        "notes": [
            *[_told(arm, size, numbers) for arm, size in RUNS if arm != "unlocal"],
            "The paper trains networks a hundred times as large for 300 passes over ImageNet, or as many updates over "
            "a share of it.",
            "Training and judging one network took "
            + ", ".join(f"{np.mean(numbers['told'][f'{a} {s}']['seconds']):.0f} s ({ARMS[a][0]}, {s})" for a, s in RUNS)
            + ".",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def _told(arm: str, size: str, numbers: dict[str, Any]) -> str:
    layers = numbers["locality"][f"{arm} {size}"]
    far = "; ".join(f"{row['before']['non_locality']:.2f} -> {row['after']['non_locality']:.2f}" for row in layers)
    text = f"{ARMS[arm][0]}, {size} pictures: non-locality in patches by layer, before -> after: {far} (looking "
    text += f"everywhere alike: {numbers['uniform']:.2f})"
    gates = [row for row in layers if row["after"]["gate"] is not None]
    if gates:
        text += "; mean gate by gated layer: " + "; ".join(
            f"{row['before']['gate']:.3f} -> {row['after']['gate']:.3f} "
            f"(heads {row['after']['gates'][0]:.3f} to {row['after']['gates'][1]:.3f})"
            for row in gates
        )
    return text + f". Last mean training loss {np.mean(numbers['told'][f'{arm} {size}']['losses']):.3f}."


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Train all networks, and make the record."""
    from offshelf.interpret.locality import uniform_non_locality

    classes = len(np.unique(pictures.train_labels))
    found = answers(pictures, sizes)
    told = found["told"]
    numbers = numbers_of(pictures.test_labels, found["predictions"]) | {
        "locality": {name: locality_of(each["looks"]) for name, each in told.items()},
        "told": {name: {key: each[key] for key in ("losses", "seconds")} for name, each in told.items()},
        "uniform": uniform_non_locality((sizes.side // 4, sizes.side // 4)),
        "parameters": {arm: sum(p.numel() for p in network(arm, 0, sizes, classes).parameters()) for arm in ARMS},
        "test_pictures": len(pictures.test),
    }
    return record(numbers, sizes, classes)


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    pictures = load_pictures(sizes.side, 2 * sizes.many, sizes.test)  # twice: seeds draw different ones
    return keep(SLUG, VERSION, compare(pictures, sizes), clock)
