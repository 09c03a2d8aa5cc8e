"""HaloNet (arXiv 2103.12731), its claims measured again: the cost of one layer, and small networks on CIFAR-10.

The claims: at equal receptive field, attention over blocks with a halo is several times faster and lighter in memory
than over a window of each pixel's own, and the best block is neither the smallest nor the largest; with the same
parameters, such attention in the later stages of a residual network is at least as accurate as 3x3 convolution; and a
halo helps.

Rule, fixed before running (``RULE``):
Cost: forward and backward passes of one layer, halo 3, all forms in turn; the fastest block in the first half of the
rounds is judged in the second half, by the geometric mean of its per-round ratios with a 95 % interval by drawing
rounds again. Part i: windows of each pixel's own take at least 2 times as long. Part ii: they keep at least 2 times
as many numbers for the backward pass. Part iii: the fastest block is neither 1 nor 16, and 16 takes longer. Accuracy:
difference on held-out pictures with a 95 % interval by drawing test pictures and seeds again, networks with the same
parameters within 4 %. Part iv: a halo of 1 is at least as accurate as 3x3 convolution within 0.01. Part v: a halo of
1 beats a halo of 0. A part is shown when its interval lies above the line and contradicted when below; the claim is
shown when all are, contradicted when any is.

Windows are the same layer with blocks of one pixel, as the paper compares. A second writing of them that gathers
nothing (`shifted_windows`) is measured beside, outside the rule, and so is global attention, which sees more.
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
from claims.common import CONTRADICTED, Clock, better, keep, seeded_interval, together
from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.export import save_backbone
from offshelf.backbones.halo_attention import HaloAttention
from offshelf.backbones.halo_cost import haloing_cost, kept_elements, shifted_windows, time_layers
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "halonet", 1
RULE = (
    "Cost: forward and backward passes of one layer, halo 3, all forms in turn; the fastest block in the first half "
    "of the rounds is judged in the second half, by the geometric mean of its per-round ratios with a 95 % interval "
    "by drawing rounds again. Part i: windows of each pixel's own take at least 2 times as long. Part ii: they keep "
    "at least 2 times as many numbers for the backward pass. Part iii: the fastest block is neither 1 nor 16, and "
    "16 takes longer. Accuracy: difference on held-out pictures with a 95 % interval by drawing test pictures and "
    "seeds again, networks with the same parameters within 4 %. Part iv: a halo of 1 is at least as accurate as 3x3 "
    "convolution within 0.01. Part v: a halo of 1 beats a halo of 0. A part is shown when its interval lies above "
    "the line and contradicted when below; the claim is shown when all are, contradicted when any is."
)
SEVERAL, MARGIN = 2.0, 0.01
HALO, HEADS = 3, 4
BLOCKS = (1, 2, 4, 8, 16)
SHIFTED, GLOBAL = "windows, shifted", "global"
NETWORK: dict[str, Any] = {  # maps of 16, 16 and 8 positions; the last two stages differ between the arms
    "depths": (1, 1, 1),
    "widths": (32, 32, 64),
    "strides": (1, 1, 2),
    "stem_width": 32,
    "block": 4,
    "heads": 2,
}
CONVOLUTION: dict[str, Any] = {"stages": "convolution", "output_ratio": 1.0}
ARMS = {"conv": "3x3 convolution", "h0": "halo 0", "h1": "halo 1", "h2": "halo 2"}
PARTS = (("h1", "conv"), ("h1", "h0"))
BESIDE = (("h2", "h1"), ("h2", "conv"))


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    batch: int = 16
    channels: int = 64
    map_size: int = 32
    rounds: int = 10
    side: int = 32
    train: int = 4_000
    test: int = 3_000
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 2e-3
    seeds: tuple[int, ...] = (0, 1, 2)


# ---- cost ----------------------------------------------------------------------------------------


def forms(sizes: Sizes) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """One layer in every form, by name; blocks that are larger than the map are left out."""
    torch.manual_seed(0)
    made: dict[str, Any] = {
        f"block {b}": HaloAttention(sizes.channels, block=b, halo=HALO, heads=HEADS)
        for b in BLOCKS
        if b <= sizes.map_size
    }
    made[GLOBAL] = HaloAttention(sizes.channels, block=sizes.map_size, halo=0, heads=HEADS)
    windows = made["block 1"]
    return made | {SHIFTED: lambda x: shifted_windows(windows, x)}


def measured_cost(sizes: Sizes) -> dict[str, Any]:
    """Seconds a round, numbers kept for the backward pass, and what the formula says, of every form."""
    layers = forms(sizes)
    x = torch.randn(sizes.batch, sizes.channels, sizes.map_size, sizes.map_size)
    seconds = time_layers(layers, x, sizes.rounds)
    x.requires_grad_(True)
    found = {}
    for name, layer in layers.items():
        block, halo = _block_of(name, sizes)
        found[name] = {
            "seconds": seconds[name].tolist(),
            "kept": kept_elements(lambda layer=layer: layer(x)),  # type: ignore[misc]
            "formula": asdict(haloing_cost(sizes.map_size, sizes.channels, block, halo, HEADS)),
        }
    return found


def _block_of(name: str, sizes: Sizes) -> tuple[int, int]:
    return (sizes.map_size, 0) if name == GLOBAL else (1, HALO) if name == SHIFTED else (int(name.split()[1]), HALO)


def ratio(slow: np.ndarray, fast: np.ndarray, n_boot: int = 2000, seed: int = 0) -> dict[str, float]:
    """Geometric mean of the per-round ratios ``slow / fast`` (rounds,), with an interval by drawing rounds again."""
    logs = np.log(slow / fast)
    drawn = logs[np.random.default_rng([seed, 17]).integers(0, len(logs), (n_boot, len(logs)))].mean(axis=1)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5]))
    return {"value": float(np.exp(logs.mean())), "low": float(low), "high": float(high)}


def cost_numbers(cost: dict[str, Any]) -> dict[str, Any]:
    """The fastest block of the first half of the rounds, and its ratios in the second half."""
    blocks = [name for name in cost if name.startswith("block")]
    seconds = {name: np.array(cost[name]["seconds"]) for name in cost}
    half = len(seconds["block 1"]) // 2
    best = min(blocks, key=lambda name: float(np.median(seconds[name][:half])))
    later = {name: rows[half:] for name, rows in seconds.items()}
    macs, gather = (
        np.array([cost[name]["formula"][what] for name in blocks], dtype=float) for what in ("macs", "gather_factor")
    )
    fitted, share = _fit(np.array([np.median(seconds[name]) for name in blocks]), macs, gather)
    return {
        "best": best,
        "largest": blocks[-1],
        "ratios": {name: ratio(later[name], later[best]) for name in cost},
        "kept_ratio": cost["block 1"]["kept"] / cost[best]["kept"],
        "seconds_fitted": fitted,
        "explained": share,
    }


def _fit(seconds: np.ndarray, macs: np.ndarray, gather: np.ndarray) -> tuple[list[float], float]:
    """``seconds ~ a * macs + c * gather`` by least squares: (a, c), and the share of the variance it explains."""
    terms = np.stack([macs, gather], axis=1)
    scale = terms.max(axis=0)
    solution = np.linalg.lstsq(terms / scale, seconds, rcond=None)[0]
    rest = seconds - terms / scale @ solution
    return (solution / scale).tolist(), float(1 - (rest**2).sum() / ((seconds - seconds.mean()) ** 2).sum())


def cost_verdicts(told: dict[str, Any]) -> dict[str, str]:
    """Verdicts of parts i to iii."""
    faster, largest = told["ratios"]["block 1"], told["ratios"][told["largest"]]
    between = better(largest["low"] - 1, largest["high"] - 1)
    if told["best"] in ("block 1", told["largest"]):
        between = CONTRADICTED
    return {
        "faster": better(faster["low"] - SEVERAL, faster["high"] - SEVERAL),
        "lighter": better(told["kept_ratio"] - SEVERAL, told["kept_ratio"] - SEVERAL),
        "intermediate": between,
    }


# ---- accuracy ------------------------------------------------------------------------------------


def settings_of(arm: str) -> dict[str, Any]:
    """Settings of an arm's network; attention's outputs are widened until it has convolution's parameters."""
    if arm == "conv":
        return NETWORK | CONVOLUTION
    halo = {"stages": ("convolution", "attention", "attention"), "halo": int(arm[1])}
    aim = parameters(NETWORK | CONVOLUTION)
    ratios = np.arange(1.0, 6.0, 0.25)  # steps that keep every width a multiple of 8, as timm rounds it
    return min(
        (NETWORK | halo | {"output_ratio": float(r)} for r in ratios), key=lambda given: abs(parameters(given) - aim)
    )


