"""Balance: how many pictures of each class there are, and whether they suffice to measure anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from offshelf.evaluate.audit.finding import finding, named, not_judged, several
from offshelf.evaluate.audit.material import Material

FOLDS = 5
FEW, IMBALANCED, SHIFTED = 20, 20.0, 0.1


def balance(material: Material) -> dict[str, Any]:
    """Judge the number of pictures of each class.

    The rule: alarm when there is one class only, or a class has fewer than two independent pictures (groups and
    copies counted once), so that it cannot be trained on and tested; warning when a class has fewer than 5 of them (one
    a fold) or fewer than 20 pictures, when the commonest class is at least 20 times as frequent as the rarest, when a
    class is missing from a split, or when its share differs by at least 0.1 between training and test; fine otherwise.
    Of several labels a picture, each is counted by itself.
    """
    title = "Classes"
    if not material.labelled and not material.several:
        return not_judged("balance", title, "there are no labels.")
    rows = _rows(material)
    counted = [row for row in rows if row["n"]]
    n_unlabelled = sum(text is None for text in material.label_texts)
    missing = f" {several(n_unlabelled, 'picture has', 'pictures have')} no label." if n_unlabelled else ""
    rarest = min(counted, key=lambda row: row["n"], default=None)
    if rarest is None or (len(counted) < 2 and not material.several):
        only = f"All labelled pictures are of one class, {rarest['class']}" if rarest else "No picture has any label"
        return finding(
            "balance", title, "alarm", f"{only}: there is nothing to tell apart.{missing}",
            "Add pictures of another class.", rows=rows, ratio=None, n_unlabelled=n_unlabelled,
        )  # fmt: skip
    commonest = max(counted, key=lambda row: row["n"])
    ratio = commonest["n"] / rarest["n"]
    said = [
        f"{several(len(counted), 'label' if material.several else 'class', None if material.several else 'classes')}, "
        f"from {several(rarest['n'], 'picture')} ({rarest['class']}) to {commonest['n']:,} ({commonest['class']}): "
        f"the commonest is {ratio:.1f} times as frequent as the rarest.{missing}"
    ]
    alone = [row["class"] for row in counted if row["units"] < 2]
    few = [row["class"] for row in counted if 2 <= row["units"] < FOLDS or row["n"] < FEW]
    few = [name for name in few if name not in alone]
    absent = [f"{row['class']} in {split}" for row in counted for split, n in row["splits"].items() if not n]
    shifted = [row["class"] for row in counted if row["shift"] is not None and abs(row["shift"]) >= SHIFTED]
    todo = []
    if alone:
        said.append(f"{named(alone)} has a single independent picture and can be trained on or tested, not both.")
        todo.append(f"Add pictures of {named(alone)}, or leave it out.")
    if few:
        said.append(f"Few pictures of {named(few)}: intervals will be wide.")
        todo.append(f"Add pictures of {named(few)}.")
    if absent:
        said.append(f"Absent: {named(absent)}.")
        todo.append("Draw the splits again so that each holds every class.")
    if shifted:
        said.append(f"The share of {named(shifted)} differs between training and test by 0.1 or more.")
        todo.append("Read balanced accuracy, which does not hang on the shares.")
    if ratio >= IMBALANCED:
        todo.append("Read balanced accuracy or per-class numbers, not accuracy.")
    level = "alarm" if alone else "warning" if todo else "fine"
    return finding(
        "balance", title, level, " ".join(said), " ".join(todo), rows=rows, ratio=ratio, n_unlabelled=n_unlabelled
    )


def _rows(material: Material) -> list[dict[str, Any]]:
    """One row a class: pictures, independent ones, counts by split, and how the share moves from training to test."""
    has = _membership(material)
    splits = {} if material.splits is None else {name: material.splits == name for name in _in_order(material.splits)}
    labelled = has.any(axis=1)
    rows = []
    for k, name in enumerate(material.classes or [str(k) for k in range(has.shape[1])]):
        inside = {split: int((has[:, k] & here).sum()) for split, here in splits.items()}
        shares = {split: inside[split] / max(1, int((labelled & here).sum())) for split, here in splits.items()}
        rows.append(
            {
                "class": name,
                "n": int(has[:, k].sum()),
                "units": int(np.unique(material.units[has[:, k]]).size),
                "splits": inside,
                "shift": shares["test"] - shares["train"] if {"train", "test"} <= set(shares) else None,
            }
        )
    return rows


def _membership(material: Material) -> np.ndarray:
    """Which class each picture has ``(n, K)``."""
    if material.several:
        table = np.array(material.samples.dataset["labels"][:], dtype=float).reshape(len(material), -1)
        return np.nan_to_num(table) > 0.5
    return material.labels[:, None] == np.arange(len(material.classes))[None]


def _in_order(splits: np.ndarray) -> list[str]:
    return [name for name in ("train", "validation", "test") if (splits == name).any()]
