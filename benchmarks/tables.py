"""Results as tables: on the terminal, and in the README, which holds nothing that is not in a result file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.keeping import PROJECT, QUIET_LOAD, QUIET_SHARE, RESULTS
from offshelf.engine.console import Console
from offshelf.engine.files import read_json, write_atomic

README = PROJECT / "benchmarks" / "README.md"
BLOCK = re.compile(r"<!-- result: (?P<name>[\w-]+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """A title, a header and rows, all text."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """A title in bold, and the table."""
        lines = ["| " + " | ".join(cells) + " |" for cells in [self.header, *self.rows]]
        return "\n".join([f"**{self.title}**", "", lines[0], "|" + "---|" * len(self.header), *lines[1:]])


def number(value: float | None) -> str:
    """Three significant digits, without an exponent; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def spread(ratio: dict[str, float]) -> str:
    """The median of a ratio over rounds, with the lowest and the highest."""
    return f"{number(ratio['median'])} ({number(ratio['low'])} - {number(ratio['high'])})"


def tables_of(kept: dict[str, Any]) -> list[Table]:
    """The tables of any result."""
    from benchmarks import architectures, features, memory, probes, training

    sides = {
        "features": features,
        "memory": memory,
        "probes": probes,
        "training": training,
        "architectures": architectures,
    }
    return sides[kept["benchmark"]].tables(kept)


def show(kept: dict[str, Any]) -> None:
    """Print a result."""
    console = Console()
    for table in tables_of(kept):
        console.table(table.title, table.header, table.rows)
    print(circumstances(kept))


def circumstances(kept: dict[str, Any]) -> str:
    """With which command, on what, and how quiet it was."""
    machine, versions = kept["machine"], kept["versions"]
    others = kept["others_share"]
    quiet = f"load before it began: {kept['load_before']}"
    if others is not None:
        quiet += f", {100 * others:.0f} % of the processors went to others while it ran"
    if kept["load_before"] > QUIET_LOAD or (others or 0.0) > QUIET_SHARE:
        quiet += " (the machine was busy: trust memory and agreement, not the seconds)"
    return (
        f"`{kept['command']}`, {kept['date']}, {machine['cores']} cores ({machine['cpu']}), torch {versions['torch']}, "
        f"scikit-learn {versions['scikit-learn']}, commit {kept['commit']}; {quiet}."
    )


def block(name: str, results: Path = RESULTS) -> str:
    """The text of one result in the README."""
    path = results / f"{name}.json"
    if not path.is_file():
        return "No result is kept yet.\n"
    kept = read_json(path)
    parts = [table.markdown() for table in tables_of(kept)]
    return "\n\n".join([*parts, circumstances(kept)]) + "\n"


def filled(text: str, results: Path = RESULTS) -> str:
    """A README whose result blocks are those of the result files."""
    return BLOCK.sub(
        lambda found: f"<!-- result: {found['name']} -->\n{block(found['name'], results)}<!-- end -->", text
    )


def refresh(readme: Path = README, results: Path = RESULTS) -> bool:
    """Write the result files into the README; whether that changed it."""
    text = readme.read_text(encoding="utf-8")
    new = filled(text, results)
    if new != text:
        write_atomic(readme, new)
    return new != text
