"""What a drop of accuracy between two test sets is made of: more pictures of a harder kind, or the same kinds harder.

The kinds are subgroups of equal numbers of valid labels. The split is Kitagawa's (1955), exact whatever the numbers
are; that the argument of arXiv 2412.18409 is put this way is ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from offshelf.errors import DataError
from offshelf.evaluate.intervals import metric_cell
from offshelf.evaluate.label_sets import NAMES
from offshelf.evaluate.metrics import divide
from offshelf.evaluate.multilabel_imagenet import MultiLabelReport

ROUNDING = 1e-12


def kitagawa(
    shares_p: np.ndarray, rates_p: np.ndarray, shares_q: np.ndarray, rates_q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Terms of the difference of two weighted means, subgroup by subgroup.

    Parameters
    ----------
    shares_p, shares_q
        ``(G, B)`` shares of the subgroups, columns adding up to 1.
    rates_p, rates_q
        ``(G, B)`` their rates; NaN where a subgroup is empty in one of the sets, which then takes the other's rate, so
        that its part is composition.

    Returns
    -------
    composition, within
        ``(G, B)``: (w_P - w_Q)(T_P + T_Q) / 2 and (w_P + w_Q) / 2 (T_P - T_Q). Their sum over G is the sum of w_P T_P
        less that of w_Q T_Q.
    """
    known_p, known_q = np.isfinite(rates_p), np.isfinite(rates_q)
    rates_p, rates_q = np.where(known_p, rates_p, rates_q), np.where(known_q, rates_q, rates_p)
    rates_p, rates_q = np.nan_to_num(rates_p), np.nan_to_num(rates_q)  # empty in both: its shares are 0
    return (shares_p - shares_q) * (rates_p + rates_q) / 2, (shares_p + shares_q) / 2 * (rates_p - rates_q)


class Resampled(NamedTuple):
    """A number and what it is in each resample ``(B,)``."""

    value: float
    drawn: np.ndarray


def drop_of(p: MultiLabelReport, q: MultiLabelReport, metric: str) -> Resampled:
    """A metric on P less the same on Q; ``asma`` is taken over the subgroups that are large enough in both."""
    if metric == "asma":
        both = np.intersect1d(p.ks[p.averaged], q.ks[q.averaged])
        mine, other = np.isin(p.ks, both), np.isin(q.ks, both)
        point = p.point.unweighted(mine) - q.point.unweighted(other)
        return Resampled(float(point[0]), p.drawn.unweighted(mine) - _unpaired(q.drawn.unweighted(other)))
    point = p.point.overall(metric) - q.point.overall(metric)
    return Resampled(float(point[0]), p.drawn.overall(metric) - _unpaired(q.drawn.overall(metric)))


def drops(p: MultiLabelReport, q: MultiLabelReport) -> dict[str, dict[str, Any]]:
    """Every metric's value on P less that on Q, as cells; see `drop_of`."""
    return {name: metric_cell(*drop_of(p, q, name), p.n + q.n) for name in (*NAMES, "asma")}


def drop_parts(p: MultiLabelReport, q: MultiLabelReport, metric: str) -> dict[str, Resampled]:
    """``composition`` and ``within`` of a metric's drop, and ``reweighted``, the metric on Q at the shares of P."""
    ks = np.union1d(p.ks, q.ks)
    point = [*_shares_and_rates(p, ks, metric, drawn=False), *_shares_and_rates(q, ks, metric, drawn=False)]
    drawn = [*_shares_and_rates(p, ks, metric, drawn=True)]
    drawn += [_unpaired(table) for table in _shares_and_rates(q, ks, metric, drawn=True)]
    values = [part.sum(axis=0) for part in kitagawa(*point)] + [_reweighted(point[0], point[3])]
    resampled = [part.sum(axis=0) for part in kitagawa(*drawn)] + [_reweighted(drawn[0], drawn[3])]
    return {
        name: Resampled(float(value[0]), replicates)
        for name, value, replicates in zip(("composition", "within", "reweighted"), values, resampled)
    }


