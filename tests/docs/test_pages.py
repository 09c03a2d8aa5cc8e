"""Every page does what it says: Python fences run, marked commands run, and all other commands are at least parsed.

A page is one namespace in one folder, worked through from top to bottom. A ``console`` fence with ``<!-- run -->``
above it is run for real; ``<!-- run: exit code 3 -->`` names the exit code that it must end with.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from offshelf.cli import app, run

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
CONSOLE = re.compile(
    r"(?P<mark><!-- run(?:: exit code (?P<code>\d+))? -->\n)?^```console\n(?P<lines>.*?)^```", re.MULTILINE | re.DOTALL
)


def commands(fence: str) -> list[list[str]]:
    """The words of each line after ``$``; trailing remarks and leading ``NAME=value`` are left aside."""
    lines = re.findall(r"^\$ (.*)$", fence.replace("\\\n", " "), re.MULTILINE)
    found = [shlex.split(line, comments=True) for line in lines]
    for words in found:
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
    return found


def run_console(example: Example, expected: int) -> None:
    """Run each command of a fence in this process."""
    for words in commands(example.parsed):
        assert words[0] == "offshelf", f"only offshelf is run here, not {words[0]!r}"
        code = run(words[1:])
        assert code == expected, f"{shlex.join(words)}: exit code {code}, expected {expected}"


def marked_consoles(document: Document) -> Iterable[Region]:
    """The console fences that are to be run."""
    for match in CONSOLE.finditer(document.text):
        if match["mark"]:
            yield Region(
                match.start(), match.end(), match["lines"], partial(run_console, expected=int(match["code"] or 0))
            )


PARSERS = Sybil([PythonCodeBlockParser(), SkipParser(), marked_consoles], patterns=["*.md"], path=str(PROJECT))


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def examples(page: Path) -> list[Example]:
    return list(PARSERS.parse(page).examples())


SLOW = {"README.md"}  # all 1,797 digits


def with_marks(page: Path) -> Any:
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if name_of(page) in SLOW else [])


@pytest.mark.parametrize("page", [with_marks(page) for page in PAGES if examples(page)])
@pytest.mark.filterwarnings("ignore:code_dim=")  # a dozen pictures are fewer than a code wants
def test_the_page_runs_from_top_to_bottom(page: Path, workplace: Path) -> None:
    for example in examples(page):
        example.evaluate()


def test_pages_with_snippets_are_found() -> None:
    """Counts what the test above covers, so that a changed fence or mark does not pass by running nothing."""
    with_examples = {name_of(page) for page in PAGES if examples(page)}
    assert {
        "README.md",
        "docs/quickstart.md",
        "docs/tutorials/first-honest-xray-classifier.md",
        "docs/methods/off-the-shelf.md",
        "docs/methods/reproductive-features.md",
    } <= with_examples
    fences = sum(page.read_text(encoding="utf-8").count("```python\n") for page in PAGES)
    marks = sum(page.read_text(encoding="utf-8").count("<!-- run") for page in PAGES)
    hidden = sum(page.read_text(encoding="utf-8").count("invisible-code-block: python") for page in PAGES)
    assert sum(len(examples(page)) for page in PAGES) == fences + marks + hidden
    assert fences > 10 and marks > 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_the_program_takes(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fence in CONSOLE.finditer(page.read_text(encoding="utf-8")):
        for words in commands(fence["lines"]):
            if words[0] == "offshelf":
                app.parse_args(words[1:], exit_on_error=False, print_error=False)
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_a_wrong_option_would_be_found() -> None:
    from cyclopts import CycloptsError

    with pytest.raises(CycloptsError):
        app.parse_args(["fit", "photos/", "--no-such-option"], exit_on_error=False, print_error=False)


def test_no_fence_is_passed_over() -> None:
    """Fences that nobody would run: sessions with prompts, and Python under other names."""
    for page in PAGES:
        assert not re.search(
            r"^```(pycon|py|python3|ipython|bash|sh|shell)\b", page.read_text(encoding="utf-8"), re.MULTILINE
        ), page
