"""Files: what cannot be read, and what is there twice, byte for byte or pixel for pixel."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from offshelf.data.images import decode_image, read_bytes
from offshelf.evaluate.audit.finding import finding, named, several
from offshelf.evaluate.audit.material import Material
from offshelf.evaluate.audit.near_duplicates import clusters_of

MANY = 0.01  # share of the pictures; from here on it is an alarm


def files(material: Material, pairs: np.ndarray) -> dict[str, Any]:
    """Judge files that cannot be read and pictures that are exactly equal.

    The rule: alarm when at least 1 % of the pictures cannot be read, stand under two labels, or stand in two
    splits; warning when anything is unreadable or there twice; fine otherwise.

    Parameters
    ----------
    pairs : ``(m, 2)`` copies as `find_copies` gives them; among those of one size the pixels are compared.
    """
    n, bad = material.n_found, material.bad
    sets = clusters_of(equal_pairs(material, pairs))
    rows = [_described(material, one) for one in sets]
    across = [one for one in rows if len(set(one["splits"])) > 1]
    conflicting = [one for one in rows if len(set(one["labels"])) > 1]
    groups = [one for one in rows if len(set(one["groups"])) > 1]
    said, todo = [], []
    if bad:
        said.append(f"{len(bad):,} of {several(n, 'file')} cannot be read ({named([one['path'] for one in bad])}).")
        todo.append("Mend or remove the files that cannot be read.")
    else:
        said.append(f"All {several(n, 'file')} can be read.")
    if not rows:
        said.append("No two hold exactly the same picture.")
    else:
        extra = sum(len(one["paths"]) - 1 for one in rows)
        said.append(f"{several(len(rows), 'picture')} stand more than once ({several(extra, 'copy', 'copies')}).")
        todo.append("Keep one file of each exactly equal set.")
    if across:
        said.append(f"{several(len(across), 'of them stands', 'of them stand')} in more than one split.")
        todo.append("Take the equal pictures out of one of the splits: the score counts pictures that were trained on.")
    if conflicting:
        said.append(f"{several(len(conflicting), 'of them has', 'of them have')} two labels.")
        todo.append("Settle the label of equal pictures that have two.")
    if groups:
        said.append(f"{several(len(groups), 'of them stands', 'of them stand')} in more than one group.")
    counts = [len(bad), *(sum(len(one["paths"]) for one in rows) for rows in (conflicting, across))]
    alarm = any(count > 0 and count >= MANY * n for count in counts)
    level = ("alarm" if alarm else "warning") if bad or rows else "fine"
    return finding(
        "files", "Files", level, " ".join(said), " ".join(todo), n=n, unreadable=bad, equal=rows,
        n_across_splits=len(across), n_two_labels=len(conflicting), n_across_groups=len(groups),
    )  # fmt: skip


def equal_pairs(material: Material, pairs: np.ndarray) -> np.ndarray:
    """Those of ``pairs``, and of pictures with equal thumbnails, whose decoded pixels are the same."""
    headers, looks = material.looks.headers, material.looks
    seen: dict[Any, int] = {}
    same_look = []
    for row, header in enumerate(headers):
        assert header is not None  # the readable ones have one
        look = (header.width, header.height, looks.grey[row].tobytes(), looks.colour[row].tobytes())
        if seen.setdefault(look, row) != row:
            same_look.append((seen[look], row))
    asked = np.concatenate([pairs, np.array(same_look, dtype=np.int64).reshape(-1, 2)])
    digests: dict[int, bytes] = {}

    def digest(row: int) -> bytes:
        if row not in digests:
            digests[row] = _pixels(material, row)
        return digests[row]

    kept = []
    for one, other in asked.tolist():
        size = [(headers[row].width, headers[row].height) for row in (one, other)]
        equal_bytes = material.keys[one] == material.keys[other]
        if equal_bytes or (size[0] == size[1] and digest(one) == digest(other)):
            kept.append((one, other))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _pixels(material: Material, row: int) -> bytes:
    """A digest of the pixels at full size; grey stored as RGB counts as grey."""
    picture = decode_image(read_bytes(material.samples.image(row)), name=material.names[row])
    if len(picture) == 3 and torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2]):
        picture = picture[:1]
    return hashlib.sha256(str(tuple(picture.shape)).encode() + picture.contiguous().numpy().tobytes()).digest()


def _described(material: Material, rows: list[int]) -> dict[str, list[str]]:
    return {
        "paths": [material.names[row] for row in rows],
        "labels": [str(material.label_texts[row]) for row in rows if material.label_texts[row] is not None],
        "splits": [] if material.splits is None else [str(material.splits[row]) for row in rows],
        "groups": []
        if material.groups is None
        else [str(material.groups[row]) for row in rows if material.groups[row] is not None],
    }
