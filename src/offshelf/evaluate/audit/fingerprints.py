"""Fingerprints: does the file give the class away, before anybody looks at the picture?

When pictures of the classes come from different scanners, sites or programs, their size, format, compression or
brightness differ, and any network will find that before it finds the disease.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from offshelf.evaluate.audit.finding import bounds, finding, not_judged, several, worst
from offshelf.evaluate.audit.ground import Ground, balanced_accuracy, excess
from offshelf.evaluate.audit.looks import SIDE, Looks

FILE = {
    "width": "width",
    "height": "height",
    "aspect": "aspect ratio",
    "format": "format",
    "mode": "colour mode",
    "bit_depth": "bit depth",
    "quantisation": "JPEG quantisation",
}
LIGHT = {
    "bytes_per_pixel": "bytes a pixel",
    "brightness": "brightness",
    "contrast": "contrast",
    "border": "brightness of the border",
}
NAMES = FILE | LIGHT
BORDER = SIDE // 16
DEPTH, LEAF = 4, 5
ALARM = {"file": 0.3, "light": 0.75}  # excess over chance
WARNING = {"file": 0.05, "light": 0.5}
MOST = 10_000


def fingerprints(looks: Looks, ground: Ground | str) -> dict[str, Any]:
    """Judge how well numbers that say nothing of the subject predict the class.

    A decision tree (depth 4, five rows a leaf, classes weighted alike) on the numbers of the file (width, height,
    aspect, format, colour mode, bit depth, JPEG quantisation), and another on those of the light (bytes a pixel,
    brightness, contrast, brightness of the outer sixteenth), each cross-validated with units whole; then a tree on each
    number alone. The rule, with excess = (balanced accuracy - chance) / (1 - chance), and only where the lower
    bound is above chance: the file alarms from an excess of 0.3 on and warns from 0.05; the light, which may rightly
    differ by class, alarms from 0.75 on and warns from 0.5. Otherwise fine.
    """
    key, title = "fingerprints", "Fingerprints of the files"
    spread = ranges(looks)
    if isinstance(ground, str):
        return not_judged(key, title, f"{ground} {_said(spread)}", ranges=spread)
    ground = ground.limited(MOST)
    table = traits(looks.take(ground.rows))
    groups = {"file": list(FILE), "light": list(LIGHT)}
    scores = {name: predicted_by(table, numbers, ground) for name, numbers in groups.items()}
    levels = {name: _level(cell, ground.chance, name) for name, cell in scores.items()}
    level = worst(list(levels.values()))
    alone = {name: predicted_by(table, [name], ground) for name in NAMES if np.ptp(table[name]) > 0}
    rows: list[dict[str, Any]] = [
        {
            "trait": NAMES[name],
            "kind": "file" if name in FILE else "light",
            "score": cell,
            "by_class": _by_class(looks, table, name, ground),
        }
        for name, cell in sorted(alone.items(), key=lambda item: -item[1]["value"])
    ]
    for row in rows:
        row["level"] = _level(row["score"], ground.chance, row["kind"])
    telling = [row for row in rows if levels[row["kind"]] == level and level != "fine"]
    numbers = (
        f"balanced accuracy {bounds(scores['file'])} from size, format and compression alone, "
        f"{bounds(scores['light'])} from brightness and contrast alone (chance {ground.chance:.2f})"
    )
    if level == "fine":
        sentence, todo = f"The files hardly tell the class: {numbers}.", ""
    else:
        first = telling[0]
        sentence = (
            f"The class can be read off numbers that say nothing of the subject: {numbers}. Most telling: "
            f"{first['trait']} ({bounds(first['score'])} by itself)."
        )
        todo = (
            f"Find out why the {first['trait']} differs by class, and make it alike before training (one size, one "
            "format, one way of export), or collect all classes from the same places."
        )
    return finding(
        key, title, level, sentence, todo, file=scores["file"], light=scores["light"], levels=levels,
        chance=ground.chance, n=len(ground.rows), rows=rows, ranges=spread, classes=ground.classes,
    )  # fmt: skip


def traits(looks: Looks) -> dict[str, np.ndarray]:
    """The numbers ``(n,)`` by name; format and colour mode as codes."""
    headers = [header for header in looks.headers if header is not None]
    grey = looks.grey.astype(np.float64)
    edge = np.ones((SIDE, SIDE), dtype=bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    found = {name: np.array([getattr(one, name) for one in headers]) for name in ("width", "height")}
    found["aspect"] = found["width"] / found["height"]
    for name in ("format", "mode"):
        found[name] = np.unique([getattr(one, name) for one in headers], return_inverse=True)[1]
    for name in ("bit_depth", "quantisation"):
        found[name] = np.array([getattr(one, name) for one in headers], dtype=float)
    found["bytes_per_pixel"] = np.array([one.bytes / (one.width * one.height) for one in headers])
    found["brightness"], found["contrast"] = grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))
    found["border"] = grey[:, edge].mean(axis=1)
    return found


def predicted_by(table: dict[str, np.ndarray], names: list[str], ground: Ground) -> dict[str, Any]:
    """Balanced accuracy, as a cell, of a small tree on some of the numbers; each row by a tree that never saw it."""
    x = np.stack([table[name] for name in names], axis=1)
    predicted = np.full(len(x), -1)
    for fold in ground.folds:
        tree = DecisionTreeClassifier(
            max_depth=DEPTH, min_samples_leaf=LEAF, class_weight="balanced", random_state=ground.material.seed
        )
        predicted[fold.test] = tree.fit(x[fold.train], ground.labels[fold.train]).predict(x[fold.test])
    return balanced_accuracy(ground.labels, predicted, ground.units, len(ground.classes), ground.material.seed)


def _level(cell: dict[str, Any], chance: float, kind: str) -> str:
    above = cell["low"] is not None and cell["low"] > chance
    over = excess(cell["value"], chance)
    if above and over >= ALARM[kind]:
        return "alarm"
    return "warning" if above and over >= WARNING[kind] else "fine"


def _by_class(looks: Looks, table: dict[str, np.ndarray], name: str, ground: Ground) -> list[str]:
    """What is usual in each class: the median, or for words the commonest with its share."""
    found = []
    for k in range(len(ground.classes)):
        inside = np.flatnonzero(ground.labels == k)
        if name in ("format", "mode"):
            words = Counter(getattr(looks.headers[ground.rows[row]], name) for row in inside)
            word, count = words.most_common(1)[0]
            found.append(f"{word} ({count / len(inside):.0%})")
        else:
            found.append(f"{np.median(table[name][inside]):.4g}")
    return found


def ranges(looks: Looks) -> dict[str, Any]:
    """Sizes, formats and modes of all pictures."""
    headers = [header for header in looks.headers if header is not None]
    sizes = Counter(f"{one.width} × {one.height}" for one in headers)
    return {
        "sizes": len(sizes),
        "commonest_sizes": dict(sizes.most_common(5)),
        "formats": dict(Counter(one.format for one in headers).most_common()),
        "modes": dict(Counter(one.mode for one in headers).most_common()),
        "short_side": [
            min(min(one.width, one.height) for one in headers),
            max(min(one.width, one.height) for one in headers),
        ],
        "bytes": sum(one.bytes for one in headers),
    }


def _said(spread: dict[str, Any]) -> str:
    low, high = spread["short_side"]
    return (
        f"The pictures have {several(spread['sizes'], 'size')} (short side {low:,} to {high:,} pixels) in "
        f"{several(len(spread['formats']), 'format')} ({', '.join(spread['formats'])})."
    )
