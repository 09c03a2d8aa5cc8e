"""Multi-label assessment (arXiv 2412.18409), its claim measured again, small, on composites of CIFAR-10 pictures.

The claim: when two test sets differ in their share of pictures with several objects, top-1 against one label shows a
drop of accuracy, while accuracies that know the sets of labels do not; and networks that were trained on one label a
picture name several valid ones.

Rule, fixed before running (``RULE``):
Drop: a metric on P less that on Q, mean over the seeds, with a 95 % interval by drawing test pictures and seeds again.
Part i: top-1 drops by more than 0.05. Part ii: ReaL and variable top-k each drop by less than 0.03. Part iii: more than
80 % of the drop of top-1 is composition (Kitagawa's split by the number of objects). Part iv: where a picture has two
objects and the first answer is one of them, the second answer is the other more often than 1/9, the rate of guessing. A
part is shown when its interval lies wholly on that side of its bound and contradicted when wholly on the other; the
claim is shown when all are, contradicted when any is.

P and Q hold 16 % and 48 % composites of two to four objects of distinct classes, the shares of ImageNet and ImageNetV2
in the paper; the rest show one object. Objects are pictures of CIFAR-10 that no network was trained on, each used
once; the one label of a composite is one of its labels at random. Networks are trained from scratch on one object a
picture. The published accuracies of timm's networks are looked at beside, outside the rule.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claims.cifar import Pictures, balanced, load_pictures, shown
from claims.common import Clock, better, data_folder, keep, together
from claims.imagenet_drop import published_drop, read_accuracies
from offshelf.backbones.export import save_backbone
from offshelf.evaluate.drop_decomposition import Resampled, drop_of, drop_parts
from offshelf.evaluate.label_sets import first_classes
from offshelf.evaluate.metrics import divide
from offshelf.evaluate.multilabel_imagenet import MultiLabelReport
from offshelf.evaluate.patch_composites import Composites, patch_composites
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.seeds import over_seeds
from offshelf.transfer.finetune import FineTune

SLUG, VERSION = "multilabel-imagenet", 1
RULE = (
    "Drop: a metric on P less that on Q, mean over the seeds, with a 95 % interval by drawing test pictures and seeds "
    "again. Part i: top-1 drops by more than 0.05. Part ii: ReaL and variable top-k each drop by less than 0.03. Part "
    "iii: more than 80 % of the drop of top-1 is composition (Kitagawa's split by the number of objects). Part iv: "
    "where a picture has two objects and the first answer is one of them, the second answer is the other more often "
    "than 1/9, the rate of guessing. A part is shown when its interval lies wholly on that side of its bound and "
    "contradicted when wholly on the other; the claim is shown when all are, contradicted when any is."
)
FALLS, STAYS, COMPOSED, GUESSED = 0.05, 0.03, 0.8, 1 / 9
ARCHITECTURE = "resnet18"
NETWORK: dict[str, Any] = {
    "layers": [1, 1, 1, 1],
    "channels": [32, 64, 128, 256],
    "stem_type": "deep",
    "stem_width": 16,
}
METRICS = {"top_1": "top-1", "real": "ReaL", "variable_top_k": "variable top-k", "asma": "ASMA"}
SEVERAL = {2: 0.6, 3: 0.25, 4: 0.15}  # of the composites, how many have so many objects


@dataclass(frozen=True)
class Sizes:
    """How large the measurement is."""

    side: int = 32
    train: int = 8_000
    test: int = 3_000
    test_split: int = 8_000
    spare: int = (
        2_000  # pictures of the training split that are not trained on, and pasted like those of the test split
    )
    several_p: float = 0.16
    several_q: float = 0.48
    epochs: int = 5
    batch: int = 64
    learning_rate: float = 2e-3
    seeds: tuple[int, ...] = (0, 1, 2)

    def counts(self, several: float) -> dict[int, int]:
        """How many pictures of how many objects a test set has."""
        found = {k: round(self.test * several * share) for k, share in SEVERAL.items()}
        return {1: self.test - sum(found.values())} | found


def apart(loaded: Pictures, sizes: Sizes) -> Pictures:
    """So many pictures to train on, evenly over the classes; all others are there to be pasted."""
    chosen = balanced(loaded.train_labels, np.arange(len(loaded.train)), sizes.train, seed=0)
    rest = np.setdiff1d(np.arange(len(loaded.train)), chosen)
    return Pictures(
        loaded.train[chosen],
        loaded.train_labels[chosen],
        np.concatenate([loaded.test, loaded.train[rest]]),
        np.concatenate([loaded.test_labels, loaded.train_labels[rest]]),
    )


def made_sets(pictures: Pictures, sizes: Sizes) -> tuple[Composites, Composites]:
    """P and Q; no picture is in both."""
    classes = len(np.unique(pictures.test_labels))
    base = pictures.test, pictures.test_labels
    p = patch_composites(*base, sizes.counts(sizes.several_p), seed=101, n_classes=classes)
    used = p.sources[p.sources >= 0]
    q = patch_composites(*base, sizes.counts(sizes.several_q), exclude=used, seed=102, n_classes=classes)
    return p, q


def network(seed: int) -> nn.Module:
    """The network with random weights drawn from ``seed``."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE, num_classes=0, **NETWORK)