def drop_decomposition(p: MultiLabelReport, q: MultiLabelReport, metric: str = "top_1") -> dict[str, Any]:
    """Split the drop of a metric from test set P to test set Q into composition and what happens within subgroups.

    Parameters
    ----------
    p, q
        Reports of the same classifier on the two sets; resampled independently of each other.
    metric
        One of top_1, real, variable_top_k, strict.

    Returns
    -------
    result
        Cells ``drop``, ``composition``, ``within`` (adding up to the drop within 1e-12), ``composition_share`` (of the
        drop; without an interval where the drop cannot be told from 0) and ``reweighted`` (the metric on Q, its
        pictures weighed as w_P / w_Q, over the ``covered`` share of P whose subgroups Q has); ``groups``, a dict a
        subgroup with ``k``, ``share_p``, ``share_q``, ``rate_p``, ``rate_q``, ``composition``, ``within``.

    Raises
    ------
    DataError
        An unknown metric, or reports without it.
    """
    if metric not in NAMES:
        raise DataError(f"metric {metric!r}: expected one of {', '.join(NAMES)}")
    if not all(report.point.weights[metric].any() for report in (p, q)):
        raise DataError(f"{metric} is not defined on both sets; give the one label of each picture to both reports")
    parts, drop = drop_parts(p, q, metric), drop_of(p, q, metric)
    n = p.n + q.n
    cells = {name: metric_cell(*parts[name], n) for name in ("composition", "within")}
    reweighted = metric_cell(*parts["reweighted"], int(q.point.weights[metric].sum()))
    total = metric_cell(*drop, n)
    told = total["low"] is not None and not total["low"] <= 0 <= total["high"]
    share = parts["composition"].value / drop.value if abs(drop.value) > ROUNDING else np.nan
    shares = divide(parts["composition"].drawn, drop.drawn) if told else None
    groups = _groups(p, q, metric)
    return {
        "metric": metric,
        "drop": total,
        **cells,
        "composition_share": metric_cell(share, shares, n),
        "reweighted": reweighted,
        "covered": sum(group["share_p"] for group in groups if group["rate_q"] is not None),
        "groups": groups,
    }


def _groups(p: MultiLabelReport, q: MultiLabelReport, metric: str) -> list[dict[str, Any]]:
    """A row a subgroup; a rate is None where the set has no such picture."""
    ks = np.union1d(p.ks, q.ks)
    point = [*_shares_and_rates(p, ks, metric, drawn=False), *_shares_and_rates(q, ks, metric, drawn=False)]
    composition, within = kitagawa(*point)
    columns = dict(zip(("share_p", "rate_p", "share_q", "rate_q"), point))
    columns |= {"composition": composition, "within": within}
    return [
        {"k": int(k)}
        | {name: float(table[g, 0]) if np.isfinite(table[g, 0]) else None for name, table in columns.items()}
        for g, k in enumerate(ks)
    ]


def _shares_and_rates(
    report: MultiLabelReport, ks: np.ndarray, metric: str, *, drawn: bool
) -> tuple[np.ndarray, np.ndarray]:
    """``(G, B)`` shares and rates of the subgroups ``ks``: share 0 and rate NaN where the report has none."""
    sums = report.drawn if drawn else report.point
    place = np.searchsorted(ks, report.ks)
    weights = np.zeros((len(ks), sums.size.shape[1]))
    rates = np.full(weights.shape, np.nan)
    weights[place], rates[place] = sums.weights[metric], sums.rate(metric)
    return divide(weights, weights.sum(axis=0)), rates


def _reweighted(shares_p: np.ndarray, rates_q: np.ndarray) -> np.ndarray:
    """``(B,)`` rates of Q at the shares of P, over the subgroups that Q has."""
    known = np.isfinite(rates_q)
    return divide(np.where(known, shares_p * np.nan_to_num(rates_q), 0.0).sum(axis=0), (shares_p * known).sum(axis=0))


def _unpaired(drawn: np.ndarray) -> np.ndarray:
    """Resamples in another order: equal seeds draw equal row numbers, and those of two sets have nothing in common."""
    return drawn[..., np.random.default_rng(29).permutation(drawn.shape[-1])]
