from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from offshelf.report import figures
from offshelf.report.inline_svg import ACCENT, axes, canvas, inline, style

CELL = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50, "interval": "bootstrap"}
PANEL = {"key": "m", "label": "Balanced accuracy", "line": 0.25, "line_label": "chance 0.250"}


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter("text")]


def test_ids_are_prefixed_used_and_distinct_between_figures() -> None:
    curve = [{"class": "a", "fpr": [0, 0.2, 1], "tpr": [0, 0.9, 1]}]
    first, second = (parse(figures.roc_curves(curve, "arm", prefix)) for prefix in ("a-", "b-"))
    ids = [{element.attrib["id"] for element in root.iter() if "id" in element.attrib} for root in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for root, own in ((first, ids[0]), (second, ids[1])):
        wanted = set()
        for element in root.iter():
            for value in element.attrib.values():
                wanted |= set(re.findall(r"url\(#([^)]+)\)", value))
            if element.attrib.get("href", "").startswith("#"):
                wanted.add(element.attrib["href"][1:])
        assert wanted == own


def test_colours_are_the_pages_and_nothing_outside_is_named() -> None:
    svg = figures.interval_plot([{"name": "arm", "tied": True, "cells": {"m": CELL}}], [PANEL], 900, "p-")
    assert "var(--accent)" in svg and "currentColor" in svg and "var(--rule)" in svg
    assert ACCENT not in svg and "#000000" not in svg
    assert "http" not in svg and "xmlns" not in svg and "<style" not in svg and "font-family" not in svg
    root = parse(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "Balanced accuracy of the arms with intervals: arm 0.800, from 0.700 to 0.900."


def test_names_stay_text_whatever_they_hold() -> None:
    hostile = ["<b>&amp;", 'id="x" url(#y)', "$\\frac{1}{2}$"]
    svg = figures.confusion_matrix(np.eye(3, dtype=int).tolist(), hostile, "arm", "p-")
    assert "<b>" not in svg
    for name in hostile:
        assert figures.shorten(name, 14) in texts(svg)


def test_the_same_figure_has_the_same_bytes_also_under_other_settings() -> None:
    bins = [{"low": 0.5, "high": 1.0, "confidence": 0.8, "accuracy": CELL, "n": 50}]
    first = figures.reliability_diagram(bins, "arm", "p-")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        second = figures.reliability_diagram(bins, "arm", "p-")
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second


def test_confusion_matrix_holds_its_counts_up_to_twenty_classes() -> None:
    counts = [[8, 2, 0], [1, 9, 0], [0, 1, 1204]]
    svg = figures.confusion_matrix(counts, ["a", "b", "c"], "arm", "p-")
    assert [text for text in texts(svg) if re.fullmatch(r"[\d,]+", text)] == [
        "8",
        "2",
        "0",
        "1",
        "9",
        "0",
        "0",
        "1",
        "1,204",
    ]
    assert (
        parse(svg).attrib["aria-label"]
        == "Confusion matrix of arm: 1,221 of 1,225 on the diagonal; rows are the true class."
    )
    big = figures.confusion_matrix(np.eye(30, dtype=int).tolist(), [str(i) for i in range(30)], "arm", "p-")
    assert not any(text.isdigit() for text in texts(big))


def test_a_class_without_images_and_an_undefined_arm_can_be_drawn() -> None:
    assert "0" in texts(figures.confusion_matrix([[3, 1], [0, 0]], ["a", "b"], "arm", "p-"))
    undefined = {"value": None, "low": None, "high": None, "n": 0, "interval": "none"}
    svg = figures.interval_plot([{"name": "arm", "tied": False, "cells": {"m": undefined}}], [PANEL], 320, "p-")
    assert "not defined" in texts(svg)
    assert "arm not defined" in parse(svg).attrib["aria-label"]
    empty = [{"low": 0.0, "high": 1.0, "confidence": None, "accuracy": undefined, "n": 0}]
    assert "in 0 bins, 0 pictures" in parse(figures.reliability_diagram(empty, "arm", "p-")).attrib["aria-label"]


def test_an_interval_lies_where_its_numbers_say() -> None:
    """The chance line and the ends of the bar, read back from the drawing, are spaced as the values are."""
    svg = figures.interval_plot([{"name": "arm", "tied": True, "cells": {"m": CELL}}], [PANEL], 900, "p-")
    paths = [element for element in parse(svg).iter("path") if "style" in element.attrib]
    bar = next(
        p for p in paths if "stroke: var(--accent)" in p.attrib["style"] and "stroke-width: 2" in p.attrib["style"]
    )
    chance = next(p for p in paths if "stroke: currentColor" in p.attrib["style"] and "dasharray" in p.attrib["style"])
    low, high = (float(x) for x in re.findall(r"[ML] ([\d.]+)", bar.attrib["d"]))
    at = float(re.findall(r"M ([\d.]+)", chance.attrib["d"])[0])
    assert (low - at) / (high - at) == pytest.approx((0.7 - 0.25) / (0.9 - 0.25), abs=2e-3)


def test_many_points_become_one_picture() -> None:
    rng = np.random.default_rng(0)
    few, many = (
        figures.feature_map(*rng.normal(size=(2, n)).tolist(), rng.integers(-1, 3, n).tolist(), [0.5, 0.2], "p-")
        for n in (300, 5000)
    )
    assert "<image" not in few and "<image" in many
    assert len(many) < 350_000
    assert "component 1 (50.0 % of the variance)" in texts(many)


def test_shorten_keeps_both_ends() -> None:
    assert figures.shorten("short", 10) == "short"
    cut = figures.shorten("deep/resnet50.a1_in1k + svm-rbf", 16)
    assert len(cut) == 16 and cut.startswith("deep/resne") and cut.endswith("m-rbf")


def test_a_figure_measures_in_css_pixels() -> None:
    with style():
        figure = canvas(300, 200)
        axes(figure, 10, 10, 100, 100)
        root = parse(inline(figure, "p-", "empty"))
    assert (root.attrib["width"], root.attrib["height"], root.attrib["viewBox"]) == ("300", "200", "0 0 225 150")
