from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from offshelf.errors import RunError
from offshelf.report.build import build_report
from offshelf.report.templating import TEMPLATES

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements, text and the balance of tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th", "li", "p"):
            self.text.append(" ")  # cells stand apart without one

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture
def page_of(run_folder: Callable[..., Path]) -> Callable[[dict[str, Any]], Page]:
    return lambda results: Page(build_report(run_folder(results)).read_text(encoding="utf-8"))


def test_sections_in_reading_order(results: dict[str, Any], page_of: Callable[..., Page]) -> None:
    page = page_of(results)
    assert not page.open
    words = page.words
    order = [
        "Chest films",
        "reaches a balanced accuracy",
        "Alarm: the blank-centre control",
        "Random weights",
        "Filter arms",
        "Tie group",
        "The best arm, class by class: deep + svm-rbf",
        "Confusion matrix",
        "ROC curves",
        "Calibration",
        "Other arms",
        "Paired comparisons",
        "Controls",
        "Blank centre",
        "Most confident mistakes",
        "Map of the features",
        "Unreadable files, left out",
        "Exact duplicates",
        "Backbones",
        "Cost",
        "Protocol",
        "Do it again",
        "offshelf fit films/train.csv",
        "Data fingerprint",
        "Versions",
    ]
    places = []
    for title in order:
        places.append(words.index(title, places[-1] if places else 0))
    assert places == sorted(places)


def test_ids_are_unique_and_every_reference_resolves(results: dict[str, Any], page_of: Callable[..., Page]) -> None:
    page = page_of(results)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set()
    for _, attributes in page.elements:
        wanted |= {
            attributes[key]
            for key in ("aria-labelledby", "for", "data-copies", "data-filters", "data-counts")
            if key in attributes
        }
        if attributes.get("href", "").startswith("#"):
            wanted.add(attributes["href"][1:])
        for value in attributes.values():
            wanted |= set(re.findall(r"url\(#([^)]+)\)", value))
    assert wanted and wanted <= set(ids)


