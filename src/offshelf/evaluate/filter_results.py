"""What a study of filters found, ready for JSON: arms with intervals, ties, curves, filters before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offshelf.evaluate.compare import FEWEST_DIFFERING_GROUPS
from offshelf.evaluate.filter_arms import FilterArm, Question
from offshelf.evaluate.filter_training import Followed
from offshelf.evaluate.groups import count_groups, group_codes
from offshelf.evaluate.intervals import metric_cell
from offshelf.evaluate.metrics import class_counts
from offshelf.evaluate.resampling import resampled_weights
from offshelf.evaluate.seeds import over_seeds
from offshelf.evaluate.verdict import shown
from offshelf.interpret.filter_design import Design

N_BOOT = 2000
DRAWN = 64  # filters of a layer in the page
GRADES = ("sparsity", "entropy", "orthogonality")


def study_results(
    question: Question,
    arms: Sequence[FilterArm],
    tried: dict[str, list[Followed]],
    designs: dict[str, Design | None],
    material: Any,
    seeds: Sequence[int],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Everything a page of the study shows, but the cost.

    Parameters
    ----------
    tried
        Arm -> what its trainings gave, one a seed, in the order of ``seeds``.
    designs
        Arm -> what its first network was given.
    material
        As of `offshelf.evaluate.filter_study.Material`.
    """
    rows, test, validation = material.rows, material.test, material.validation
    tested = Judge(rows.labels[test], len(rows.classes), rows.clusters(test), seeds[0])
    chosen = Judge(rows.labels[validation], len(rows.classes), rows.clusters(validation), seeds[0])
    base = tried[arms[0].name]
    told = [_arm(arm, tried[arm.name], designs[arm.name], tested, chosen, base) for arm in arms]
    threshold = float(np.mean([chosen.value(one.validation[-1]) for one in base]))
    for row, arm in zip(told, arms):
        row["epochs_to_baseline"] = _epochs_to(threshold, row["curve"]["value"])
        row["baseline"] = arm is arms[0]
    best = max(told, key=lambda row: row["validation"]["value"])["name"]
    results: dict[str, Any] = {
        "title": f"{Path(rows.data['source']).name or rows.data['source']}: filters, {question.study}",
        "verb": "design",
        "study": question.study,
        "question": {"backbone": question.backbone, "match": question.match, "tolerance": question.tolerance}
        | ({"size": question.size} if question.study == "shape" else {})
        | {"norm": question.norm},
        "settings": about,
        "seeds": list(seeds),
        "classes": rows.classes,
        "chance": 1 / len(np.unique(tested.labels)),
        "baseline": arms[0].name,
        "arms": told,
        "best": best,
        "tie_groups": _tie_groups(tried, tested),
        "parts": {"train": len(material.train), "validation": len(validation), "test": len(test)},
        "data": rows.data,
    }
    results["verdict"] = sentences(results)
    return results


