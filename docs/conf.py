"""Sphinx settings. Build with `sphinx-build`, not `python -m sphinx`: the usage lines of the verbs show the caller."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from inspect import isfunction
from pathlib import Path
from typing import Any, get_type_hints

from docutils import nodes

HERE = Path(__file__).resolve().parent

project = "offshelf"
author = "The offshelf developers"
release = version = installed_version("offshelf")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cyclopts.sphinx_ext"]
exclude_patterns = ["_build"]
nitpicky = False  # numpy's and torch's names would need their inventories from the network

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

smartquotes_action = "qe"  # quotes and dots; two hyphens stay an option

# Python reference: public names load when first used; types stand in the parameter lists, not in the signatures.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False

# Looks: everything is served from the site itself, nothing from another host.
html_theme = "furo"
html_title = f"offshelf {release}"
html_static_path = [str(HERE / "_static")]
html_css_files = ["offshelf.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "tango"

# What scikit-learn calls learned state (`coef_`) is a link to reStructuredText, unless it is escaped or quoted.
LEARNED = re.compile(r"(?<![`\\\w])([A-Za-z]\w*)_(?![\w`_])")


def escape_learned_names(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line if line.lstrip().startswith("..") else LEARNED.sub(r"\1\\_", line) for line in lines]


def plain_types(app: Any, thing: Any, bound_method: bool) -> None:
    """What the command line hangs on a type (`Annotated`) is nothing to a reader of the Python reference."""
    if isfunction(thing) and thing.__module__.startswith("offshelf.jobs."):
        thing.__annotations__ = get_type_hints(thing)


def true_dashes(app: Any, doctree: Any, docname: str) -> None:
    """Sphinx writes ``--`` between a parameter and its meaning and counts on smart quotes to mend it."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Any) -> None:
    app.connect("doctree-resolved", true_dashes)
    app.connect("autodoc-before-process-signature", plain_types)
    app.connect("autodoc-process-docstring", escape_learned_names, priority=900)  # after napoleon
