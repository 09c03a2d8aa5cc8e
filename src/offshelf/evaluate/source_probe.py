"""Can the source of a picture (site, scanner, patient) be read from its features beyond what its class tells?

A classifier can only take a short cut through the source when the features show it. With few sources a linear probe is
asked; with many small ones, whether nearest neighbours inside a class are of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offshelf.errors import DataError
from offshelf.evaluate.groups import count_groups, group_codes, is_missing
from offshelf.evaluate.intervals import metric_cell, wilson_interval
from offshelf.evaluate.metrics import class_counts
from offshelf.evaluate.resampling import bootstrap_mean, resampled_weights
from offshelf.evaluate.splits import inner_folds

FEWEST_ROWS, MOST_SOURCES = 5, 20
# Sources with fewer rows are set aside as long as the others cover this share of the rows.
COVERED = 0.9
MAX_ROWS, MAX_QUERIES, MAX_COMPONENTS = 5000, 2000, 64
TIED, CONFOUNDED, NEIGHBOURS_ALARM = 0.2, 0.9, 0.5


def source_probe(
    features: np.ndarray,
    sources: Sequence[Any] | np.ndarray | None,
    labels: Sequence[int] | np.ndarray,
    seed: int = 0,
    *,
    column: str = "source",
    clusters: Sequence[Any] | np.ndarray | None = None,
    n_boot: int = 2000,
) -> dict[str, Any] | None:
    """Judge how far the features give the source away, within classes.

    Kind "classes", when 2 to 20 sources have at least five rows each (five clusters, if given) and cover 90 % of the
    rows: a cross-validated linear probe (standardised features, at most 64 principal components, logistic regression
    with balanced classes; 5 folds). ``score`` is its balanced accuracy, ``chance`` the best balanced accuracy that the
    label alone allows on these rows (at least 1 / number of sources), so that a probe that only knows the class is not
    above chance. Otherwise kind "neighbours": among rows with another row of their source in their class, ``score`` is
    the share whose nearest row of the same class (cosine) is of the same source, ``chance`` its expectation when
    sources lie at random within the class.

    Levels, fixed beforehand, with excess = (x - floor) / (1 - floor):

    - classes, alarm: the lower bound is above chance and class and source go together (excess of ``chance`` over
      1 / sources at least 0.2, chi-squared p < 0.01): the features offer a short cut; or the label alone all but names
      the source (excess at least 0.9) and the features show it (lower bound above 1 / sources): the two cannot be
      told apart on this data.
    - neighbours, alarm: the lower bound is above chance and the score's excess over chance is at least 0.5.
    - warning: the lower bound is above chance otherwise, or there is no interval.
    - fine: the rest.
    - The column "group" never alarms: groups are kept whole by every split, so what they give away cannot raise the
      score; it is a warning that pictures must be split by group.

    Parameters
    ----------
    features
        ``(n, d)`` finite.
    sources
        ``(n,)`` values of the column; rows without one are left out. ``None``: there is no such column.
    labels
        ``(n,)`` class numbers.
    seed
        Of folds, subsamples (at most 5,000 rows, 2,000 neighbour queries) and the bootstrap.
    column
        ``"source"`` or ``"group"``.
    clusters
        ``(n,)`` units kept whole in the probe's folds and bootstrap (patients, when the column is the site).
    n_boot
        Resamples.

    Returns
    -------
    control
        ``column``, ``kind``, ``score`` (cell), ``chance``, ``level``, ``sentence``; or ``None`` when nothing can be
        judged: no source is named, or no two pictures of a class share one and no two have five pictures each.

    Raises
    ------
    DataError
        Columns of different lengths or features that are not finite.
    """
    if sources is None:
        return None
    x, y, names = np.asarray(features), np.asarray(labels), list(sources)
    if x.ndim != 2 or not len(x) == len(y) == len(names) or not np.isfinite(x).all():
        raise DataError(
            f"source probe: features {x.shape}, {len(y)} labels, {len(names)} values of {column!r}; "
            "expected finite numbers, a row each"
        )
    kept = np.flatnonzero([not is_missing(name) for name in names])
    if not len(kept):
        return None
    units = group_codes(clusters, len(x))[kept]
    x, y, codes = x[kept], y[kept], group_codes([names[row] for row in kept], len(kept))
    rows = _probe_rows(codes, units)
    if rows is not None:
        found = _linear_probe(x[rows], codes[rows], y[rows], units[rows], seed, n_boot, column)
        if found is not None:
            return found
    return _neighbours(x, codes, y, seed, n_boot, column)


def _probe_rows(codes: np.ndarray, units: np.ndarray) -> np.ndarray | None:
    """Rows of the sources that are large enough for the linear probe, or ``None`` when it cannot be asked."""
    pairs = np.unique(np.stack([codes, units]), axis=1)  # a unit counts once in a source
    large = np.flatnonzero(np.bincount(pairs[0], minlength=int(codes.max()) + 1) >= FEWEST_ROWS)
    rows = np.flatnonzero(np.isin(codes, large))
    return rows if 2 <= len(large) <= MOST_SOURCES and len(rows) >= COVERED * len(codes) else None


def _linear_probe(
    x: np.ndarray, codes: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int, n_boot: int, column: str
) -> dict[str, Any] | None:
    """The control of kind "classes"; ``None`` when the units cannot be divided."""
    if len(x) > MAX_ROWS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(x), MAX_ROWS, replace=False))
        x, codes, y, units = x[drawn], codes[drawn], y[drawn], units[drawn]
    codes = np.unique(codes, return_inverse=True)[1]
    n_sources = int(codes.max()) + 1
    units = np.unique(units, return_inverse=True)[1]
    predictions = np.full(len(x), -1)
    for train, test in inner_folds(codes, units, n_folds=5, seed=seed):
        components = min(MAX_COMPONENTS, x.shape[1], len(train) - 1)
        probe = make_pipeline(
            StandardScaler(),
            PCA(components, random_state=seed),
            LogisticRegression(class_weight="balanced", max_iter=500),
        )
        predictions[test] = probe.fit(x[train], codes[train]).predict(x[test])
    tested = predictions >= 0
    if not tested.any():
        return None
    codes, predictions, y = codes[tested], predictions[tested], y[tested]
    units = np.unique(units[tested], return_inverse=True)[1]
    replicates = np.concatenate(
        [
            class_counts(codes, predictions, n_sources, w).balanced_accuracy
            for w in resampled_weights(units, n_boot, seed)
        ]
    )
    value = float(class_counts(codes, predictions, n_sources).balanced_accuracy[0])
    # A resample may miss a source of five rows; the mean is then over those that are there.
    score = metric_cell(
        value,
        replicates,
        len(codes),
        fallback=lambda: wilson_interval(value, count_groups(units)),
        undefined_share=0.0,
    )
    table = _table(codes, y)
    chance, floor = _label_only(table), 1.0 / n_sources
    tied = (chance - floor) / (1 - floor)
    together = tied >= TIED and _dependent(table)
    confounded = tied >= CONFOUNDED and score["low"] is not None and score["low"] > floor
    above = score["low"] is not None and score["low"] > chance
    level = "fine"
    if above or confounded or score["low"] is None:
        level = "alarm" if column != "group" and (confounded or (above and together)) else "warning"
    numbers = (
        f"balanced accuracy {value:.3f}{_bounds(score)} over {n_sources} values, {chance:.3f} from the class alone"
    )
    if confounded:
        sentence = (
            f"The class all but names the {column} and the features show it ({numbers}): on this data a classifier of "
            f"the {column} would score like one of the class, and the two cannot be told apart. Add pictures of every "
            f"class from every {column}."
        )
    elif above and together:
        sentence = (
            f"The {column} can be read from the features ({numbers}) and goes together with the class, so part of the "
            "score may be a short cut."
        )
    elif above:
        sentence = (
            f"The {column} can be read from the features ({numbers}), though it tells little about the class. "
            + (
                "Groups must stay whole in every split, as they do here."
                if column == "group"
                else "On pictures from elsewhere the score may be lower."
            )
        )
    else:
        sentence = f"The {column} cannot be read from the features beyond what the class tells ({numbers})."
    return _control(column, "classes", score, chance, level, sentence)


def _neighbours(
    x: np.ndarray, codes: np.ndarray, y: np.ndarray, seed: int, n_boot: int, column: str
) -> dict[str, Any] | None:
    """The control of kind "neighbours"; ``None`` when no row has another of its source in its class."""
    queries = np.flatnonzero(_with_company(codes, y))
    if not len(queries):
        return None
    if len(queries) > MAX_QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(queries, MAX_QUERIES, replace=False))
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    same, expected = np.zeros(len(queries)), np.zeros(len(queries))
    for label in np.unique(y[queries]):
        asked, members = np.flatnonzero(y[queries] == label), np.flatnonzero(y == label)
        rows = queries[asked]
        similarity = unit[rows] @ unit[members].T
        similarity[members == rows[:, None]] = -np.inf
        same[asked] = codes[members[similarity.argmax(axis=1)]] == codes[rows]
        size = np.bincount(codes[members], minlength=int(codes.max()) + 1)
        expected[asked] = (size[codes[rows]] - 1) / (len(members) - 1)
    score = bootstrap_mean(same, codes[queries], seed=seed, n_boot=n_boot, rate=True)
    chance = float(expected.mean())
    above = score["low"] is not None and score["low"] > chance
    strong = chance < 1 and (score["value"] - chance) / (1 - chance) >= NEIGHBOURS_ALARM
    level = "fine"
    if above or score["low"] is None:
        level = "alarm" if above and strong and column != "group" else "warning"
    share = f"{score['value']:.0%}{_bounds(score, '.0%')} of {len(queries)} pictures"
    numbers = f"{share}, {chance:.0%} expected by chance"
    if above:
        sentence = f"Inside a class the nearest picture is of the same {column} too often ({numbers}). " + (
            "Groups must stay whole in every split, as they do here."
            if column == "group"
            else f"The features show the {column}, so part of the score may come from it."
        )
    else:
        sentence = (
            f"Inside a class the nearest picture is of the same {column} no more often than by chance ({numbers})."
        )
    return _control(column, "neighbours", score, chance, level, sentence)


def _with_company(codes: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows ``(n,)`` bool that have another row of the same source and class."""
    _, inverse, counts = np.unique(np.stack([codes, y]), axis=1, return_inverse=True, return_counts=True)
    return counts[inverse.ravel()] > 1


def _table(codes: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Counts ``(sources, classes)``."""
    sources, labels = np.unique(codes, return_inverse=True)[1], np.unique(y, return_inverse=True)[1]
    n_labels = int(labels.max()) + 1
    return np.bincount(sources * n_labels + labels, minlength=(int(sources.max()) + 1) * n_labels).reshape(-1, n_labels)


def _label_only(table: np.ndarray) -> float:
    """Best balanced accuracy of naming the source from the label: each class answers its likeliest source."""
    return float((table / table.sum(axis=1, keepdims=True)).max(axis=0).sum() / len(table))


def _dependent(table: np.ndarray) -> bool:
    """Whether source and class depend on each other beyond accident (chi-squared, p < 0.01)."""
    return table.shape[1] > 1 and bool(chi2_contingency(table).pvalue < 0.01)


def _bounds(cell: dict[str, Any], form: str = ".2f") -> str:
    return "" if cell["low"] is None else f" [{cell['low']:{form}}, {cell['high']:{form}}]"


def _control(column: str, kind: str, score: dict[str, Any], chance: float, level: str, sentence: str) -> dict[str, Any]:
    return {"column": column, "kind": kind, "score": score, "chance": chance, "level": level, "sentence": sentence}
