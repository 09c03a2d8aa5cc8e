"""Copies: pictures that are the same but for size, compression, brightness, or a slight crop.

Three looks at each picture propose pairs in one blocked matrix product: a band-passed thumbnail, a difference hash of
256 bits (neighbouring pixels of a 16 x 17 grid: brighter or not), and the backbone's features; each with the mean over
the data set taken out, since all chest radiographs are alike and only what departs from their mean tells them apart.
A proposed pair is then laid one over the other (shift and scale along both axes, Lucas and Kanade 1981, on band-passed
thumbnails, to which brightness and contrast are nothing), and must agree far better than the picture agrees with its
ordinary neighbours; else two handwritten ones would be copies of each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from offshelf.evaluate.audit.finding import finding, not_judged, several
from offshelf.evaluate.audit.material import Material
from offshelf.evaluate.audit.overlay import agreement
from offshelf.evaluate.groups import equal_pairs, united

NEIGHBOURS = 3  # pairs proposed for each picture
ORDINARY = slice(11, 16)  # ranks of the neighbours that show what likeness is usual here
ALIKE, STANDS_OUT = 0.4, 0.85  # least mean similarity, and most of its distance over the usual one, of a proposal
AGREE, CERTAIN = 0.94, 0.99  # least correlation after overlaying; from CERTAIN on nothing else is asked
UNUSUAL = 0.15  # a copy's disagreement is at most this share of that with ordinary neighbours
CHROMA = 14.0  # most root mean square difference of colour, in levels of 0 to 255
SMALLEST, FLATTEST = 24, 2.0  # pixels of the short side, and grey levels of contrast, below which nothing is told
ALL_PAIRS = 40  # pictures up to which every pair is looked at
MOST = 6000  # proposals looked at, those that stand out most first
BLOCK = 1024
CLUSTERS, MEMBERS = 12, 5  # shown
SHARE = 0.1  # of the pictures; from here on it is an alarm


def find_copies(material: Material) -> tuple[np.ndarray, int]:
    """Pairs of rows ``(m, 2)``, first below second, that show the same picture, and how many rows were compared.

    Pictures of which one is a byte-for-byte copy of the other are among them.
    """
    looks = material.looks
    fit = np.array([header is not None and min(header.width, header.height) >= SMALLEST for header in looks.headers])
    fit &= looks.grey.reshape(len(fit), -1).std(axis=1) >= FLATTEST
    rows = np.flatnonzero(fit)
    pairs = [equal_pairs(material.keys)]
    if len(rows) >= 2:
        pairs.append(rows[_near(looks.grey[rows], looks.colour[rows], material.features[rows])])
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0), len(rows)


def near_duplicates(material: Material, pairs: np.ndarray, compared: int) -> dict[str, Any]:
    """Judge how much of the data set is copies.

    The rule: alarm when at least 10 % of the pictures have a copy (byte for byte or nearly), or at least 1 %
    have one under another label; warning when there is any; fine when there is none. Not judged when no picture is
    large enough (24 pixels) to tell a copy from a likeness.
    """
    title = "Near-duplicates"
    if not compared:
        return not_judged(
            "near_duplicates", title, f"no picture has a short side of {SMALLEST} pixels and any contrast to compare."
        )
    clusters = clusters_of(pairs)
    inside = sum(map(len, clusters))
    n = len(material)
    other = {row for pair in pairs if _differ(material, pair) for row in pair}
    shown = [[material.picture(row) for row in rows[:MEMBERS]] for rows in _telling(material, clusters)[:CLUSTERS]]
    listed = [[material.names[row] for row in rows] for rows in clusters]
    rows: dict[str, Any] = {
        "n": n,
        "compared": compared,
        "n_pairs": len(pairs),
        "n_in_clusters": inside,
        "clusters": listed,
    }
    if not clusters:
        sentence = f"No two of {compared:,} pictures are copies of each other, byte for byte or nearly."
        return finding("near_duplicates", title, "fine", sentence, shown=[], **rows)
    sentence = (
        f"{several(inside, 'picture')} of {n:,} ({inside / n:.1%}) have a copy here that differs at most in size, "
        f"compression, brightness or a slight crop; they form {several(len(clusters), 'cluster')}."
    )
    if other:
        sentence += f" {several(len(other), 'picture')} of them have a copy under another label."
    alarm = inside >= SHARE * n or len(other) >= 0.01 * n
    todo = (
        "Keep one picture of each cluster, or give the clusters as groups (--group-column), so that no copy of a "
        "training picture is ever tested."
    )
    if other:
        todo += " Settle the label where two copies disagree."
    return finding(
        "near_duplicates", title, "alarm" if alarm else "warning", sentence, todo, shown=shown,
        n_other_label=len(other), **rows,
    )  # fmt: skip


def clusters_of(pairs: np.ndarray) -> list[list[int]]:
    """Rows that are joined by pairs, directly or through others; the largest cluster first."""
    if not len(pairs):
        return []
    rows, places = np.unique(pairs, return_inverse=True)
    codes = united(len(rows), None, places.reshape(-1, 2))
    found = [rows[codes == code].tolist() for code in range(int(codes.max()) + 1)]
    return sorted(found, key=lambda one: (-len(one), one[0]))


def _telling(material: Material, clusters: list[list[int]]) -> list[list[int]]:
    """Clusters with two labels or two splits first."""

    def mixed(rows: list[int]) -> int:
        labels = {material.label_texts[row] for row in rows}
        splits = set() if material.splits is None else {material.splits[row] for row in rows}
        return (len(labels) > 1) + (len(splits) > 1)

    return sorted(clusters, key=lambda rows: -mixed(rows))


def _differ(material: Material, pair: np.ndarray) -> bool:
    one, other = (material.label_texts[row] for row in pair)
    return one is not None and other is not None and one != other


def _near(grey: np.ndarray, colour: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Pairs ``(m, 2)`` of rows that are copies."""
    pairs, usual = proposals(descriptors(grey, features))
    if len(grey) <= ALL_PAIRS:  # a mean over so few says little
        pairs = np.stack(np.triu_indices(len(grey), 1), axis=1)
    if not len(pairs):
        return pairs
    chroma = colour.astype(np.float32)
    chroma = (chroma - chroma.mean(axis=3, keepdims=True)).reshape(len(chroma), -1)
    apart = np.sqrt(((chroma[pairs[:, 0]] - chroma[pairs[:, 1]]) ** 2).mean(axis=1))
    pairs = pairs[apart <= CHROMA][:MOST]
    # A quick look at half the size first: it is five times as fast, and rarely wrong by so much.
    told = agreement(grey, pairs, side=32)
    close = told >= AGREE - 0.05
    pairs = pairs[close][_unusual(grey, pairs[close], told[close], usual, 2 * UNUSUAL, side=32)]
    told = agreement(grey, pairs)
    close = told >= AGREE
    return pairs[close][_unusual(grey, pairs[close], told[close], usual, UNUSUAL)]


