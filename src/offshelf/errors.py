"""One family of errors. Every message names the file or value, what was expected, and what to do next.

OffshelfError
├── UsageError          a setting or argument is wrong (exit code 2)
├── DataError           a source cannot be used as it stands
│   └── ImageError      one picture cannot be read; callers count it, list it and go on
├── BackboneError       a network or its weights cannot be had
├── RunError            a run folder is missing something, damaged, or was changed
├── NotApplicable       a job does not fit its input; it is listed as such, and the others go on
└── MissingExtra        an optional requirement is not installed

Imports nothing of ours; anyone may import it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OffshelfError(Exception):
    """Root of the family; the command line prints its text as one sentence and leaves with ``exit_code``."""

    exit_code = 1


class UsageError(OffshelfError):
    """A setting or an argument is wrong."""

    exit_code = 2


class DataError(OffshelfError):
    """A source of samples cannot be used as it stands."""


class ImageError(DataError):
    """One picture cannot be read. ``path`` names it and ``reason`` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class BackboneError(OffshelfError):
    """A network is unknown, or its weights cannot be had or trusted."""


class RunError(OffshelfError):
    """A run folder is missing something, damaged, or was changed since it was written."""


class NotApplicable(OffshelfError):  # noqa: N818 (it says what a job is, not what went wrong)
    """A job does not fit its input, such as a classifier of two classes on data with one."""


class MissingExtra(OffshelfError):  # noqa: N818 (what is missing is its name)
    """An optional requirement is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional requirement: pip install 'offshelf[{extra}]'")


def near(name: str, options: Iterable[str], n: int = 3) -> str:
    """A clause naming the nearest of ``options``, or an empty string: ``"; did you mean 'svm-rbf'?"``."""
    close = difflib.get_close_matches(name, list(options), n=n, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
