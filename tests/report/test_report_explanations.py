"""The page of an explain run: what it shows of plain and of strange results, in a browser, in both schemes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offshelf.errors import RunError
from offshelf.evaluate.where_it_looked import told
from offshelf.interpret.explanations import EXPLANATIONS
from offshelf.interpret.map_pictures import enlarged, two_coloured, views
from offshelf.interpret.saliency import data_uri
from offshelf.report.build import build_report
from offshelf.report.explanations import fitting
from tests.report.browsing import Opened
from tests.report.conftest import HOSTILE, around, cell, make_run, thumbnail
from tests.report.test_leaderboard_in_browser import CONTRAST

METHODS = ("contributions", "grad-cam", "input-x-gradient")


def signed_map(seed: int) -> str:
    heat = np.random.default_rng(seed).normal(size=(32, 32)).astype(np.float32)
    return data_uri(enlarged(two_coloured(heat)), 176)


def one_picture(number: int, path: str) -> dict[str, Any]:
    numbers = {"sum": 3.25, "positive": 5.0, "negative": -1.75, "half": 0.07, "offset": None}
    maps = [
        {"method": name, "images": {view: signed_map(number) for view in views(name)}, **numbers} for name in METHODS
    ]
    maps[0]["offset"] = -1.25
    return {
        "path": path,
        "truth": ["cat", "dog", None][number % 3],
        "predicted": "cat",
        "confidence": 0.875,
        "explained": "cat",
        "probability": 0.875,
        "logit": 2.0,
        "picture": thumbnail(number),
        "maps": maps,
    }


def stages(values: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"layers": layers, "of": 62, "correlation": cell(value, 24)} for layers, value in zip((1, 4, 16, 62), values)
    ]


def told_of(name: str) -> dict[str, Any]:
    return {key: value for key, value in EXPLANATIONS[name]._asdict().items() if key != "maps"}


def made(**changes: Any) -> dict[str, Any]:
    scored = {
        "deletion": cell(0.21, 24),
        "insertion": cell(0.62, 24),
        "deletion_gain": around(0.11, 24, 0.05),
        "insertion_gain": around(0.08, 24, 0.1),
        "grid": cell(0.71, 100),
        "shuffled": stages([0.4, 0.2, None, 0.01]),
    }
    return {
        "title": "photos: finetune-photos explained",
        "verb": "explain",
        "classes": ["cat", "dog"],
        "label": None,
        "verdict": ["Five pictures explained.", "grad-cam: the map lies on the right one of four pictures."],
        "explained": {"run": "runs/finetune-photos", "verb": "finetune", "arm": "resnet18 + finetuned", "source": "p/"},
        "methods": [{"name": name, "views": views(name), **told_of(name)} for name in METHODS],
        "refused": {"attention-rollout": "resnet18: it has no layers of attention; take <grad-cam>."},
        "pictures": [one_picture(number, path) for number, path in enumerate(HOSTILE)],
        "sums": {"largest_gap": 2.4e-7, "n": 5, "holds": True},
        "scores": {
            "n": 24,
            "steps": 8,
            "squares": 8,
            "random": {"deletion": cell(0.32, 24), "insertion": cell(0.54, 24)},
            "methods": {name: scored for name in METHODS},
            "grid": {
                "why_not": None,
                "classes": 5,
                "pictures": 60,
                "size": 2,
                "chance": 0.25,
                "mosaics": 25,
                "shrunk": True,
                "smooth": 5,
            },
        },
        "data": {
            "source": "my <photos>",
            "fingerprint": "abc",
            "n": 41,
            "n_used": 40,
            "notes": ["a note"],
            "bad_files": [{"path": "a<i>.png", "error": "cut off"}],
        },
        "cost": {"total_seconds": 61.5, "peak_memory_mb": 900.0, "threads": 2, "cpu": "a processor"},
    } | changes


@pytest.fixture
def page(run_folder: Callable[..., Path]) -> Callable[..., str]:
    def write(**changes: Any) -> str:
        return build_report(run_folder(made(**changes), make_run())).read_text(encoding="utf-8")

    return write


def test_each_picture_with_its_maps_and_numbers(page: Callable[..., str]) -> None:
    text = page()
    assert text.count('<article class="explained">') == 5
    assert len(re.findall(r"<img src=\"data:image/jpeg", text)) == 5 * (1 + 4)
    assert text.count("they sum to 3.25; with the constant −1.25 that is 2.00, and the logit is 2.00") == 5
    assert text.count("wrong answer") == 2 and text.count("labelled") >= 4  # one of three has no label
    assert "half of what speaks for it lies on 7\N{NO-BREAK SPACE}% of the picture" in text
    assert "5 of 40 pictures" in text and "my &lt;photos&gt;" in text and "take &lt;grad-cam&gt;" in text
    assert "<img src=x" not in text and len(text) < 2_000_000


def test_scores_are_shown_or_it_is_said_why_not(page: Callable[..., str]) -> None:
    text = re.sub(r"\s+", " ", page())
    assert "0.710" in text and "squares at random" in text and "made as small as one" in text
    assert "last layer" in text and "last 4 layers" in text and "all 62 layers" in text and "not defined" in text
    grid = made()["scores"]["grid"] | {"why_not": "3 of the classes have a picture, and 4 are needed"}
    text = re.sub(r"\s+", " ", page(scores=made()["scores"] | {"grid": grid}))
    assert "was not played: 3 of the classes have a picture, and 4 are needed." in text and "0.710" not in text
    assert "Not measured in this run" in page(scores=None)


def test_pictures_that_are_none_or_too_many_are_left_out() -> None:
    good = one_picture(0, "a.png")
    assert fitting([good, good | {"picture": "javascript:alert(1)"}]) == ([good], 1)
    bad = json.loads(json.dumps(good))
    bad["maps"][1]["images"]["grad-cam"] = "https://elsewhere.example/a.png"
    large = good | {"picture": "data:image/png;base64," + "A" * 1_500_001}
    assert fitting([bad, large, good]) == ([good], 2)
    some = [good | {"picture": "data:image/png;base64," + "A" * 600_000}] * 4
    shown, left_out = fitting(some)
    assert (len(shown), left_out) == (2, 2)


def test_results_of_something_else_are_refused(run_folder: Callable[..., Path]) -> None:
    found = made()
    del found["pictures"]
    with pytest.raises(RunError, match="nothing under 'pictures'; expected the results of an explain run"):
        build_report(run_folder(found, make_run()))


def test_the_report_of_a_fit_says_where_it_looked_or_why_not(
    results: dict[str, Any], run_folder: Callable[..., Path]
) -> None:
    looked = {
        "path": "a.png",
        "truth": "normal",
        "predicted": "normal",
        "confidence": 0.9,
        "images": [thumbnail(0), signed_map(0)],
    }
    text = build_report(run_folder(results | {"saliency": [looked], "looked": told("contributions")})).read_text()
    assert "by contributions: what each pixel adds" in text and 'href="#saliency"' in text
    text = build_report(run_folder(results | {"saliency": [looked]}, name="old")).read_text()  # of an earlier version
    assert "by grad-cam. Yellow is the most" in text
    none = results | {"saliency": [], "looked": told(None, "nearest neighbours have no gradient")}
    text = build_report(run_folder(none, name="none")).read_text()
    assert "There is no map: nearest neighbours have no gradient." in text
    assert 'id="saliency"' not in build_report(run_folder(results, name="without")).read_text()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_its_window_and_can_be_read(
    run_folder: Callable[..., Path], opened: Callable[..., Opened], width: int, scheme: str
) -> None:
    one = opened(build_report(run_folder(made(), make_run())), width=width, scheme=scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    sides = "[...document.querySelectorAll('.maps img')].map(one => one.naturalWidth && one.clientWidth)"
    found = one.page.evaluate(sides)
    assert len(found) == 25 and all(140 < side <= 176 for side in found)
    found = one.page.evaluate(CONTRAST)
    assert found["seen"] > 100 and found["least"] >= 4.5, found["where"]


def test_the_contents_lead_to_every_section(run_folder: Callable[..., Path], opened: Callable[..., Opened]) -> None:
    one = opened(build_report(run_folder(made(), make_run())))
    targets = one.page.evaluate("[...document.querySelectorAll('nav a')].map(one => one.getAttribute('href'))")
    assert targets == ["#methods", "#pictures", "#scores", "#data", "#again"]
    assert all(one.page.locator(target).count() == 1 for target in targets)