def _unusual(
    grey: np.ndarray, pairs: np.ndarray, told: np.ndarray, usual: np.ndarray, share: float, side: int | None = None
) -> np.ndarray:
    """Which pairs ``(m,)`` agree certainly, or far better than their pictures do with their ordinary neighbours."""
    kept = told >= CERTAIN
    asked = np.flatnonzero(~kept)
    width = usual.shape[1]
    if not width:  # too few pictures to know what is usual
        return np.ones(len(pairs), dtype=bool)
    likeness = np.full(len(asked), -1.0)
    for k in (0, 1):
        ends = pairs[asked, k]
        against = np.stack([np.repeat(ends, width), usual[ends].ravel()], axis=1)
        likeness = np.maximum(likeness, agreement(grey, against, side).reshape(len(asked), width).max(axis=1))
    kept[asked] = 1 - told[asked] <= share * (1 - likeness)
    return kept


def descriptors(grey: np.ndarray, features: np.ndarray) -> np.ndarray:
    """``(n, d)`` float32 of length 1, whose inner products are the mean of the three similarities."""
    small = _shrunk(grey, 16, 16)
    thumbs = small - F.avg_pool2d(F.pad(small[:, None], (2, 2, 2, 2), mode="replicate"), 5, stride=1)[:, 0]
    grid = _shrunk(grey, 16, 17)
    bits = (grid[:, :, 1:] > grid[:, :, :-1]).float() * 2 - 1
    deep = features / np.maximum(features.std(axis=0), 1e-6)
    parts = [_centred(_unit(thumbs.numpy())), _centred(bits.numpy()), _centred(deep)]
    return (np.concatenate(parts, axis=1) / np.sqrt(len(parts))).astype(np.float32)


def proposals(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs worth a closer look, the most outstanding first, and every row's ordinary neighbours ``(n, 5 at most)``."""
    n = len(x)
    table = torch.from_numpy(x)
    depth = min(ORDINARY.stop, n - 1)
    pairs, usual, outstanding = [], [], []
    for start in range(0, n, BLOCK):
        similarity = table[start : start + BLOCK] @ table.T
        here = torch.arange(len(similarity))
        similarity[here, here + start] = -2.0
        values, places = (one.numpy() for one in similarity.topk(depth, dim=1))
        limit = values[:, min(ORDINARY.start, depth - 1)] if depth > NEIGHBOURS else np.full(len(values), -1.0)
        for k in range(min(NEIGHBOURS, depth)):
            share = (1 - values[:, k]) / np.maximum(1 - limit, 1e-6)
            good = (values[:, k] >= ALIKE) & (share <= STANDS_OUT)
            pairs.append(np.stack([np.flatnonzero(good) + start, places[good, k]], axis=1))
            outstanding.append(share[good])
        usual.append(places[:, ORDINARY])
    order = np.argsort(np.concatenate(outstanding), kind="stable")
    ordered = np.sort(np.concatenate(pairs), axis=1)[order]
    _, first = np.unique(ordered, axis=0, return_index=True)
    return ordered[np.sort(first)], np.concatenate(usual)


def _shrunk(grey: np.ndarray, height: int, width: int) -> torch.Tensor:
    whole = torch.from_numpy(grey)[:, None].float()
    return F.interpolate(whole, (height, width), mode="bilinear", antialias=True)[:, 0]


def _unit(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1).astype(np.float32)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _centred(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    return _unit(flat - flat.mean(axis=0))