def trained(pictures: Pictures, sizes: Sizes, seed: int) -> FineTune:
    """A network from scratch after training on one object a picture, at a random place on noise."""
    singles = patch_composites(pictures.train, pictures.train_labels, {1: len(pictures.train)}, seed=seed)
    with tempfile.TemporaryDirectory() as place:
        folder = save_backbone(network(seed), Path(place) / "scratch", model_args=NETWORK)
        return FineTune(
            backbone=str(folder),
            image_size=2 * sizes.side,
            epochs=sizes.epochs,
            batch_size=sizes.batch,
            learning_rate=sizes.learning_rate,
            trunk_scale=1.0,
            flip=True,
            shift=0.0,
            random_state=seed,
        ).fit(singles.pictures, singles.labels)


def numbers_of(reports: list[tuple[MultiLabelReport, MultiLabelReport]], second: Resampled) -> dict[str, Any]:
    """Drops, the parts of top-1's, and the metrics on both sets, over the seeds' ``reports`` on P and Q."""

    def joined(parts: list[Resampled]) -> Resampled:
        drawn = over_seeds(np.stack([part.drawn for part in parts]), len(parts))
        return Resampled(float(np.mean([part.value for part in parts])), drawn)

    falls = {name: joined([drop_of(p, q, name) for p, q in reports]) for name in METRICS}
    split = [drop_parts(p, q, "top_1") for p, q in reports]
    parts = {name: joined([one[name] for one in split]) for name in ("composition", "within", "reweighted")}
    composition = parts["composition"]
    drop = falls["top_1"]
    share = Resampled(composition.value / drop.value, divide(composition.drawn, drop.drawn))
    levels = {}
    for side, which in (("p", 0), ("q", 1)):
        for name in METRICS:
            levels[f"{name} on {side.upper()}"] = interval(joined([_level(pair[which], name) for pair in reports]))
    rates = {
        f"{name}, k = {k}": [float(np.mean([pair[side].cell(name, k)["value"] for pair in reports])) for side in (0, 1)]
        for name in ("top_1", "real", "variable_top_k")
        for k in reports[0][0].ks.tolist()
    }
    return {
        "levels": levels,
        "drops": {name: interval(fall, "difference") for name, fall in falls.items()},
        "parts": {
            name: interval(part, "value" if name == "reweighted" else "difference") for name, part in parts.items()
        },
        "composition_share": interval(share),
        "second_answer": interval(second),
        "subgroups_on_p_and_q": rates,
        "by_seed": {name: [drop_of(p, q, name).value for p, q in reports] for name in METRICS},
    }


def _level(report: MultiLabelReport, name: str) -> Resampled:
    if name == "asma":
        chosen = report.averaged
        return Resampled(float(report.point.unweighted(chosen)[0]), report.drawn.unweighted(chosen))
    return Resampled(float(report.point.overall(name)[0]), report.drawn.overall(name))


