"""The leaderboard's figures: rank intervals, score against cost, and groups that differ in their pre-training alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from offshelf.report.figures import shorten
from offshelf.report.numbers import compact, signed
from offshelf.report.plotting import (
    CHARACTER,
    FAMILIES,
    KINDS,
    Box,
    Scale,
    figure,
    free_place,
    line,
    plain,
    px,
    shape,
    spanning,
    text,
    ticks,
)

COSTS = {
    "parameters": ("Parameters", "fewer is better", "parameters"),
    "images_per_second": ("Images per second", "more is better", "images per second"),
    "memory_mb": ("Peak memory", "less is better", "MB"),
}


def rank_bar(rank: int | None, low: int | None, high: int | None, number: int) -> Markup:
    """A rank among ``number`` with its interval, small enough for a table; beside it stand the numbers."""
    if rank is None:
        return Markup("")
    scale = Scale(1, max(number, 2), 4, 80)
    bar = line(scale.at(low), 6, scale.at(high), 6, "thick") if low and high else Markup("")
    dot = Markup('<circle class="dot" cx="{}" cy="6" r="3.5"/>').format(px(scale.at(rank)))
    return Markup('<svg class="bar" viewBox="0 0 84 12" width="84" height="12" aria-hidden="true">{}{}{}</svg>').format(
        line(4, 6, 80, 6, "track"), bar, dot
    )


def rank_plot(rows: Sequence[dict[str, Any]], width: int) -> Markup:
    """Ranks as dots on their intervals, the best on top; members of every second tie group on a shaded ground.

    Parameters
    ----------
    rows
        The ranked ones: ``label``, ``rank`` and the four bounds ``rank_low``, ``rank_high`` (over examples),
        ``rank_low_sets``, ``rank_high_sets`` (over examples and data sets), any of which may be None, and ``group``,
        the number of the tie group from 1.
    width
        In CSS pixels; below 500 the names stand above their intervals.
    """
    narrow = width < 500
    step, top = (36, 26) if narrow else (26, 26)
    names = [shorten(row["label"], 46 if narrow else 38) for row in rows]
    left = 12 if narrow else min(290, 24 + CHARACTER * 1.05 * max(map(len, names)))
    right = 30 if narrow else 84
    bottom = top + step * len(rows)
    scale = Scale(1, max(len(rows), 2), left + 8, width - right)
    parts: list[Markup] = []
    for start, end in _runs([row["group"] for row in rows]):
        above, tall = top + start * step, (end - start) * step
        group = rows[start]["group"]
        if group and group % 2:
            parts.append(
                Markup('<rect class="ground" x="0" y="{}" width="{}" height="{}"/>').format(px(above), width, px(tall))
            )
        if group and end - start > 1:
            x = width - 8 if narrow else width - right + 26
            parts.append(line(x, above + 6, x, above + tall - 6, "bracket"))
            if not narrow:
                parts.append(text(x + 7, above + tall / 2 + 4, "tied", "muted"))
    for value in _ranks(len(rows), 6 if narrow else 20):
        parts.append(line(scale.at(value), top, scale.at(value), bottom, "grid"))
        parts.append(text(scale.at(value), top - 9, plain(value), "muted", "middle"))
    for place, (row, name) in enumerate(zip(rows, names)):
        y = top + (place + 0.5) * step + (7 if narrow else 0)
        kind = " first" if row["group"] == 1 else ""
        parts.append(text(left, y - 10, name) if narrow else text(left - 12, y + 4, name, "", "end"))
        if row["rank_low_sets"] and row["rank_high_sets"]:
            parts.append(line(scale.at(row["rank_low_sets"]), y, scale.at(row["rank_high_sets"]), y, "thin" + kind))
        if row["rank_low"] and row["rank_high"]:
            parts.append(line(scale.at(row["rank_low"]), y, scale.at(row["rank_high"]), y, "thick" + kind))
        parts.append(_dot(scale.at(row["rank"]), y, kind))
    spoken = "; ".join(_spoken_rank(row) for row in rows)
    return figure(width, bottom + 6, f"Ranks with 95 % intervals: {spoken}.", parts)


def _dot(x: float, y: float, kind: str) -> Markup:
    return Markup('<circle class="dot{}" cx="{}" cy="{}" r="4.5"/>').format(kind, px(x), px(y))


def _ranks(number: int, most: int) -> list[int]:
    """The first rank and round ones after it, about ``most``; all where there are no more."""
    if number <= most:
        return list(range(1, number + 1))
    step = next(step for step in (2, 5, 10, 20, 50, 100, 1000) if number / step <= most)
    return [1, *[value for value in range(step, number + 1, step) if value - 1 >= 0.75 * step]]


def _spoken_rank(row: dict[str, Any]) -> str:
    bounds = f", from {row['rank_low']} to {row['rank_high']}" if row["rank_low"] and row["rank_high"] else ""
    return f"{row['label']} {row['rank']}{bounds}"


def _runs(values: Sequence[Any]) -> list[tuple[int, int]]:
    """Start and end of each stretch of equal neighbours."""
    starts = [place for place in range(len(values)) if place == 0 or values[place] != values[place - 1]]
    return list(zip(starts, [*starts[1:], len(values)]))


def cost_plot(rows: Sequence[dict[str, Any]], key: str, front: Sequence[str], size: tuple[int, int]) -> Markup | None:
    """Overall score against one cost, the Pareto front as a step line, its members named; None without a point.

    Parameters
    ----------
    rows
        Backbones with ``name``, ``label``, ``family``, ``pretraining``, ``pretraining_kind``; ``score`` and the
        cost, None where unknown.
    key
        One of `COSTS`.
    front
        Names of those for which no other is at least as good in both.
    """
    known = [row for row in rows if row["score"] is not None and row[key] is not None and row[key] > 0]
    if not known:
        return None
    title, better, unit = COSTS[key]
    width, height = size
    across = spanning([row[key] for row in known], 44, width - 10, log=True)
    up = spanning([row["score"] for row in known], height - 44, 16, room=0.1)
    parts: list[Markup] = []
    for value in ticks(up, 5):
        parts.append(line(across.start, up.at(value), across.end, up.at(value), "zero" if value == 0 else "grid"))
        parts.append(text(across.start - 8, up.at(value) + 4, plain(value), "muted", "end"))
    for value in ticks(across, 5):
        parts.append(line(across.at(value), up.start, across.at(value), up.start + 4, "axis"))
        parts.append(text(across.at(value), up.start + 18, compact(value), "muted", "middle"))
    parts.append(line(across.start, up.start, across.end, up.start, "axis"))
    below = f"{title}, {better}{' (MB)' if key == 'memory_mb' else ''}"
    parts.append(text((across.start + across.end) / 2, height - 6, below, "muted", "middle"))
    on_front = sorted((row for row in known if row["name"] in front), key=lambda row: (row[key], row["score"]))
    corners = [(across.at(row[key]), up.at(row["score"])) for row in on_front]
    if corners:
        parts.append(Markup('<path class="front" d="{}"/>').format(_steps(corners, more=key == "images_per_second")))
    taken = [_around(across.at(row[key]), up.at(row["score"])) for row in known]
    for (x1, y1), (x2, y2) in zip(corners, corners[1:]):
        turn = (x1, y2) if key == "images_per_second" else (x2, y1)
        taken += [_along((x1, y1), turn), _along(turn, (x2, y2))]
    for row in sorted(known, key=lambda row: row["name"] in front):  # the front is drawn last, above all others
        x, y = across.at(row[key]), up.at(row["score"])
        heard = f"{row['label']}: {signed(row['score'], 2)}; {compact(row[key])} {unit}; {row['pretraining']}"
        parts.append(
            Markup('<g transform="translate({} {})"{}><title>{}</title>{}</g>').format(
                px(x - 6), px(y - 6), "" if row["name"] in front else Markup(' class="behind"'), heard,
                shape(row["family"], row["pretraining_kind"]),
            )
        )  # fmt: skip
    inside = Box(across.start - 30, 4, width - 2, up.start - 2)
    for row, (x, y) in sorted(zip(on_front, corners), key=lambda one: -one[0]["score"]):  # the best are named first
        found = free_place(x, y, shorten(row["label"], 26), taken, inside)
        if found:
            parts.append(found[0])
            taken.append(found[1])
    names = ", ".join(row["label"] for row in on_front)
    spoken = f"Score against {title.lower()} of {len(known)} backbones; best for it: {names}."
    return figure(width, height, spoken, parts)


def _around(x: float, y: float) -> Box:
    return Box(x - 6, y - 6, x + 6, y + 6)


def _along(start: tuple[float, float], end: tuple[float, float]) -> Box:
    (left, right), (top, bottom) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return Box(left, top - 1, right, bottom + 1)


def _steps(corners: Sequence[tuple[float, float]], *, more: bool) -> str:
    """The best score to be had for at most (``more``: at least) a cost, as a path from left to right."""
    path = [f"M{px(corners[0][0])} {px(corners[0][1])}"]
    for x, y in corners[1:]:
        path.append(f"V{px(y)}H{px(x)}" if more else f"H{px(x)}V{px(y)}")
    return "".join(path)


def legend(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What the markers of the backbones at hand mean: outlines (families) and fillings (kinds of pre-training)."""
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    kinds = [kind for kind in KINDS if any(row["pretraining_kind"] == kind for row in rows)]
    return {
        "families": [{"name": family, "shape": shape(family)} for family in families],
        "kinds": [{"name": kind, "shape": shape("CNN", kind)} for kind in kinds],
    }


def group_plot(members: Sequence[dict[str, Any]], bounds: tuple[float, float], width: int = 320) -> Markup:
    """Scores of one network with different pre-training as dots on their intervals, each below its name."""
    scale = spanning(bounds, 8, width - 8, room=0.03)
    top, step = 8, 40
    bottom = top + step * len(members)
    parts = [line(scale.at(value), top, scale.at(value), bottom, "grid") for value in ticks(scale, 5)]
    parts += [text(scale.at(value), bottom + 15, plain(value), "muted", "middle") for value in ticks(scale, 5)]
    for place, one in enumerate(members):
        y = top + place * step + 28
        parts.append(text(0, y - 12, shorten(one["title"], 44)))
        if one["score"] is None:
            parts.append(text(0, y + 4, "no score", "muted"))
            continue
        if one["low"] is not None and one["high"] is not None:
            parts.append(line(scale.at(one["low"]), y, scale.at(one["high"]), y, "thick first"))
        parts.append(_dot(scale.at(one["score"]), y, " first"))
    spoken = "; ".join(f"{one['title']} {signed(one['score'], 2)}" for one in members)
    return figure(width, bottom + 22, f"Scores: {spoken}.", parts)
