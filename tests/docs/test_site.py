"""The site builds without a warning, asks nothing from elsewhere, and agrees with the lists in the code."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import offshelf
from claims.table import END, START
from offshelf.cli import VERBS
from offshelf.methods import METHODS

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
ROW = re.compile(
    r"^\| \[(?P<slug>[\w-]+)\]\((?P<link>[^)]+)\) \| (?P<paper>[^|]+) \| (?P<purpose>[^|]+) \|", re.MULTILINE
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_builds_without_a_warning_and_asks_nothing_from_elsewhere(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "sphinx-build"
    site = tmp_path / "site"
    command = [program, "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees", DOCS, site]
    built = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    pages = list(site.rglob("*.html"))
    sources = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    assert {page.relative_to(DOCS).with_suffix(".html") for page in sources} <= {
        page.relative_to(site) for page in pages
    }
    for page in pages:
        text = page.read_text(encoding="utf-8")
        asked = re.findall(
            r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]+|<link[^>]+rel=\"(?:stylesheet|preload|icon)\"[^>]+href=\"(?:https?:)?//[^\"]+",
            text,
        )
        assert not asked, f"{page.name}: {asked}"
    usage = re.sub(r"<[^>]+>", "", (site / "reference" / "cli.html").read_text(encoding="utf-8"))
    for verb in VERBS:
        assert f"offshelf {verb} " in usage, f"the command line reference has no usage line of {verb}"


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a page's table of methods."""
    return [
        {key: value.strip() for key, value in row.groupdict().items()}
        for row in ROW.finditer(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/methods/index.md"])
def test_the_table_of_methods_is_the_list(page: str) -> None:
    found = rows(PROJECT / page)
    assert [row["slug"] for row in found] == list(METHODS)
    for row in found:
        method = METHODS[row["slug"]]
        assert row["paper"] == f"{method.paper} ({method.year})"
        assert ((PROJECT / page).parent / row["link"]).resolve() == DOCS / "methods" / f"{row['slug']}.md"
        if page != "README.md":
            assert row["purpose"] == method.purpose


@pytest.mark.parametrize("slug", METHODS)
def test_a_methods_page_has_what_it_must(slug: str) -> None:
    method, text = METHODS[slug], (DOCS / "methods" / f"{slug}.md").read_text(encoding="utf-8")
    flat = " ".join(text.split())
    assert method.title.split(":")[0] in flat and f"https://arxiv.org/abs/{method.paper.split()[1]}" in text
    for heading in (
        "## When to use it",
        "## When not to",
        "## How it works",
        "## Use it",
        "## What is ours",
        "## Cite",
    ):
        assert f"\n{heading}\n" in text, heading
    assert method.command.replace("DATA", "photos/") in text
    assert text.count(START) == text.count(END) == 1 and text.index(START) < text.index(END)
    assert "```bibtex\n@" in text
    for name in method.authors.split(", "):
        assert name in text


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_is_the_first_line_of_its_docstring(verb: str) -> None:
    target, line, _ = VERBS[verb]
    module, _, name = target.partition(":")
    assert (inspect.getdoc(getattr(import_module(module), name)) or "").splitlines()[0] == line


def test_the_python_reference_has_every_public_name() -> None:
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", text, re.MULTILINE)
    assert sorted(named) == offshelf.__all__


def test_exit_codes_are_told_alike() -> None:
    """The table of exit codes and the sentence of the command line reference name the codes of the program's help."""
    from offshelf import cli

    said = set(re.findall(r"\b(\d+) (?=done|failed|wrong|stopped|the )", (cli.__doc__ or "").split("Exit codes:")[1]))
    table = set(
        re.findall(r"^\| (\d+) \|", (DOCS / "reference" / "run-folder.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    sentence = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8").split("Exit codes:")[1].split("\n\n")[0]
    assert said == table == set(re.findall(r"\b(\d+) ", sentence))
