"""The page of an inspection: all of it there, nothing of a user's name run, and small enough."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.errors import RunError
from offshelf.report.build import build_report
from offshelf.report.filter_figures import NEGATIVE, POSITIVE, ZERO, picture, strip
from offshelf.report.inspection import ROWS, short_names
from tests.report.inspect_results import HOSTILE, make_inspection


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


def test_the_page_has_all_sections_and_runs_no_name(run_folder: Callable[..., Path]) -> None:
    page = build_report(run_folder(make_inspection())).read_text(encoding="utf-8")
    for section in ("networks", "layers", "basis", "distributions", "shifts", "left-out", "cost", "again"):
        assert f'<section id="{section}"' in page and f'href="#{section}"' in page
    assert HOSTILE not in page and "<b>" not in page.replace("<b>Filter</b>", "").replace(
        "<b>Sparsity</b>", ""
    ).replace("<b>Entropy (H / T)</b>", "").replace("<b>Orthogonality</b>", "")
    assert page.count('<details class="network"') == 4 and page.count('class="ridge"') == 4 * 9
    assert (
        len(re.findall(r'<circle class="(?:plain|flagged)" [^>]*r="4"/></g>', page)) == 4 * 5 + 2 * 4
    )  # judged, shifts
    assert page.count('<circle class="few"') == 2 * 4  # wide and narrow
    assert page.count(">random-like</span>") == sum(
        "random-like" in row["flags"] for row in make_inspection()["layers"]
    )
    assert page.count('<span class="level warning">few</span>') == sum(
        len(m["small"]) for m in make_inspection()["shifts"]
    )


def test_equal_results_give_equal_bytes(run_folder: Callable[..., Path]) -> None:
    folder = run_folder(make_inspection())
    assert build_report(folder).read_bytes() == build_report(folder).read_bytes()


@pytest.mark.parametrize(("networks", "layers", "kernel"), [(22, 60, 3), (2, 900, 3), (22, 20, 7), (60, 12, 3)])
def test_the_page_stays_small(run_folder: Callable[..., Path], networks: int, layers: int, kernel: int) -> None:
    results = make_inspection(networks, layers, kernel)
    page = build_report(run_folder(results)).read_text(encoding="utf-8")
    assert len(page.encode()) < 2_000_000
    flagged = sum(bool(row["flags"]) for row in results["layers"])
    shown = page.count(", depth ")
    assert shown == min(len(results["layers"]), ROWS)
    left = len(results["layers"]) - shown
    assert (f"{left:,} layers without a flag left out" in page) == (left > 0 and flagged <= ROWS)
    drawn = page.count('alt="Filters of')
    assert drawn > 100 and (drawn == shown or f"{shown - drawn:,} layers are not drawn" in page)


def test_one_network_is_opened_and_has_no_common_basis(run_folder: Callable[..., Path]) -> None:
    results = make_inspection(1)
    results["shifts"] = results["shifts"][1:]
    page = build_report(run_folder(results)).read_text(encoding="utf-8")
    assert '<details class="network" open>' in page and 'class="whole"' not in page


def test_without_filters_what_they_need_is_not_there(run_folder: Callable[..., Path]) -> None:
    results = make_inspection(1)
    results["networks"][0] |= {
        "layers": 0,
        "filters": 0,
        "no_filters": "vit: no convolution of 3 x 3.",
        "sparsity": None,
    }
    results |= {"layers": []}
    for key in ("basis", "range", "distributions", "shifts", "axes"):
        del results[key]
    page = build_report(run_folder(results)).read_text(encoding="utf-8")
    assert '<section id="layers"' not in page and '<section id="shifts"' not in page
    assert "vit: no convolution of 3 x 3." in page


@pytest.mark.parametrize("key", ["networks", "layers", "verdict", "data", "kernel"])
def test_a_missing_part_is_named(run_folder: Callable[..., Path], key: str) -> None:
    results = make_inspection()
    del results[key]
    with pytest.raises(RunError, match=f"nothing under '{key}'"):
        build_report(run_folder(results))


def test_damaged_drawings_are_left_away(run_folder: Callable[..., Path]) -> None:
    results = copy.deepcopy(make_inspection())
    results["layers"][0]["drawn"] = 'x" onload="alert(1)'
    results["layers"][1]["drawn"] = base64.b64encode(b"12345").decode()
    page = build_report(run_folder(json.loads(json.dumps(results)))).read_text(encoding="utf-8")
    assert page.count('alt="Filters of') == len(results["layers"]) - 2 and "onload" not in page


def test_filters_are_drawn_pixel_by_pixel() -> None:
    filters = np.zeros((3, 3, 3))
    filters[0, 0, 0], filters[1, 2, 1], filters[2, 1, 1] = 1, -1, 0.5
    found = pixels(picture(filters, columns=2))
    assert found.shape == (7, 7, 4)
    assert tuple(found[0, 0]) == (*POSITIVE, 255) and tuple(found[2, 5]) == (*NEGATIVE, 255)
    assert tuple(found[1, 1]) == (*ZERO, 255) and found[3].max() == 0 and found[:, 3].max() == 0  # clear between
    assert (found[4:, 4:, 3] == 0).all()  # no fourth filter
    half = found[5, 1]
    assert all(min(a, b) < c < max(a, b) for a, b, c in zip(ZERO, POSITIVE, half[:3]))
    drawn = base64.b64encode(bytes([255, 128, 1, 128, 128, 128, 128, 128, 128])).decode()
    row = pixels(strip(drawn, 3) or "")
    assert tuple(row[0, 0][:3]) == POSITIVE and tuple(row[0, 1][:3]) == ZERO and tuple(row[0, 2][:3]) == NEGATIVE


def test_short_names_are_used_where_they_are_enough() -> None:
    found = short_names(["a.x", "a.y", "b.x", "c"])
    assert found == {"a.x": "a.x", "a.y": "a.y", "b.x": "b", "c": "c"}
