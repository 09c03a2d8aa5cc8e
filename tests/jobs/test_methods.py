from __future__ import annotations

import json

import pytest

from offshelf import cli
from offshelf.errors import UsageError
from offshelf.jobs.methods import methods, nearest
from offshelf.methods import METHODS


def test_all_are_listed_with_their_verdict(capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    assert [m["slug"] for m in listed] == list(METHODS)
    assert all(m["verdict"]["verdict"] in {"shown", "not shown at this scale", "contradicted"} for m in listed)


def test_one_is_shown_in_full(capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(["methods", "off-the-shelf"]) == 0
    page = capsys.readouterr().out
    for words in ("1403.6382", "2014", "Verdict:", "python -m claims off-the-shelf"):
        assert words in page


def test_search_ranks_by_the_summaries() -> None:
    assert nearest("finding the same object again with a linear svm")[0][0].slug == "off-the-shelf"
    assert nearest("autoencoder code for covid chest x-rays")[0][0].slug == "reproductive-features"


def test_a_wrong_name_is_answered_with_near_ones(capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(["methods", "of-the-shelf"]) == 2
    assert "did you mean 'off-the-shelf'?" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not both"):
        methods("off-the-shelf", search=["x"])
