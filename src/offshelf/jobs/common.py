"""What every verb shares: the options after each verb, and how words on the command line become values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from cyclopts import Parameter

from offshelf.engine.console import Console
from offshelf.errors import UsageError


@dataclass(frozen=True)
class Common:
    """Options of every verb."""

    quiet: bool = False
    "Say nothing but warnings and the result."

    json: bool = False
    "Print the result as JSON on standard output."

    def console(self) -> Console:
        """Where this call speaks: nowhere but for warnings with --quiet or --json."""
        return Console(quiet=self.quiet or self.json)


CommonOptions = Annotated[Common, Parameter(name="*")]


class Result(Protocol):
    """What a verb returns: numbers for --json, a view for people, and how the process should end."""

    exit_code: int

    def summary(self) -> dict[str, Any]:
        """JSON-able content."""

    def show(self, console: Console) -> None:
        """Print it for a person."""


def parse_grid(_: Any, tokens: Any) -> tuple[int, int]:
    """``2x2`` -> (2, 2); anything else is refused with a sentence."""
    text = tokens[0].value
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.isdigit() and 1 <= int(part) <= 16 for part in parts):
        raise ValueError(f"--grid {text}: expected ROWSxCOLUMNS with 1 to 16 each, for example 2x2.")
    return int(parts[0]), int(parts[1])


Grid = Annotated[tuple[int, int], Parameter(converter=parse_grid, n_tokens=1, metavar="RxC")]


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a setting below its range."""
    if value < least:
        raise UsageError(f"--{name} {value}: expected {least} or more.")