class Judge:
    """Balanced accuracy of predictions of the same pictures, with the same resamples for all."""

    def __init__(self, labels: np.ndarray, n_classes: int, groups: np.ndarray | None, seed: int) -> None:
        self.labels, self.n_classes, self.seed = labels, n_classes, seed
        self.codes = group_codes(groups, len(labels))

    def value(self, predictions: np.ndarray) -> float:
        """Of predictions ``(n,)``."""
        return float(class_counts(self.labels, predictions, self.n_classes).balanced_accuracy[0])

    def drawn(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """``(len(predictions), B)`` the same in every resample of groups."""
        parts = [
            [class_counts(self.labels, one, self.n_classes, weights).balanced_accuracy for one in predictions]
            for weights in resampled_weights(self.codes, N_BOOT, self.seed)
        ]
        return np.concatenate([np.stack(part) for part in parts], axis=1)

    def cell(self, by_seed: Sequence[np.ndarray]) -> dict[str, Any]:
        """Mean over seeds with its interval over seeds and groups."""
        value = float(np.mean([self.value(one) for one in by_seed]))
        return metric_cell(value, over_seeds(self.drawn(by_seed), len(by_seed), self.seed), len(self.labels))

    def difference(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> dict[str, Any]:
        """``a`` minus ``b``, paired by seed and picture."""
        value = float(np.mean([self.value(one) - self.value(other) for one, other in zip(a, b)]))
        drawn = over_seeds(self.drawn(a) - self.drawn(b), len(a), self.seed)
        return metric_cell(value, drawn, len(self.labels))

    def differing(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> int:
        """How many groups any seed's networks answer differently."""
        return count_groups(self.codes, np.any([one != other for one, other in zip(a, b)], axis=0))


def _arm(
    arm: FilterArm,
    runs: list[Followed],
    design: Design | None,
    tested: Judge,
    chosen: Judge,
    base: list[Followed],
) -> dict[str, Any]:
    """One arm's row."""
    last = [_known(one.last) for one in runs]
    epochs = len(runs[0].validation)
    curves = [chosen.drawn(one.validation) for one in runs]  # of each seed (epochs, B)
    by_epoch = [over_seeds(np.stack([curve[e] for curve in curves]), len(runs), chosen.seed) for e in range(epochs)]
    values = [float(np.mean([chosen.value(one.validation[e]) for one in runs])) for e in range(epochs)]
    cells = [metric_cell(value, drawn, len(chosen.labels)) for value, drawn in zip(values, by_epoch)]
    area = metric_cell(
        float(np.mean(values)),
        over_seeds(np.stack([curve.mean(axis=0) for curve in curves]), len(runs), chosen.seed),
        len(chosen.labels),
    )
    layers = list(runs[0].filters)
    return {
        "name": arm.name,
        "rule": arm.rule,
        "settings": arm.settings,
        "parameters": arm.cost.parameters,
        "multiply_adds": arm.cost.multiply_adds,
        "receptive_field": arm.field,
        "last": tested.cell(last),
        "first": tested.cell([_known(one.first) for one in runs]),
        "by_seed": [tested.value(one) for one in last],
        "difference": None if runs is base else tested.difference(last, [_known(one.last) for one in base]),
        "validation": cells[-1],
        "area": area,
        "curve": {
            "value": values,
            "low": [cell["low"] for cell in cells],
            "high": [cell["high"] for cell in cells],
        },
        "losses": np.mean([one.losses for one in runs], axis=0).tolist(),
        "variances": {name: float(np.mean([one.variances[name] for one in runs])) for name in runs[0].variances},
        "layers": [_layer(name, runs, design) for name in layers],
        "seconds": float(np.mean([one.seconds for one in runs])),
    }


def _known(predictions: np.ndarray | None) -> np.ndarray:
    assert predictions is not None  # every training has a first and a last epoch
    return predictions


def _layer(name: str, runs: list[Followed], design: Design | None) -> dict[str, Any]:
    """One designed layer: how it was begun, how far it went, its grades and its filters before and after."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None and value == value]
        return float(np.mean(known)) if known else None

    begun = next((layer for layer in design.to_dict()["layers"] if layer["name"] == name), None) if design else None
    before, after = runs[0].filters[name]
    return {
        "name": name,
        "begun": begun,
        "shape": list(before.shape),
        "travelled": mean([one.travelled[name] for one in runs]),
        "dead": [mean([one.dead[name][k] for one in runs]) for k in (0, 1)],
        "grades": {key: [mean([one.quality[name][k][key] for one in runs]) for k in (0, 1)] for key in GRADES},
        "pictures": {"before": draw(before), "after": draw(after), "n": min(DRAWN, len(before))},
    }


def draw(filters: np.ndarray) -> str:
    """Up to 64 filters ``(O, I, kh, kw)`` as a PNG data URI, one pixel a tap, the largest weight of each at full scale.

    Filters of three channels are drawn in colour, of others by the channel in which they are strongest.
    """
    buffer = io.BytesIO()
    Image.fromarray(sheet(filters[:DRAWN])).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(filters: np.ndarray, columns: int = 16) -> np.ndarray:
    """Filters side by side on mid grey, one pixel apart: ``(h, w, 3)`` uint8."""
    if filters.shape[1] != 3:
        strongest = np.square(filters).sum(axis=(2, 3)).argmax(axis=1)
        filters = np.repeat(filters[np.arange(len(filters)), strongest][:, None], 3, axis=1)
    n, _, height, width = filters.shape
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    tiles = 127.5 + 127.5 * np.divide(filters, largest, out=np.zeros_like(filters), where=largest > 0)
    across = min(columns, n)
    down = -(-n // across)
    page = np.zeros((down * (height + 1) - 1, across * (width + 1) - 1, 4), np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, across)
        y, x = row * (height + 1), column * (width + 1)
        page[y : y + height, x : x + width, :3] = tile.transpose(1, 2, 0).round()
        page[y : y + height, x : x + width, 3] = 255
    return page


def _tie_groups(tried: dict[str, list[Followed]], tested: Judge) -> list[list[str]]:
    """Best first; a group is the best arm left and all left that cannot be told apart from it."""
    last = {name: [_known(one.last) for one in runs] for name, runs in tried.items()}
    left = sorted(last, key=lambda name: -float(np.mean([tested.value(one) for one in last[name]])))
    groups = []
    while left:
        leader, tied = left[0], [left[0]]
        for name in left[1:]:
            cell = tested.difference(last[leader], last[name])
            enough = tested.differing(last[leader], last[name]) >= FEWEST_DIFFERING_GROUPS
            apart = cell["low"] is not None and (cell["low"] > 0 or cell["high"] < 0)
            tied += [] if enough and apart else [name]
        groups.append(tied)
        left = [name for name in left if name not in tied]
    return groups


def _epochs_to(threshold: float, curve: Sequence[float]) -> int | None:
    """The first epoch, from 1, whose mean validation score reaches a threshold; None when none does."""
    return next((epoch for epoch, value in enumerate(curve, start=1) if value >= threshold), None)


def sentences(results: dict[str, Any]) -> list[str]:
    """The verdict, most important first."""
    arms = {arm["name"]: arm for arm in results["arms"]}
    best, base = arms[results["best"]], arms[results["baseline"]]
    n, chance, seeds = results["parts"]["test"], results["chance"], len(results["seeds"])
    over = f"{seeds} seeds" if seeds > 1 else "one seed, so that the intervals hold pictures alone"
    found = [
        f"Best on the validation part: {best['name']}, balanced accuracy {shown(best['last'])} on {n} test pictures "
        f"(chance {chance:.3f}, {over})."
    ]
    if best is not base:
        gain = best["difference"]
        held = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain["low"] is not None else None
        told = held is not None and (gain["low"] > 0 or gain["high"] < 0)
        text = f"{best['name']} minus {base['name']}: {held or 'the same answers'}."
        found.append(text if told else text + " That cannot be told from no difference.")
    tied = next(group for group in results["tie_groups"] if best["name"] in group)
    others = [name for name in tied if name != best["name"]]
    if len(others) == len(arms) - 1:
        found.append("No arm can be told apart from it: on this data the choice does not matter, or is not to be seen.")
    elif others:
        found.append(f"It cannot be told apart from {', '.join(others)}.")
    low = [arm["name"] for arm in arms.values() if arm["last"]["low"] is None or arm["last"]["low"] <= chance]
    if low:
        found.append(f"Not above chance: {', '.join(low)}.")
    dead = [f"{arm['name']} ({100 * arm['layers'][0]['dead'][1]:.0f} %)" for arm in arms.values() if _dead(arm)]
    if dead:
        found.append(f"Dead filters at the end: {', '.join(dead)}.")
    return found


def _dead(arm: dict[str, Any]) -> bool:
    return bool(arm["layers"]) and (arm["layers"][0]["dead"][1] or 0) > 0
