"""CNN Filter DB (arXiv 2203.15331), its claim measured again, small, on four collections of pictures.

The claim: filters of networks trained on different collections of pictures differ less than filters of different
depths; and over-sized networks trained on little data have more layers that are degenerate: sparse, of low diversity or
like random ones.

Rule, fixed before running (``RULE``):
Part i: the mean shift between thirds of depth of a network, minus the mean shift between networks trained on different
collections, compared third by third; from it the same difference between the random starts of these networks is taken,
which training has no part in. Part ii: the share of degenerate layers of the wide network trained on few pictures,
minus that of the narrow one trained on many, in equally many steps. Each with a 95 % interval over seeds by Student's
t. A part is shown when its interval lies above 0 and contradicted when below; the claim is shown when both are,
contradicted when any is.

Every network has a random start of its own, so that all shifts are between filters drawn apart, and all groups have
equally many filters. The seed also decides the order and the shifts of the pictures; the pictures are the same for all
seeds. Whether degenerate networks serve another task worse is looked at beside, outside the rule.

Version 1 trained all collections from the same random start, in 320 steps: what it compared was noise, since thirds of
depth of random starts lay as far apart as those of trained networks. Hence the longer training, the starts apart and
the difference taken off.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from claims.cifar import balanced
from claims.common import Clock, better, data_folder, keep, together
from offshelf.data.augment import normalised, random_shift
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.sources import open_dataset
from offshelf.engine.draws import Draws
from offshelf.engine.order import Order
from offshelf.engine.recipe import rate_scale
from offshelf.interpret.cnn_filter_db import THIRDS, collect_filters, depth_third, filter_quality
from offshelf.interpret.filter_shift import distributions

SLUG, VERSION = "cnn-filter-db", 2
RULE = (
    "Part i: the mean shift between thirds of depth of a network, minus the mean shift between networks trained on "
    "different collections, compared third by third; from it the same difference between the random starts of these "
    "networks is taken, which training has no part in. Part ii: the share of degenerate layers of the wide network "
    "trained on few pictures, minus that of the narrow one trained on many, in equally many steps. Each with a 95 % "
    "interval over seeds by Student's t. A part is shown when its interval lies above 0 and contradicted when below; "
    "the claim is shown when both are, contradicted when any is."
)
COLLECTIONS = {
    "small photographs": "cifar10",
    "chest X-rays": "chest-xray",
    "written characters": "omniglot-small",
    "written digits": "mnist-10k",
}
NATURAL = "small photographs"
ARCHITECTURE = "resnet18"


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 32
    many: int = 5_000
    few: int = 500
    test: int = 1_000
    narrow: int = 16
    wide: int = 64
    steps: int = 600
    batch: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass
class Collection:
    """Decoded pictures ``(n, 3, S, S)`` uint8 with class numbers; train and test are apart."""

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        """How many classes it has."""
        return int(self.train_labels.max()) + 1

    def fewer(self, n: int) -> Collection:
        """The same with ``n`` training pictures, evenly over the classes; they are the same for all seeds."""
        rows = balanced(self.train_labels, np.arange(len(self.train)), n, seed=1)
        return Collection(self.name, self.train[rows], self.train_labels[rows], self.test, self.test_labels)


def load_collection(name: str, sizes: Sizes) -> Collection:
    """One collection; characters are split within their classes, the others as they are given."""
    folder = data_folder(COLLECTIONS[name])
    columns = {"path_column": "file", "label_column": "label", "group_column": "patient"}
    table = folder / "labels.csv"
    dataset = open_dataset(table, **columns) if table.is_file() else open_dataset(folder)
    labels, splits = np.array(dataset["label"][:]), np.array(dataset["split"][:])
    if len(np.setdiff1d(labels[splits == "test"], labels[splits == "train"])):  # test classes nobody can have learnt
        rows = np.flatnonzero(splits == "train")
        test = np.concatenate([rows[labels[rows] == k][::5] for k in np.unique(labels[rows])])
        parts = np.setdiff1d(rows, test), np.sort(test)
    else:
        parts = tuple(
            balanced(labels, np.flatnonzero(splits == split), most, seed=0)
            for split, most in (("train", sizes.many), ("test", sizes.test))
        )
    numbers = np.unique(labels[parts[0]], return_inverse=True)[1]
    known = dict(zip(labels[parts[0]].tolist(), numbers.tolist()))
    tables = []
    for rows in parts:
        table_of, errors = load_pixels(as_samples(dataset.select(rows)), sizes.side)
        if errors:
            raise next(iter(errors.values()))
        tables.append(table_of)
    test_numbers = np.array([known[label] for label in labels[parts[1]].tolist()])
    return Collection(name, tables[0], numbers, tables[1], test_numbers)


def network(width: int, classes: int, seed: int) -> nn.Module:
    """A residual network of equal width throughout, 3 x 3 everywhere but in its one shortcut, drawn from ``seed``."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(
            ARCHITECTURE,
            num_classes=0,
            layers=[1, 1, 1, 1],
            channels=[width] * 4,
            output_stride=8,
            stem_type="deep",
            stem_width=40,
        )
        model.reset_classifier(classes)
    return model


