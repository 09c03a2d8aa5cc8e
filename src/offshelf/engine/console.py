"""What a verb says while it works: lines and progress on standard error, results on standard output.

Progress is drawn only on a terminal. `Console` is handed down by the jobs; the floors below report through the plain
callbacks that it gives (`advance`), so that nothing below the jobs knows of terminals.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

Advance = Callable[[int], None]


def silent(_: int) -> None:
    """An `Advance` for those who do not watch."""


class Console:
    """Says lines and shows progress on standard error; ``quiet`` leaves only warnings and errors."""

    def __init__(self, quiet: bool = False, stream: Any = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """A line that is said even when quiet."""
        print(f"offshelf: {text}", file=self.stream, flush=True)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """A bar with rate and remaining time on a terminal, nothing elsewhere; yields `Advance`."""
        if self.quiet or not self.stream.isatty():
            yield silent
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=RichConsole(file=self.stream), transient=True) as bar:
            task = bar.add_task(what, total=total, rate="")

            def advance(n: int) -> None:
                bar.advance(task, n)
                speed = bar.tasks[task].finished_speed or bar.tasks[task].speed
                if speed:
                    bar.update(task, rate=f"{speed:,.0f} {unit}/s")

            yield advance

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A result table on standard output: boxed on a terminal, aligned plain text elsewhere."""
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        terminal = sys.stdout.isatty()
        grid = Table(
            title=Text(title) if title else None, box=box.SIMPLE_HEAVY if terminal else box.SIMPLE, title_justify="left"
        )
        for number, name in enumerate(header):
            grid.add_column(Text(name), justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            grid.add_row(*[Text(cell) for cell in row])
        console = RichConsole(file=sys.stdout, soft_wrap=not terminal, width=None if terminal else 160)
        console.print(grid)
