"""The section on locality: figures and rows from a study, and the whole page in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offshelf import inspect
from offshelf.backbones.convit import convit_mini
from offshelf.interpret.locality import locality_study, positional_maps
from offshelf.report.locality import NETWORKS, head_chart, locality_sections, query_maps
from tests.report.browsing import Opened


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    torch.manual_seed(0)
    return locality_study(convit_mini(gate=0.4), torch.randn(2, 3, 32, 32)) | {"unreadable": 1}


def test_what_is_drawn_of_positions_is_the_map_of_a_middle_patch() -> None:
    vectors = [[2.0, -1.0, -0.7], [0.3, 0.2, 0.05]]
    found = query_maps(vectors, 8)
    whole = positional_maps(torch.tensor(vectors), 8)[:, 4 * 8 + 4].reshape(2, 8, 8).numpy()
    expected = whole / whole.max(axis=(1, 2), keepdims=True)
    assert found.shape == (2, 7, 7)
    np.testing.assert_allclose(found, expected[:, 1:8, 1:8], rtol=1e-5)
    assert query_maps(vectors, 14).shape == (2, 9, 9) and query_maps(vectors, 2).shape == (2, 1, 1)


def test_a_section_has_the_means_and_ranges_of_each_layer(study: dict[str, Any]) -> None:
    (section,) = locality_sections({"net": study})
    assert [figure["title"] for figure in section["figures"]] == ["Non-locality", "Gates"]
    first, last = section["rows"][0], section["rows"][-1]
    assert first["gate"] == {key: pytest.approx(0.598688, abs=1e-6) for key in ("mean", "low", "high")}
    known = [head["non_locality"] for head in study["layers"][0]["heads"]]
    assert first["non_locality"] == {"mean": pytest.approx(np.mean(known)), "low": min(known), "high": max(known)}
    assert first["centre_distance"] == {
        "mean": pytest.approx((4 + 4 * 2**0.5) / 9),
        "low": 0.0,
        "high": pytest.approx(2**0.5),
    }
    assert first["maps"].startswith("data:image/png") and last["maps"] is None and last["gate"] is None
    assert (section["pictures"], section["unreadable"]) == (2, 1)


def test_without_pictures_there_are_gates_alone() -> None:
    (section,) = locality_sections({"net": locality_study(convit_mini())})
    assert [figure["title"] for figure in section["figures"]] == ["Gates"]
    assert all(row["non_locality"] is None for row in section["rows"])


def test_many_networks_are_cut() -> None:
    study = locality_study(convit_mini())
    assert len(locality_sections({str(number): study for number in range(NETWORKS + 3)})) == NETWORKS


def test_heads_stand_at_their_heights(study: dict[str, Any]) -> None:
    drawn = str(head_chart(study["layers"], "gate", "Gates", 1.0))
    heights = [float(found) for found in re.findall(r'class="plain" cx="[\d.]+" cy="([\d.]+)"', drawn)]
    assert len(heights) == 27  # three gated layers of nine heads; the last has no gates
    assert heights == pytest.approx([160 - 152 * 0.598688] * 27, abs=0.05)
    drawn = str(head_chart(study["layers"], "non_locality", "Non-locality", 5.0, 4.0))
    assert drawn.count('class="few"') == 9
    assert re.search(r'class="limit" d="M40 ([\d.]+)L', drawn)[1] == "38.4"  # type: ignore[index]
    hostile = [study["layers"][0] | {"name": "<script>"}]
    assert "<script>" not in str(head_chart(hostile, "gate", "<b>", 1.0))


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import write_folder

    place = tmp_path_factory.mktemp("inspected")
    folder = write_folder(place / "pictures", per_class=3)
    names = ["convit_mini.random", "test_vit.random", "test_resnet.random"]
    run = inspect(names, data=str(folder), filters=False, out=place / "run")
    assert set(run.results["locality"]) == set(names[:2])
    assert [one["label"] for one in run.results["networks"]] == names and not run.results["left_out"]
    assert run.results["locality"][names[1]]["pictures"] == 9
    return run.report


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_page_shows_convit_and_a_vision_transformer(
    page: Path, opened: Callable[..., Opened], width: int, scheme: str
) -> None:
    one = opened(page, width=width, scheme=scheme)
    section = one.page.locator("#locality")
    assert section.locator("h3").all_text_contents() == ["convit_mini.random", "test_vit.random"]
    assert section.locator("svg").count() == 3 and section.locator("table").count() == 2
    assert (
        section.locator("img").count() == 3 and section.locator("img").first.evaluate("one => one.naturalWidth") == 71
    )
    assert "Measured on 9 pictures" in section.inner_text()
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    one.page.locator('nav a[href="#locality"]').click()
    assert one.page.evaluate("location.hash") == "#locality"
    assert "attention from pictures" in one.page.locator("header").inner_text()