def start_of(name: str, seed: int) -> int:
    """The seed of the random start of a network for one collection."""
    return 100 * (1 + list(COLLECTIONS).index(name)) + seed


def trained(collection: Collection, width: int, seed: int, sizes: Sizes) -> nn.Module:
    """The network after ``sizes.steps`` steps of stochastic gradient descent with momentum and a cosine schedule."""
    model = (
        network(width, collection.classes, start_of(collection.name, seed))
        .to(memory_format=torch.channels_last)
        .train()
    )
    optimiser = torch.optim.SGD(
        model.parameters(), lr=sizes.learning_rate, momentum=sizes.momentum, weight_decay=sizes.weight_decay
    )
    pictures, labels = torch.from_numpy(collection.train), torch.from_numpy(collection.train_labels)
    order = Order(len(pictures), min(sizes.batch, len(pictures)), seed)
    for step in range(sizes.steps):
        for group in optimiser.param_groups:
            group["lr"] = sizes.learning_rate * rate_scale(step, sizes.steps, 0.05, 0.0)
        keys = order.keys(step)
        rows = np.array([row for _, row in keys])
        x = inputs(random_shift(pictures[rows], Draws(seed, keys[0][0], rows)))
        loss = F.cross_entropy(model(x), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def inputs(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes as the network takes them."""
    x = normalised(pictures.float() / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return x.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def answers(model: nn.Module, pictures: np.ndarray, features: bool = False) -> np.ndarray:
    """Class scores, or pooled features, of pictures."""
    ask: Any = (lambda x: model.forward_head(model.forward_features(x), pre_logits=True)) if features else model
    blocks = torch.from_numpy(pictures).split(256)
    return torch.cat([ask(inputs(block)) for block in blocks]).numpy()


def accuracy(model: nn.Module, collection: Collection) -> float:
    """Share of test pictures named rightly."""
    return float((answers(model, collection.test).argmax(1) == collection.test_labels).mean())


def thirds(model: nn.Module) -> dict[str, np.ndarray]:
    """The network's filters ``(n, 9)`` by third of depth."""
    table = collect_filters(model)
    filters = np.stack([table.column(f"w{i}").to_numpy() for i in range(9)], axis=1)
    places = np.array([depth_third(depth) for depth in table.column("depth").to_pylist()])
    return {third: filters[places == third] for third in THIRDS}


def health(model: nn.Module) -> dict[str, float]:
    """A network's layers in four numbers: share that is degenerate, means of relative entropy, entropy and sparsity."""
    rows = [row for row in filter_quality(model) if row["relative_entropy"] is not None]
    return {
        "degenerate": float(np.mean([bool(row["flags"]) for row in rows])),
        "relative_entropy": float(np.mean([row["relative_entropy"] for row in rows])),
        "clean_entropy": float(np.mean([row["clean_entropy"] for row in rows])),
        "sparsity": float(np.mean([row["sparsity"] for row in rows])),
    }


START = "random start: "
Key = tuple[str, int, str]  # what it learnt from (with START before it: will learn from), seed, third


def shifts_of(groups: dict[Key, np.ndarray], seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Mean shifts by seed (or pair of seeds), of groups brought to equally many filters by a draw.

    The basis is that of the trained networks; the range is that of all.
    """
    keys, most = list(groups), min(len(filters) for filters in groups.values())
    random = np.random.default_rng(seed)
    arrays = [random.permutation(groups[key])[:most] for key in keys]
    learnt = [place for place, key in enumerate(keys) if not key[0].startswith(START)]
    found = distributions(lambda: enumerate(arrays), len(arrays), fit_on=learnt, seed=seed)
    place = {key: number for number, key in enumerate(keys)}
    names = list(dict.fromkeys(key[0] for key in keys if not key[0].startswith(START)))
    starts = [START + name for name in names]
    seeds = list(dict.fromkeys(key[1] for key in keys))

    def mean(pairs: list[tuple[Key, Key]]) -> float:
        return float(np.mean([found.distance(found.of([place[p]]), found.of([place[q]])) for p, q in pairs]))

    def depths(of: list[str], s: int) -> float:
        return mean([((name, s, a), (name, s, b)) for name in of for a, b in itertools.combinations(THIRDS, 2)])

    def apart(of: list[str], s: int) -> float:
        return mean([((a, s, third), (b, s, third)) for a, b in itertools.combinations(of, 2) for third in THIRDS])

    by_seed = {
        "thirds of depth": [depths(names, s) for s in seeds],
        "collections": [apart(names, s) for s in seeds],
        "trained and its random start": [
            mean([((name, s, third), (START + name, s, third)) for name in names for third in THIRDS]) for s in seeds
        ],
        "thirds of depth of random starts": [depths(starts, s) for s in seeds],
        "random starts": [apart(starts, s) for s in seeds],
    }
    by_pair = {
        "seeds, the same collection": [
            mean([((name, a, third), (name, b, third)) for name in names for third in THIRDS])
            for a, b in itertools.combinations(seeds, 2)
        ],
    }
    return {"by_seed": by_seed, "by_pair": by_pair, "filters": {"in a group": [most]}}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean of one number a seed with its 95 % interval by Student's t."""
    x = np.asarray(values, dtype=float)
    reach = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return {"value": float(x.mean()), "low": float(x.mean()) - reach, "high": float(x.mean()) + reach}


def transfer(models: dict[str, list[nn.Module]], quality: dict[str, list[dict[str, float]]], other: Collection) -> Any:
    """Accuracy of a linear probe on another collection, and its rank correlation with the health of the layers."""
    rows = balanced(other.train_labels, np.arange(len(other.train)), 1_000, seed=2)
    scores: dict[str, list[float]] = {}
    for cell, networks in models.items():
        scores[cell] = []
        for model in networks:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
            probe.fit(answers(model, other.train[rows], features=True), other.train_labels[rows])
            scores[cell].append(float(probe.score(answers(model, other.test, features=True), other.test_labels)))
    flat = [score for cell in models for score in scores[cell]]
    found = {}
    for key in ("degenerate", "relative_entropy"):
        values = [one[key] for cell in models for one in quality[cell]]
        known = len(set(values)) > 1 and len(set(flat)) > 1
        found[key] = float(spearmanr(values, flat).statistic) if known else float("nan")
    return {"accuracy": scores, "rank_correlation": found, "n": len(flat)}


def compare(collections: list[Collection], sizes: Sizes) -> dict[str, Any]:
    """Train all networks, look into them, and make the record."""
    natural = next(one for one in collections if one.name == NATURAL)
    groups: dict[Key, np.ndarray] = {}
    accuracies: dict[str, list[float]] = {}
    cells: dict[str, list[nn.Module]] = {}
    start_quality = []
    for seed in sizes.seeds:
        for one in collections:
            fresh = network(sizes.wide, one.classes, start_of(one.name, seed))
            start_quality.append(health(fresh))
            groups |= {(START + one.name, seed, third): filters for third, filters in thirds(fresh).items()}
            model = trained(one, sizes.wide, seed, sizes)
            groups |= {(one.name, seed, third): filters for third, filters in thirds(model).items()}
            accuracies.setdefault(one.name, []).append(accuracy(model, one))
            if one is natural:
                cells.setdefault("wide, many", []).append(model)
        for cell, width, n in (
            ("wide, few", sizes.wide, sizes.few),
            ("narrow, many", sizes.narrow, len(natural.train)),
            ("narrow, few", sizes.narrow, sizes.few),
        ):
            cells.setdefault(cell, []).append(trained(natural.fewer(n), width, seed, sizes))
    quality = {cell: [health(model) for model in models] for cell, models in cells.items()}
    other = next(one for one in collections if one is not natural)
    return record(
        {
            "shifts": shifts_of(groups),
            "accuracy": accuracies,
            "quality": quality,
            "start_quality": start_quality,
            "cell_accuracy": {cell: [accuracy(model, natural) for model in models] for cell, models in cells.items()},
            "transfer": transfer(cells, quality, collections[-1] if collections[-1] is not natural else other),
            "transfer_to": collections[-1].name,
            "pictures": {one.name: len(one.train) for one in collections},
            "test_pictures": {one.name: len(one.test) for one in collections},
            "classes": {one.name: one.classes for one in collections},
        },
        sizes,
    )


def differences(numbers: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The two differences of the rule."""
    by_seed, quality = numbers["shifts"]["by_seed"], numbers["quality"]
    learnt = np.subtract(by_seed["thirds of depth"], by_seed["collections"])
    drawn = np.subtract(by_seed["thirds of depth of random starts"], by_seed["random starts"])
    layers = zip(quality["wide, few"], quality["narrow, many"])
    return {
        "depth - collections": over_seeds((learnt - drawn).tolist()),
        "wide, few - narrow, many": over_seeds([a["degenerate"] - b["degenerate"] for a, b in layers]),
    }


def verdict_of(found: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its two parts."""
    parts = {key: better(cell["low"], cell["high"]) for key, cell in found.items()}
    return together(list(parts.values())), parts


def shown(cell: dict[str, float], sign: str = "") -> str:
    """``0.412 [0.398, 0.425]``."""
    return f"{cell['value']:{sign}.3f} [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"


def record(numbers: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    found = differences(numbers)
    verdict, parts = verdict_of(found)
    depth, size = shown(found["depth - collections"], "+"), shown(found["wide, few - narrow, many"], "+")
    shifts, quality = numbers["shifts"], numbers["quality"]
    rows = [[f"shift: {name}", shown(over_seeds(values))] for name, values in shifts["by_seed"].items()]
    rows += [[f"shift: {name}", f"{np.mean(values):.3f}"] for name, values in shifts["by_pair"].items()]
    rows.append(["thirds of depth minus collections, less the same of random starts (in the rule)", depth])
    words = {"wide": f"width {sizes.wide}", "narrow": f"width {sizes.narrow}"}
    counts = {"many": f"{numbers['pictures'][NATURAL]:,} pictures", "few": f"{sizes.few:,} pictures"}
    for cell, found_in in quality.items():
        width, n = cell.split(", ")
        share, entropy, sparse = (
            shown(over_seeds([one[key] for one in found_in])) for key in ("degenerate", "relative_entropy", "sparsity")
        )
        rows.append([f"{words[width]}, {counts[n]}: degenerate layers", share])
        rows.append([f"{words[width]}, {counts[n]}: H / T", entropy])
        rows.append([f"{words[width]}, {counts[n]}: sparsity", sparse])
    rows.append(["wide on few minus narrow on many: degenerate layers (in the rule)", size])
    start = numbers["start_quality"]
    correlation = numbers["transfer"]["rank_correlation"]
    told = "; ".join(f"{name} {np.mean(values):.3f}" for name, values in numbers["accuracy"].items())
    cells = "; ".join(f"{name} {np.mean(values):.3f}" for name, values in numbers["cell_accuracy"].items())
    pictures = ", ".join(f"{name} {n:,}" for name, n in numbers["pictures"].items())
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"Small residual networks on four collections, means over {len(sizes.seeds)} seeds with 95 % "
        f"intervals: shift between thirds of depth minus shift between collections, less the same of their random "
        f"starts, {depth}, {parts['depth - collections']}; share of degenerate layers of the wide network on "
        f"{sizes.few:,} pictures minus that of the narrow one on {numbers['pictures'][NATURAL]:,} {size}, "
        f"{parts['wide, few - narrow, many']}.",
        "rule": RULE,
        "setting": f"timm's {ARCHITECTURE} with one block a stage, {sizes.wide} (wide) or {sizes.narrow} (narrow) "
        f"channels throughout and a stem of three 3 x 3 convolutions, {sizes.side} pixels; {sizes.steps} steps of "
        f"{sizes.batch} pictures, stochastic gradient descent with momentum {sizes.momentum:g}, learning rate "
        f"{sizes.learning_rate:g} with a cosine, weight decay {sizes.weight_decay:g}, shifts of up to an eighth. "
        f"Training pictures: {pictures}. {shifts['filters']['in a group'][0]:,} filters in each group.",
        "table": {"header": ["What", "mean over seeds"], "rows": rows},
        "notes": [
            f"Accuracy on held-out pictures: {told}. By width and pictures, on {NATURAL}: {cells}.",
            "Random starts of the wide network: degenerate layers "
            f"{np.mean([one['degenerate'] for one in start]):.3f}, H / T "
            f"{np.mean([one['relative_entropy'] for one in start]):.3f}. A layer counts as degenerate when a "
            "quarter of its filters do nothing, H / T is below 0.5 (both cut-offs ours), or H / T is 1 or more.",
            f"Exploratory: over {numbers['transfer']['n']} networks, rank correlation of a linear probe's accuracy on "
            f"{numbers['transfer_to']} with the share of degenerate layers {correlation['degenerate']:.2f}, with H / T "
            f"{correlation['relative_entropy']:.2f}; width and number of pictures change both.",
            "Two random starts alone lie "
            f"{np.mean(shifts['by_seed']['random starts']):.3f} apart, a network and its own random start "
            f"{np.mean(shifts['by_seed']['trained and its random start']):.3f}: in so short a training filters hardly "
            "leave their start, and what depth or collections add to it is small beside it.",
            "Version 1 of this claim trained all collections from one random start and had fewer filters in a group. "
            "Its shift between thirds of depth was no larger than that of random starts, so what it compared was "
            "noise; it was replaced, whatever its verdict.",
            "Collections differ in how many pictures they have, which adds to the shift between them. The paper "
            "compares hundreds of public networks; these are trained for a minute.",
        ],
        "numbers": {**numbers, "differences": found, "sizes": asdict(sizes)},
    }


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    return keep(SLUG, VERSION, compare([load_collection(name, sizes) for name in COLLECTIONS], sizes), clock)
