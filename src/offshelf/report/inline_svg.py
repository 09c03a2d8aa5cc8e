"""One drawing style, and SVG that can stand inside a page: same bytes each time, no repeated ids, the page's colours.

matplotlib knows only fixed colours, so a figure is drawn in *stand-ins* that are swapped for CSS variables afterwards:
one drawing then serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins: colours nobody would choose, each swapped for what stands beside it.
INK, MUTED, LINE, ACCENT, PAGE = "#000000", "#0f0f01", "#0f0f02", "#0f0f03", "#0f0f04"
SWAPS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--rule)",
    ACCENT: "var(--accent)",
    PAGE: "var(--page)",
}
# Mid-tones that read on white and on near-black; a second sign (marker or dash) always goes with the colour.
SERIES = (
    "#3b82c4",
    "#d9772b",
    "#2f9e77",
    "#9b6bc9",
    "#d4515b",
    "#a0714f",
    "#2ba3b8",
    "#8f9a2c",
    "#d468a6",
    "#7d8791",
)
# Marker of matplotlib, and the same shape as a path in a 12 x 12 box for the legend, which is HTML.
MARKERS = (
    ("o", "M6 2a4 4 0 1 0 .01 0z"),
    ("s", "M2.5 2.5h7v7h-7z"),
    ("^", "M6 1.5l4.8 8.5h-9.6z"),
    ("D", "M6 1.2l4.8 4.8-4.8 4.8-4.8-4.8z"),
    ("v", "M6 10.5l4.8-8.5h-9.6z"),
    ("P", "M4.4 1.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2v-2.9h-2.9v-3.2h2.9z"),
    ("X", "M3.4 1.4l2.6 2.6 2.6-2.6 2 2-2.6 2.6 2.6 2.6-2 2-2.6-2.6-2.6 2.6-2-2 2.6-2.6-2.6-2.6z"),
)
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (10, 2), (3, 1, 1, 1))

SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, in the page's own font
    "svg.hashsalt": "offshelf",  # with Date None below: equal input, equal bytes
    "text.parse_math": False,  # a class may be called $5
    "path.simplify": True,
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.25,
    "ytick.labelsize": 8.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.75,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "text.color": INK,
    "lines.linewidth": 1.25,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this block: `SETTINGS` on matplotlib's own defaults, whatever the user's settings file says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Glyphs come from the reader's fonts; that the drawing font lacks one is of no concern.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` CSS pixels (96 to the inch)."""
    return Figure(figsize=(width / 96, height / 96), dpi=144)


def axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in CSS pixels from the figure's upper left corner."""
    whole_width, whole_height = (float(side) * 96 for side in figure.get_size_inches())
    box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    return figure.add_axes(box)


def inline(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element to stand inside a page.

    Parameters
    ----------
    figure
        Drawn under `style`, in the stand-in colours.
    prefix
        Put before every id, since ids are shared by the whole page.
    label
        What a reader who cannot see the figure should hear.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _plain(child.tag) in ("metadata", "style"):  # the style would apply to the whole page
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', buffer.getvalue().decode()))
    for element in root.iter():
        element.tag = _plain(element.tag)
        element.attrib = dict(_attribute(_plain(k), v, prefix, used) for k, v in element.attrib.items())
        element.attrib.pop("", None)
        if element.tag not in ("text", "tspan"):
            element.text = None
        element.tail = None
    width, height = (float(root.attrib[side].removesuffix("pt")) * 4 / 3 for side in ("width", "height"))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:.0f}",
        "height": f"{height:.0f}",
        "role": "img",
        "aria-label": label,
        "class": "figure",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 (our own drawing, text escaped)


def _plain(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _attribute(name: str, value: str, prefix: str, used: set[str]) -> tuple[str, str]:
    """One attribute made fit for the page; an empty name marks one to be dropped."""
    if name == "id":
        return (name, prefix + value) if value in used else ("", "")
    if name == "href":
        return name, value.replace("\n", "") if value.startswith("data:") else f"#{prefix}{value.removeprefix('#')}"
    if name == "clip-path":
        return name, value.replace("url(#", f"url(#{prefix}")
    if name == "transform" and value.startswith("rotate(-0 "):
        return "", ""
    if name in ("d", "x", "y"):
        return name, re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}", value).replace("\n", "").strip()
    if name == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        for stand_in, colour in SWAPS.items():
            value = value.replace(stand_in, colour)
    return name, value
