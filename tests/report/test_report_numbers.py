from __future__ import annotations

import math

import pytest

from offshelf.report.numbers import compact, count, duration, interval, number, percent, setting, several, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9125, "0.912"),
        (1.0, "1.000"),
        (-0.04, "−0.040"),
        (-0.0001, "0.000"),
        (None, "not defined"),
        (math.nan, "not defined"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "+0.040"), (-0.04, "−0.040"), (0.0, "0.000"), (0.0001, "0.000"), (None, "not defined")]
)
def test_signed(value: float | None, text: str) -> None:
    assert signed(value) == text


def test_interval_says_when_there_is_none() -> None:
    assert interval({"value": 0.9, "low": 0.85, "high": 0.94}) == "[0.850, 0.940]"
    assert interval({"value": 0.9, "low": None, "high": None}) == "[no interval]"
    assert interval({"value": None, "low": None, "high": None}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.424, "0.42 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (192.0, "3 min 12 s"),
        (3900.0, "1 h 05 min"),
        (None, "not defined"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counts_and_shares() -> None:
    assert count(12034) == "12,034"
    assert percent(0.486, 1) == "48.6\N{NO-BREAK SPACE}%"
    assert several(1, "image") == "1 image"
    assert several(1200, "class", "classes") == "1,200 classes"


@pytest.mark.parametrize(
    ("value", "text"),
    [(473_140, "473k"), (11_689_512, "11.7M"), (999_960, "1M"), (1.4e9, "1.4B"), (84, "84"), (0.25, "0.25"),
     (0, "0"), (None, "not defined")],
)  # fmt: skip
def test_compact(value: float | None, text: str) -> None:
    assert compact(value) == text


def test_setting_in_plain_words() -> None:
    assert (
        setting({"C": 10.0, "gamma": 0.00125, "balanced": True, "groups": None})
        == "C = 10, gamma = 0.00125, balanced = yes, groups = none"
    )
    assert setting([2, 2]) == "2, 2"
    assert setting([]) == "none"
