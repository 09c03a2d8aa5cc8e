"""From ``name=value`` words to a method's keyword settings, checked against its constructor."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

from offshelf.errors import UsageError, near

Words = Sequence[str] | dict[str, Any]


def settings_of(method: type, words: Words) -> dict[str, Any]:
    """The settings that ``words`` ask for, with the types of the method's keyword parameters.

    Parameters
    ----------
    method : an Objective class.
    words : ``["mask_ratio=0.75", "crop=0.2,1"]``, or a dictionary of values.

    Raises
    ------
    UsageError
        For an unknown name, with near ones and all that there are, or a value of the wrong type.
    """
    hints = get_type_hints(method.__init__)  # type: ignore[misc]
    known = {
        name: parameter
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    pairs = list(words.items()) if isinstance(words, dict) else [_pair(word) for word in words]
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            listed = ", ".join(f"{key}={known[key].default}" for key in known) or "none"
            raise UsageError(
                f"{name}: {method.__name__} has no such setting{near(name, known) or '.'} It has: {listed}."
            )
        found[name] = _typed(name, value, hints[name])
    return found


def all_settings(method: type, asked: dict[str, Any]) -> dict[str, Any]:
    """Every setting of a method as it will be used: its defaults with what was asked for."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: asked.get(p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _pair(word: str) -> tuple[str, str]:
    name, sign, value = word.partition("=")
    if not sign or not name:
        raise UsageError(f"{word!r}: expected a setting as name=value, such as mask_ratio=0.75.")
    return name, value


def _typed(name: str, value: Any, hint: Any) -> Any:
    options = [one for one in get_args(hint) if one is not type(None)] if type(None) in get_args(hint) else [hint]
    if value in (None, "none", "None") and len(options) < len(get_args(hint)):
        return None
    kind = options[0]
    parsed = _parsed(value, kind) if isinstance(value, str) else value
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        parts = parsed if isinstance(parsed, (list, tuple)) else str(parsed).strip("()[] ").split(",")
        if len(parts) != len(inner):
            raise UsageError(f"{name}={value}: expected {len(inner)} values separated by commas.")
        return tuple(_typed(name, part, one) for part, one in zip(parts, inner))
    literal = get_args(kind) if str(get_origin(kind)) == "typing.Literal" else None
    if literal:
        if parsed not in literal:
            raise UsageError(f"{name}={value}: expected one of {', '.join(map(str, literal))}.")
        return parsed
    if kind is float and isinstance(parsed, int) and not isinstance(parsed, bool):
        return float(parsed)
    if not isinstance(parsed, kind) or (kind is int and isinstance(parsed, bool)):
        raise UsageError(f"{name}={value}: expected {_WORDS.get(kind, kind.__name__)}.")
    return parsed


def _parsed(text: str, kind: Any) -> Any:
    if kind is str or get_origin(kind) is tuple:
        return text
    try:
        return json.loads(text.strip().lower())
    except json.JSONDecodeError:
        return text


_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
