"""Where the pages' templates lie, and how they are read."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from offshelf.report.numbers import FILTERS

TEMPLATES = Path(__file__).with_name("templates")


def environment() -> Environment:
    """Where every page's template is found, with the filters of `offshelf.report.numbers`."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    return made


def own(name: str) -> Markup:
    """A file of the templates folder, to stand in a page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 (a file of this package)