def test_nothing_is_loaded_from_outside(results: dict[str, Any], run_folder: Callable[..., Path]) -> None:
    html = build_report(run_folder(results)).read_text(encoding="utf-8")
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "video", "audio", "source")
        for key in ("src", "href", "xlink:href", "srcset", "poster", "action", "data", "background"):
            assert attributes.get(key, "#").startswith(("#", "data:image/")), (tag, key)
        assert not any(key.startswith("on") for key in attributes)
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    assert html.count("http") == html.count("http-equiv") + html.count("see https://example.org/a?b=1&amp;c=&lt;2&gt;")
    policy = next(
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_that_look_like_markup_stay_names(
    results_of: Callable[..., dict[str, Any]], page_of: Callable[..., Page]
) -> None:
    classes = ["</script><script>alert(1)</script>", "{{ 7 * 7 }}", "</style><b>\u202egnp"]
    results = results_of(
        classes=classes, arms=[("<img src=x onerror=alert(2)>", 2.0), ("'\"><svg onload=alert(3)>", 1.0)]
    )
    results["title"] = "<title>&amp;</title>"
    results["data"]["notes"] = ["<iframe src='https://example.org'>"]
    page = page_of(results)
    assert page.count("script") == 1 and page.count("iframe") == 0 and page.count("b") == 0
    assert page.count("img") == 30
    for text in (
        *classes,
        "<img src=x onerror=alert(2)>",
        "'\"><svg onload=alert(3)>",
        "<title>&amp;</title>",
        "ward/<img src=x onerror=alert(1)>.png",
    ):
        assert " ".join(text.split()) in page.words
    assert "49" not in [text.strip() for text in page.text]


def test_the_alarm_and_the_random_weights_are_said_in_words(
    results: dict[str, Any], page_of: Callable[..., Page]
) -> None:
    page = page_of(results)
    assert any(attributes.get("class") == "raised alarm" for _, attributes in page.elements)
    assert "Alarm: the blank-centre control With the middle 60 % of every picture painted grey" in page.words
    assert "Random weights: 1 of 2 backbones was never trained" in page.words
    results["controls"]["blank_centre"]["level"] = "warning"
    page = page_of(results)
    assert "Warning: the blank-centre control" in page.words and "Alarm" not in page.words
    results["controls"]["blank_centre"]["level"] = "fine"
    page = page_of(results)
    assert "No control raised an alarm or a warning." in page.words


def test_every_number_has_interval_n_and_chance(results: dict[str, Any], page_of: Callable[..., Page]) -> None:
    value = max(arm["metrics"]["balanced_accuracy"]["value"] for arm in results["arms"])
    shown = f"{value:.3f} [{value - 0.04:.3f}, {value + 0.04:.3f}]"
    page = page_of(results)
    assert f"Balanced accuracy {shown} n = 360, chance 0.333" in page.words
    assert "Balanced accuracy chance 0.333 Accuracy commonest class 0.412 Macro F1" in page.words
    assert (
        f"{value - 0.006:.3f} [{value - 0.046:.3f}, {value + 0.034:.3f}] for choosing among 3 arms; n = 360"
        in page.words
    )
    assert f"Whole pictures {shown} n = 360" in page.words


def test_undefined_numbers_are_said_and_carry_no_sort_value(
    results: dict[str, Any], page_of: Callable[..., Page]
) -> None:
    empty = {"value": None, "low": None, "high": None, "n": 0, "interval": "none"}
    for arm in results["arms"]:
        arm["metrics"] = dict.fromkeys(arm["metrics"], empty)
        arm["per_class"] = {
            name: {key: empty if key != "n" else 0 for key in row} for name, row in arm["per_class"].items()
        }
        arm["roc"] = dict.fromkeys(arm["roc"])
        arm["calibration"] = [one | {"confidence": None, "accuracy": empty, "n": 0} for one in arm["calibration"]]
        arm["confusion"] = [[0] * 3] * 3
    results["comparisons"][0] |= {"difference": None, "low": None, "high": None}
    results["controls"]["blank_centre"] |= {"full": empty, "retained": None}
    page = page_of(results)
    assert page.words.count("not defined") >= 3 * 8 + 3 * 3 * 6 + 4
    assert "nan" not in page.words.lower().split()
    table = page.elements[[attributes.get("id") for _, attributes in page.elements].index("arms-table") :]
    body = table[[tag for tag, _ in table].index("tbody") :]
    first = [attributes for tag, attributes in body if tag == "td"][:12]
    assert ["data-v" in attributes for attributes in first] == [True] + [False] * 8 + [
        True,
        True,
        True,
    ]  # n, metrics, tie, time, n


def test_one_arm_like_finetune(results_of: Callable[..., dict[str, Any]], page_of: Callable[..., Page]) -> None:
    results = results_of(arms=[("fine-tuned", 1.6)], mistakes=0)
    results |= {
        "verb": "finetune",
        "comparisons": [],
        "controls": {"blank_centre": None, "source": None},
        "map": None,
        "history": [],
    }
    results["arms"][0]["chosen"] = {}
    results["backbones"][0]["route"] = "trained"
    words = page_of(results).words
    assert "There is one arm, so there is nothing to compare it with." in words
    assert "No control was run on this result." in words
    assert "No mistake was recorded" in words and "This run has no map." in words
    assert "Filter arms" not in words and "Tie group" not in words
    assert "Random weights at the start: trained on this data alone" in words and "never trained" not in words


def test_the_least_that_a_run_can_hold(results: dict[str, Any], page_of: Callable[..., Page]) -> None:
    least = {key: results[key] for key in ("classes", "best", "baselines")}
    least["data"] = {"source": "films", "n": 10, "n_used": 10}
    least["arms"] = [
        {"name": arm["name"], "metrics": {"balanced_accuracy": arm["metrics"]["balanced_accuracy"]}}
        for arm in results["arms"]
    ]
    words = page_of(least).words
    for sentence in (
        "were not compared in pairs",
        "No backbone was recorded",
        "No cost was recorded",
        "No protocol was recorded",
    ):
        assert sentence in words


def test_the_same_bytes_each_time(results: dict[str, Any], run_folder: Callable[..., Path]) -> None:
    folder = run_folder(results)
    first = build_report(folder).read_bytes()
    script = "import sys; from offshelf.report.build import build_report; build_report(sys.argv[1])"
    environment = os.environ | {"PYTHONHASHSEED": "1234", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment, timeout=120)
    assert (folder / "report.html").read_bytes() == first


def test_a_report_made_before_the_seal_is_the_report_made_after_it(
    results: dict[str, Any], run_folder: Callable[..., Path]
) -> None:
    folder = run_folder(results)
    sealed = build_report(folder).read_bytes()
    run = json.loads((folder / "run.json").read_text())
    for key in ("seconds", "files", "data_fingerprint"):
        del run[key]
    (folder / "run.json").write_text(json.dumps(run | {"status": "running", "process": 1}))
    assert build_report(folder).read_bytes() == sealed


def test_a_large_run_stays_below_two_megabytes(
    results_of: Callable[..., dict[str, Any]], run_folder: Callable[..., Path]
) -> None:
    arms = [(f"backbone{i}.in1k + head-{j}", 1 + 0.2 * i + 0.1 * j) for i in range(6) for j in range(4)]
    results = results_of(classes=[f"class {i}" for i in range(40)], arms=arms, mistakes=200, points=5000, n=2000)
    results["data"]["bad_files"] = [
        {"path": f"a/very/long/folder/name/for/every/file/{i:06d}.png", "error": "not an image"} for i in range(5000)
    ]
    report = build_report(run_folder(results))
    assert 500_000 < report.stat().st_size < 2_000_000
    page = Page(report.read_text(encoding="utf-8"))
    assert page.count("img") == 200
    assert "The first 200 of 5,000; results.json lists all." in page.words
    assert re.search(r"\d+ more arms left out here to keep this file small", page.words)


def test_pictures_give_way_when_they_would_not_fit(
    results_of: Callable[..., dict[str, Any]], run_folder: Callable[..., Path]
) -> None:
    results = results_of(mistakes=250)
    for mistake in results["mistakes"]:
        mistake["thumbnail"] = "data:image/jpeg;base64," + "A" * 20_000
    report = build_report(run_folder(results))
    assert report.stat().st_size < 2_000_000
    page = Page(report.read_text(encoding="utf-8"))
    assert page.count("img") == 950_000 // 20_023
    assert page.words.count("no picture") == 200 - 950_000 // 20_023
    assert "200 of 250 are shown." in page.words


def test_a_run_without_results_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results\.json: this file is missing"):
        build_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_colours_can_be_read_in_light_and_dark() -> None:
    """Contrast of text on its ground is at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, two: str) -> float:
        high, low = sorted((luminance(one), luminance(two)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        pairs = [
            ("ink", "page"),
            ("muted", "page"),
            ("accent", "page"),
            ("ink", "raised"),
            ("warning", "warning-page"),
            ("ink", "warning-page"),
        ]
        for text, ground in pairs:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        assert contrast("#ffffff", scheme["alarm-page"]) >= 4.5
        assert contrast(scheme["page"], scheme["alarm"]) >= 4.5
