"""How numbers read on the page. None and NaN are "not defined", never an empty place and never a zero."""

from __future__ import annotations

import math
from typing import Any

UNDEFINED = "not defined"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3) -> str:
    """A metric with a fixed number of decimals: ``0.912``, ``−0.040``, ``not defined``."""
    if value is None or math.isnan(value):
        return UNDEFINED
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign: ``+0.040``."""
    text = number(value, digits)
    return text if text == UNDEFINED or text.startswith(MINUS) or not float(text) else f"+{text}"


def interval(cell: dict[str, Any], digits: int = 3) -> str:
    """``[0.881, 0.940]``, or the words that there is none."""
    if cell["value"] is None:
        return ""
    if cell["low"] is None or cell["high"] is None:
        return "[no interval]"
    return f"[{number(cell['low'], digits)}, {number(cell['high'], digits)}]"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as per cent: ``48 %``."""
    return UNDEFINED if value is None else f"{number(100 * value, digits)}\N{NO-BREAK SPACE}%"


def count(value: float | None) -> str:
    """A count with thousands marked: ``12,034``."""
    return UNDEFINED if value is None else f"{int(value):,}"


def compact(value: float | None) -> str:
    """Three digits and a letter: ``473k``, ``11.7M``, ``1.28B``; small numbers as they are: ``0.5``, ``84``."""
    if value is None:
        return UNDEFINED
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if value >= 0.9995 * size:
            digits = f"{value / size:.3g}"
            return (f"{float(digits):.0f}" if "e" in digits else digits) + letter
    return f"{value:.3g}"


def several(value: int, singular: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f"{value:,} {singular if value == 1 else plural or singular + 's'}"


def duration(seconds: float | None) -> str:
    """Seconds as one reads them: ``0.42 s``, ``3 min 12 s``, ``1 h 05 min``."""
    if seconds is None:
        return UNDEFINED
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def setting(value: Any) -> str:
    """One value of a protocol or of chosen settings in plain words: ``C = 10, gamma = 0.001``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {setting(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value) or "none"
    return str(value)


FILTERS = {
    "number": number,
    "signed": signed,
    "interval": interval,
    "percent": percent,
    "count": count,
    "compact": compact,
    "several": several,
    "duration": duration,
    "setting": setting,
}
