"""Small hand-written SVG: scales, ticks and markers for figures whose points answer to the mouse with their name.

Such a figure weighs a fifth of what a drawing library writes, and equal input gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from offshelf.report.inline_svg import MARKERS, SERIES
from offshelf.report.numbers import MINUS

CHARACTER = 6.3  # width of one at 12 pixels, a little on the safe side
FAMILIES = ("CNN", "ViT", "hybrid", "other")
# A kind of pre-training has a colour and a second sign: full, a light dot, a light bar, a dark dot, hollow.
KINDS = ("supervised", "self-supervised", "image-text", "unknown", "random")


class Scale(NamedTuple):
    """From values to pixels, straight or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies, in pixels."""
        low, high, value = (map(math.log10, (self.low, self.high, value)) if self.log
                            else (self.low, self.high, value))  # fmt: skip
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def spanning(values: Sequence[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Scale:
    """A scale over all ``values`` with some room at its ends."""
    least, most = min(values), max(values)
    if log:
        factor = max((most / least) ** room, 1.15)
        return Scale(least / factor, most * factor, start, end, log)
    margin = max(room * (most - least), 1e-3 * max(abs(most), 1.0))
    return Scale(least - margin, most + margin, start, end)


def ticks(scale: Scale, most: int = 6) -> list[float]:
    """At most ``most`` round values on the scale: steps of 1, 2 or 5 times a power of ten."""
    if scale.log:
        first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
        for shares in ((1, 2, 5), (1, 3), (1,)):
            found = [share * 10.0**power for power in range(first, last + 1) for share in shares]
            found = [value for value in found if scale.low <= value <= scale.high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]
    power = math.floor(math.log10((scale.high - scale.low) / most))
    for step in (share * 10.0**larger for larger in range(power, power + 3) for share in (1, 2, 5)):
        first, last = math.ceil(scale.low / step), math.floor(scale.high / step)
        if last - first < most:
            return [place * step for place in range(first, last + 1)]
    return []


def px(value: float) -> str:
    """A length to a tenth of a pixel, without a trailing zero."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line of a class of the style sheet."""
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(kind, px(x1), px(y1), px(x2), px(y2))


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Markup:
    """A text, escaped."""
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(px(x), px(y), kind, anchor, words)


def shape(family: str, kind: str | None = None) -> Markup:
    """The marker of a backbone in a box of 12 x 12: its outline tells the family, colour and filling the kind."""
    path = MARKERS[FAMILIES.index(family) if family in FAMILIES else len(FAMILIES) - 1][1]
    if kind is None:
        return Markup(f'<path d="{path}" fill="var(--muted)"/>')  # noqa: S704 (ours)
    place = KINDS.index(kind) if kind in KINDS else KINDS.index("unknown")
    colour = "var(--muted)" if kind == "random" else SERIES[place]
    full = place < 3
    sign = {
        1: '<circle cx="6" cy="6.3" r="1.5" fill="var(--page)"/>',
        2: '<path d="M3.6 6.3h4.8" stroke="var(--page)" stroke-width="1.5"/>',
        3: f'<circle cx="6" cy="6.3" r="1.5" fill="{colour}"/>',
    }.get(place, "")
    fill = colour if full else "var(--page)"
    return Markup(f'<path d="{path}" fill="{fill}" stroke="{colour}" stroke-width="1.1"/>{sign}')  # noqa: S704 (ours)


def figure(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    """The parts as one ``<svg>`` that says ``label`` to whoever cannot see it."""
    return Markup(
        f'<svg class="figure drawn" role="img" aria-label="{escape(label)}" viewBox="0 0 {px(width)} {px(height)}" '
        f'width="{px(width)}" height="{px(height)}">{Markup("").join(parts)}</svg>'
    )  # noqa: S704 (our own drawing, text escaped)


def plain(value: float) -> str:
    """A tick of a straight axis: ``−0.5``, ``0``, ``1``."""
    words = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if words in ("-0", "0") else words.replace("-", MINUS)


class Box(NamedTuple):
    """A rectangle that something takes up."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def free_place(x: float, y: float, words: str, taken: Sequence[Box], inside: Box) -> tuple[Markup, Box] | None:
    """A label beside a point where it covers nothing that is ``taken``; None where there is no such place."""
    width, half = CHARACTER * 0.92 * len(words), 6.5
    for dx, dy, anchor in (
        (-10, -9, "end"), (10, 4, "start"), (-10, 4, "end"), (0, -12, "middle"), (10, -9, "start"),
        (0, 19, "middle"), (10, 14, "start"), (-10, 14, "end"), (0, -24, "middle"), (0, 31, "middle"),
    ):  # fmt: skip
        left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = Box(left, y + dy - half - 4, left + width, y + dy + half - 4)
        within = box.left >= inside.left and box.right <= inside.right and box.top >= inside.top
        if within and box.bottom <= inside.bottom and not any(box.meets(other) for other in taken):
            return text(x + dx, y + dy, words, "name-tag", anchor), box
    return None