def network(seed: int, settings: dict[str, Any]) -> nn.Module:
    """The network without classifier, with random weights drawn from ``seed``."""
    import timm

    register_architectures()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("halonet_tiny", num_classes=0, **settings)


def parameters(settings: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in network(0, settings).parameters())


def answers(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Predictions ``(seeds, n)`` of every arm on the test pictures, and seconds of each training."""
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    settings = {arm: settings_of(arm) for arm in ARMS}
    with tempfile.TemporaryDirectory() as place:
        for seed in sizes.seeds:
            rows = balanced(pictures.train_labels, np.arange(len(pictures.train)), sizes.train, seed)
            for arm in ARMS:
                folder = save_backbone(network(seed, settings[arm]), Path(place) / f"{arm}-{seed}")
                began = time.perf_counter()
                classifier = FineTune(
                    backbone=str(folder),
                    image_size=sizes.side,
                    epochs=sizes.epochs,
                    batch_size=sizes.batch_size,
                    learning_rate=sizes.learning_rate,
                    trunk_scale=1.0,  # a folder of random weights must not move more slowly
                    flip=True,
                    precision="fp32",
                    random_state=seed,
                ).fit(pictures.train[rows], pictures.train_labels[rows])
                found[arm].append(classifier.predict(pictures.test))
                seconds[arm].append(round(time.perf_counter() - began, 1))
    return {"predictions": {arm: np.stack(rows) for arm, rows in found.items()}, "seconds": seconds}


def accuracy_numbers(labels: np.ndarray, predictions: dict[str, np.ndarray], n_boot: int = 2000) -> dict[str, Any]:
    """Accuracies and their paired differences with intervals."""
    units = np.arange(len(labels))

    def interval(a: str, b: str | None = None) -> dict[str, float]:
        other = None if b is None else predictions[b]
        return seeded_interval(labels, predictions[a], other, units, "accuracy", n_boot=n_boot)

    return {
        "arms": {arm: interval(arm) for arm in ARMS},
        "differences": {f"{a} - {b}": interval(a, b) for a, b in PARTS + BESIDE},
        "by_seed": {arm: (predictions[arm] == labels).mean(axis=1).tolist() for arm in ARMS},
    }


def accuracy_verdicts(differences: dict[str, dict[str, float]]) -> dict[str, str]:
    """Verdicts of parts iv and v."""
    against_conv, against_none = differences["h1 - conv"], differences["h1 - h0"]
    return {
        "accurate": better(against_conv["low"], against_conv["high"], MARGIN),
        "halo": better(against_none["low"], against_none["high"]),
    }


# ---- record --------------------------------------------------------------------------------------


def times(cell: dict[str, float]) -> str:
    """``9.12 [8.80, 9.51]``."""
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def _rows(numbers: dict[str, Any], sizes: Sizes) -> list[list[str]]:
    cost, told, accuracy = numbers["cost"], numbers["cost_told"], numbers["accuracy"]
    rows = []
    for name, cell in cost.items():
        formula = cell["formula"]
        gathered = "-" if name == SHIFTED else f"{formula['gather_factor']:.2f}"
        rows.append(
            [
                f"{name}{'' if name in (GLOBAL, SHIFTED) else f', halo {HALO}'}",
                f"{1000 * float(np.median(cell['seconds'])):.0f} ms; {formula['keys']} keys, gathered {gathered}, "
                f"kept {cell['kept'] / 1e6:.1f} million; time over {told['best']}'s {times(told['ratios'][name])}",
            ]
        )
    for arm, cell in accuracy["arms"].items():
        rows.append([f"{ARMS[arm]}, {numbers['parameters'][arm]:,} parameters", f"accuracy {shown(cell)}"])
    for a, b in PARTS + BESIDE:
        within = " (in the rule)" if (a, b) in PARTS else ""
        rows.append([f"{ARMS[a]} minus {ARMS[b]}{within}", shown(accuracy["differences"][f"{a} - {b}"])])
    return rows


def record(numbers: dict[str, Any], sizes: Sizes, classes: int) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    told, accuracy = numbers["cost_told"], numbers["accuracy"]
    parts = cost_verdicts(told) | accuracy_verdicts(accuracy["differences"])
    cells = {name: shown(cell) for name, cell in accuracy["differences"].items()}
    ratios, best = told["ratios"], told["best"]
    lighter = numbers["cost"][SHIFTED]["kept"] / numbers["cost"][best]["kept"]
    ratio_of = {arm: settings_of(arm)["output_ratio"] for arm in ARMS}
    return {
        "verdict": together(list(parts.values())),
        "parts": parts,
        "sentence": f"One layer, halo {HALO}, forward and backward: windows of each pixel's own take "
        f"{times(ratios['block 1'])} times as long as {best}, {parts['faster']}, and keep {told['kept_ratio']:.1f} "
        f"times as many numbers, {parts['lighter']}; {told['largest']} takes {times(ratios[told['largest']])} times "
        f"as long, {parts['intermediate']}. Small networks of equal size on CIFAR-10, accuracy with 95 % intervals: "
        f"halo 1 minus 3x3 convolution {cells['h1 - conv']}, {parts['accurate']} within {MARGIN}; minus halo 0 "
        f"{cells['h1 - h0']}, {parts['halo']}.",
        "rule": RULE,
        "setting": f"Cost: a map of {sizes.batch} x {sizes.channels} x {sizes.map_size} x {sizes.map_size}, {HEADS} "
        f"heads, {sizes.rounds} rounds in turn on {numbers['threads']} thread(s), fp32. Accuracy: halonet_tiny with "
        f"{NETWORK}; stages 2 and 3 are attention or convolution; r_b {ratio_of}; {sizes.train:,} CIFAR-10 pictures "
        f"drawn anew for each of {len(sizes.seeds)} seeds, {sizes.epochs} epochs in batches of {sizes.batch_size} at "
        f"learning rate {sizes.learning_rate:g}, AdamW, weights drawn from the seed; {numbers['test_pictures']:,} test "
        f"pictures, chance {1 / classes:.3f}. 2,000 resamples.",
        "table": {"header": ["What", "measured"], "rows": _rows(numbers, sizes)},
        "notes": [
            f"The same windows written without gathering (the whole map shifted {(2 * HALO + 1) ** 2} times) take "
            f"{times(ratios[SHIFTED])} times as long as {best}, and keep {lighter:.2f} times as many numbers. Global "
            f"attention, which sees everything, takes {times(ratios[GLOBAL])} times as long.",
            "Seconds of the blocks fitted by a * multiply-adds + c * gathered memory: "
            f"{told['explained']:.2f} of their variance is explained.",
            "The accuracy is of short trainings of very small networks; the paper's are of ImageNet at 256 to 600 "
            "pixels, with 5 to 67 million parameters. Networks of equal size differ in what they cost: a training took "
            + ", ".join(f"{np.mean(numbers['seconds'][arm]):.0f} s ({ARMS[arm]})" for arm in ARMS)
            + ".",
        ],
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Measure cost and accuracy, and make the record."""
    cost = measured_cost(sizes)
    found = answers(pictures, sizes)
    numbers = {
        "cost": cost,
        "cost_told": cost_numbers(cost),
        "accuracy": accuracy_numbers(pictures.test_labels, found["predictions"]),
        "parameters": {arm: parameters(settings_of(arm)) for arm in ARMS},
        "seconds": found["seconds"],
        "threads": torch.get_num_threads(),
        "test_pictures": len(pictures.test),
    }
    return record(numbers, sizes, len(np.unique(pictures.train_labels)))


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    pictures = load_pictures(sizes.side, 2 * sizes.train, sizes.test)
    return keep(SLUG, VERSION, compare(pictures, sizes), clock)
