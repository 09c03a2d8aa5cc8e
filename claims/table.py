"""Results as tables: the block in a method's page, and the verdicts that travel in the package."""

from __future__ import annotations

from typing import Any

from claims.common import PROJECT, read
from offshelf.engine.files import write_atomic, write_json
from offshelf.methods import METHODS

START, END = "<!-- claim: start (python -m claims --tables) -->", "<!-- claim: end -->"


EXTRA = {
    "embedded-networks": "docs/reference/embedded-networks.md",
    "winners": "docs/reference/winners.md",
}
"""What is measured beside the methods' claims, and its page."""


def markdown(record: dict[str, Any]) -> str:
    """The claim's table in MyST Markdown: every row has its interval, and the verdict its rule."""
    lines = [
        f"**Verdict: {record['verdict']}.** {record['sentence']}",
        "",
        f"Rule, fixed before running: {record['rule']}",
        "",
        *_rows(record["table"]),
        "",
        f"{record['setting']} Version {record['version']} of the claim, measured on {record['date']} with "
        f"`{record['command']}` in {record['seconds']:.0f} s on {record['machine']['cores']} cores "
        f"({record['machine']['cpu']}), commit {record['commit']}.",
    ]
    for note in record.get("notes", []):
        lines += ["", note]
    return "\n".join(lines)


def _rows(table: dict[str, Any]) -> list[str]:
    header = "| " + " | ".join(table["header"]) + " |"
    rule = "|" + "---|" * len(table["header"])
    return [header, rule, *["| " + " | ".join(row) + " |" for row in table["rows"]]]


def refresh() -> list[str]:
    """Write every kept result into its page and into the package; return the slugs that changed a file."""
    changed, verdicts = [], {}
    pages = {slug: f"docs/methods/{slug}.md" for slug in METHODS} | EXTRA
    for slug, place in pages.items():
        record = read(slug)
        if record is None:
            continue
        if slug in METHODS:
            verdicts[slug] = {key: record[key] for key in ("verdict", "sentence", "date", "command")}
        page = PROJECT / place
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(START)
        after = rest.split(END)[1]
        new = f"{before}{START}\n{markdown(record)}\n{END}{after}"
        if new != text:
            write_atomic(page, new)
            changed.append(slug)
    write_json(PROJECT / "src" / "offshelf" / "verdicts.json", verdicts)
    return changed