def interval(number: Resampled, key: str = "value") -> dict[str, float]:
    """A number with the 95 % percentile interval of its resamples."""
    low, high = np.nanpercentile(number.drawn, [2.5, 97.5])
    return {key: number.value, "low": float(low), "high": float(high)}


def second_answer(scores: list[np.ndarray], table: np.ndarray, n_boot: int = 2000) -> Resampled:
    """Of pictures with two objects whose first answer is one of them, how often the second answer is the other.

    scores : (n, K) of each seed. table : (n, K) bool. Mean over the seeds; pictures and seeds are drawn again.
    """
    pairs = np.flatnonzero(table.sum(axis=1) == 2)
    valid = np.stack([np.take_along_axis(table[pairs], first_classes(one[pairs], 2), axis=1) for one in scores])
    first, both = valid[..., 0].astype(float), valid.all(axis=2).astype(float)  # (seeds, pairs)
    parts = [divide(both @ w, first @ w) for w in resampled_weights(np.arange(len(pairs)), n_boot, seed=0)]
    value = float(np.mean(both.sum(axis=1) / first.sum(axis=1)))
    return Resampled(value, over_seeds(np.concatenate(parts, axis=1), len(scores)))


def verdict_of(numbers: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The claim's verdict and those of its parts."""
    drops = numbers["drops"]
    parts = {
        "top-1 drops": better(drops["top_1"]["low"], drops["top_1"]["high"], -FALLS),
        "ReaL does not": better(-drops["real"]["high"], -drops["real"]["low"], STAYS),
        "variable top-k does not": better(-drops["variable_top_k"]["high"], -drops["variable_top_k"]["low"], STAYS),
        "composition": better(numbers["composition_share"]["low"], numbers["composition_share"]["high"], -COMPOSED),
        "second answer": better(numbers["second_answer"]["low"], numbers["second_answer"]["high"], -GUESSED),
    }
    return together(list(parts.values())), parts


def record(numbers: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Verdict, sentence, table and notes, all out of the numbers."""
    verdict, parts = verdict_of(numbers)
    drops = {name: shown(cell) for name, cell in numbers["drops"].items()}
    rows = [
        [label, *(shown(numbers["levels"][f"{name} on {side}"]) for side in "PQ"), drops[name]]
        for name, label in METRICS.items()
    ]
    for name, label in (("composition", "composition"), ("within", "within subgroups")):
        rows.append([f"of top-1's drop: {label}", "", "", shown(numbers["parts"][name])])
    rows.append(["top-1, Q weighed as P", "", shown(numbers["parts"]["reweighted"]), ""])
    rows.append(["second of two objects, the first being named", "", shown(numbers["second_answer"]), ""])
    for name in ("top_1", "real", "variable_top_k"):
        for key in (key for key in numbers["subgroups_on_p_and_q"] if key.startswith(f"{name},")):
            p, q = numbers["subgroups_on_p_and_q"][key]
            rows.append([key.replace(name, METRICS[name]), f"{p:.3f}", f"{q:.3f}", f"{p - q:+.3f}"])
    p, q = sizes.counts(sizes.several_p), sizes.counts(sizes.several_q)
    return {
        "verdict": verdict,
        "parts": parts,
        "sentence": f"Networks trained on one object a picture, on sets of composites of which {sizes.several_p:.0%} "
        f"and {sizes.several_q:.0%} show several: top-1 drops by {drops['top_1']} ({parts['top-1 drops']}), ReaL by "
        f"{drops['real']} ({parts['ReaL does not']}), variable top-k by {drops['variable_top_k']} "
        f"({parts['variable top-k does not']}); composition is {shown(numbers['composition_share'])} of the drop of "
        f"top-1 ({parts['composition']}); the second answer is valid at a rate of {shown(numbers['second_answer'])} "
        f"where guessing reaches {GUESSED:.3f} ({parts['second answer']}).",
        "rule": RULE,
        "setting": f"CIFAR-10 pictures of {sizes.side} pixels in a 2 x 2 grid on blurred noise. {sizes.test:,} test "
        f"pictures each: P with {said(p)}, Q with {said(q)} objects. timm's {ARCHITECTURE} with {NETWORK} from "
        f"scratch, {numbers['train_pictures']:,} pictures of one object, {sizes.epochs} epochs, batches of "
        f"{sizes.batch}, learning rate {sizes.learning_rate:g}, {len(sizes.seeds)} seeds (networks and training "
        "pictures; the test sets are the same). 2,000 resamples. Rows of subgroups are means over the seeds, without "
        "intervals.",
        "table": {"header": ["Metric", "P", "Q", "P minus Q"], "rows": rows},
        "notes": notes_of(numbers),
        "numbers": {**numbers, "sizes": asdict(sizes)},
    }


def said(counts: dict[int, int]) -> str:
    """``2,520 of 1, 288 of 2``."""
    return ", ".join(f"{number:,} of {k}" for k, number in counts.items())


def notes_of(numbers: dict[str, Any]) -> list[str]:
    """What the composites do not show, and the published accuracies."""
    notes = [
        "That composition is most of the drop follows from how P and Q were made: their pictures of equally many "
        "objects are alike. It shows that the arithmetic finds a difference of composition where there is one, not "
        "that the drop to ImageNetV2 is one. ReaL grows with the number of objects by chance alone; the rows of "
        "subgroups say how much.",
    ]
    table = numbers.get("published")
    if table is None:
        return notes
    drop, gain = table["drop"], table["gain"]

    def points(cell: dict[str, float], digits: int = 2) -> str:
        return f"{cell['value']:.{digits}f} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"

    return [
        *notes,
        f"Published accuracies of {table['n']:,} of timm's networks ({table['families']} families, drawn whole): top-1 "
        f"drops from ImageNet to ImageNetV2 by {points(drop)} points ({drop['least']:.2f} to {drop['most']:.2f}); ReaL "
        f"is {points(gain)} points above top-1 on ImageNet ({gain['least']:.2f} to {gain['most']:.2f}). A network with "
        f"one more point of gain drops by {points(table['slope'])} points more, which explains "
        f"{points(table['explained'])} of the variance between networks; at equal top-1 it is "
        f"{points(table['slope_at_equal_accuracy'])}.",
        f"The gain on ImageNet is as large as {points(table['valid_v1'])} of the errors by top-1. For ReaL to see no "
        f"drop, the gain on ImageNetV2 would have to be as large as {points(table['valid_needed'])} of the errors "
        "there. Whether it is cannot be said: there are no ReaL labels for ImageNetV2, and these tables hold no "
        "predictions. That gain and drop go together over networks does not make the one the cause of the other.",
    ]


def compare(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Train, score both sets, and give all numbers."""
    p, q = made_sets(pictures, sizes)
    reports: list[tuple[MultiLabelReport, MultiLabelReport]] = []
    scores, seconds = [], []
    for seed in sizes.seeds:
        began = time.perf_counter()
        classifier = trained(pictures, sizes, seed)
        seconds.append(round(time.perf_counter() - began, 1))
        on_p, on_q = (classifier.predict_proba(made.pictures) for made in (p, q))
        reports.append((MultiLabelReport(on_p, p.label_sets, p.labels), MultiLabelReport(on_q, q.label_sets, q.labels)))
        scores.append(np.concatenate([on_p, on_q]))
    numbers = numbers_of(reports, second_answer(scores, np.concatenate([p.label_sets, q.label_sets])))
    return numbers | {"train_seconds": seconds, "train_pictures": len(pictures.train)}


def measure(sizes: Sizes = Sizes()) -> Path:  # noqa: B008 (frozen)
    """Measure the claim and keep the result."""
    clock = Clock.start()
    pictures = apart(load_pictures(sizes.side, sizes.train + sizes.spare, sizes.test_split), sizes)
    numbers = compare(pictures, sizes)
    numbers["published"] = published_drop(read_accuracies(data_folder("timm-results")))
    return keep(SLUG, VERSION, record(numbers, sizes), clock)
