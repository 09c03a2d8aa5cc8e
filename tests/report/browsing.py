"""A report opened in a browser, with everything it said and asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Opened:
    """A page with everything it said and asked for."""

    def __init__(
        self, browser: Any, report: Path, width: int = 1200, scheme: str = "light", table: str = "arms-table"
    ) -> None:
        self.table = table
        self.context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)  # a busy machine draws slowly
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())

    def column(self, name: str) -> list[str]:
        """Texts of a column of the table, rows in view, top to bottom."""
        return self.page.evaluate(
            """([id, name]) => {
              const table = document.getElementById(id);
              const heads = [...table.tHead.rows[0].cells];
              const index = heads.findIndex(head => head.querySelector("button")?.textContent === name);
              return [...table.tBodies[0].rows].filter(row => !row.hidden)
                .map(row => row.cells[index].querySelector(".value, .undefined, .name").textContent);
            }""",
            [self.table, name],
        )

    def sorted_by(self, name: str) -> str | None:
        return self.head(name).get_attribute("aria-sort")

    def head(self, name: str) -> Any:
        return self.button(name).locator("..")

    def button(self, name: str) -> Any:
        return self.page.locator(f"#{self.table}").get_by_role("button", name=name, exact=True)
