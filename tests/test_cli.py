from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from offshelf import cli


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_is_its_docstring(verb: str, capsys) -> None:  # type: ignore[no-untyped-def]
    target, line, examples = cli.VERBS[verb]
    module, name = target.split(":")
    function = getattr(import_module(module), name)
    assert inspect.getdoc(function).splitlines()[0] == line  # type: ignore[union-attr]
    assert cli.run([verb, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert line in printed
    for example in examples:
        assert example in printed
        cli.app.parse_args(example.split()[1:], exit_on_error=False)  # it is one that the program takes
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "common":
            assert f"--{parameter.name.replace('_', '-')}" in printed


def test_the_command_exists_and_says_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offshelf.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0.1.0"


def test_wrong_usage_leaves_with_2_and_one_line(capsys) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["fitt"], ["fit"], ["methods", "--sarch", "x"], ["fit", "x", "--copies", "3"]):
        assert cli.run(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("offshelf: ")
        assert "Traceback" not in said


def test_no_command_prints_help(capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run([]) == 0
    assert "Commands" in capsys.readouterr().out
