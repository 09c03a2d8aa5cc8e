from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from offshelf.evaluate.explanation_rows import spread, summary, unique_stems
from offshelf.evaluate.explanation_scoring import cell, grid_scored, scored, sentences
from offshelf.interpret.explainable import Explainable
from offshelf.interpret.map_pictures import Mapped


def test_numbers_of_a_map_by_hand() -> None:
    """4, 3, 2, 1 speak for it, 10 in all, half of that lies on 2 of 8 places; with one of 6, on 1."""
    heat = torch.tensor([[[4.0, -1.0, 2.0, 0.0], [1.0, 3.0, -2.0, 0.0]], [[6.0, 1.0, 1.0, 1.0], [1.0, 0, 0, 0]]])
    first = summary(Mapped(heat, None, torch.tensor([0.5, 0.25])), 0)
    assert first == {"sum": 7.0, "positive": 10.0, "negative": -3.0, "half": 2 / 8, "offset": 0.5}
    assert summary(Mapped(heat), 1)["half"] == 1 / 8
    assert summary(Mapped(torch.ones(1, 4, 4)), 0)["half"] == 0.5
    assert summary(Mapped(-torch.ones(1, 4, 4)), 0)["half"] is None


def test_rows_spread_evenly() -> None:
    assert spread(3, 24).tolist() == [0, 1, 2]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(spread(1000, 24)) == 24


def test_files_named_after_pictures_never_meet() -> None:
    names = ["a/b.png", "a-b.jpg", "A/b.png", "../x y.png", "000123", "ü.jpg", "...", "v1.5"]
    found = unique_stems(names)
    assert found == ["a-b", "a-b-2", "A-b-3", "x-y", "000123", "ü", "picture", "v1"]
    assert len({one.lower() for one in found}) == len(names)
    assert not any("/" in one or one.startswith(".") for one in unique_stems(["/etc/passwd", ".hidden/../up"]))


def test_a_cell_draws_clusters_again() -> None:
    values, alone = np.array([0.0, 1.0] * 20), np.arange(40)
    one = cell(values, alone, 0)
    assert one["value"] == 0.5 and one["n"] == 40 and 0.3 < one["low"] < 0.4 and 0.6 < one["high"] < 0.7
    pairs = cell(np.sort(values), np.arange(40) // 20, 0)  # two clusters: all 0, all 1
    assert (pairs["low"], pairs["high"]) == (0.0, 1.0)
    assert cell(np.array([0.3, np.nan]), np.array([0, 1]), 0) == {
        "value": 0.3,
        "low": None,
        "high": None,
        "n": 1,
        "interval": "none",
    }
    assert cell(np.array([np.nan]), np.array([0]), 0)["value"] is None


class Colours(nn.Module):
    """Four classes by colour: logits are 40 times the means of red, green, blue and their absence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        with torch.no_grad():
            self.layer.weight.copy_(40.0 * torch.cat([torch.eye(3), -torch.ones(1, 3)]))
            self.layer.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 6.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.mean(dim=(2, 3)))


def coloured(classes: int = 4, each: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Squares of one colour in the middle of black pictures, with a little noise so that no two are equal."""
    labels = np.repeat(np.arange(classes), each)
    pixels = np.random.default_rng(0).integers(0, 3, (len(labels), 3, 16, 16)).astype(np.uint8)
    for row, k in enumerate(labels):
        if k < 3:
            pixels[row, k, 4:12, 4:12] = 255
    return pixels, labels


def subject(**more: Any) -> Explainable:
    return Explainable(
        Colours(),
        ["red", "green", "blue", "none"],
        lambda samples, advance: (np.empty(0), {}),
        lambda pixels: torch.from_numpy(pixels).float() / 255,
        lambda logits: logits.softmax(dim=1),
        (16, 16),
        **more,
    )


def test_the_grid_game_on_a_network_that_adds_up_colours() -> None:
    """Input x gradient of a linear network lies on the colour of its class: for red, green and blue near 1."""
    one = subject()
    pixels, labels = coloured()
    probabilities = one.probability(one.logits(pixels)).numpy()
    assert (probabilities.argmax(axis=1) == labels).all() and probabilities.max(axis=1).min() > 0.5
    found = grid_scored(one, pixels, probabilities, labels, ["input-x-gradient"])
    assert (found["classes"], found["pictures"], found["shrunk"], found["why_not"]) == (4, 12, False, None)
    share = found["cells"]["input-x-gradient"]
    assert share["n"] == 100 and 0.6 < share["value"] < 0.8  # three of four near 1; black has nothing to point at
    few = grid_scored(one, pixels[:9], probabilities[:9], labels[:9], ["input-x-gradient"])
    assert few["why_not"] == (
        "3 of the classes have a picture that the network names with a probability above 0.5, and 4 are needed"
    )
    assert grid_scored(subject(multi_label=True), pixels, probabilities, labels, [])["why_not"].startswith("each label")


def test_scores_and_the_sentences_that_follow_from_them() -> None:
    one = subject()
    pixels, labels = coloured(classes=3, each=4)
    x, classes = one.inputs(pixels), torch.from_numpy(labels)
    good = x.gather(1, classes.view(-1, 1, 1, 1).expand(-1, 1, 16, 16))[:, 0]
    found, rows = scored(one, x, {"input-x-gradient": good}, classes, np.arange(12))
    own = found["methods"]["input-x-gradient"]
    assert own["deletion_gain"]["low"] > 0 and own["insertion_gain"]["low"] > 0
    np.testing.assert_allclose(own["deletion"]["value"], rows["input-x-gradient"]["deletion"].mean())
    assert own["shuffled"][0]["layers"] == own["shuffled"][0]["of"] == 1
    found["grid"] = {"chance": 0.25}
    own["grid"] = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 100}
    own["shuffled"][-1]["correlation"] = {"value": 0.7, "low": 0.6, "high": 0.8}
    grid, deletion, shuffled = sentences(found)
    assert "lies on the right one of four pictures more than by chance (0.900 [0.800, 0.950]" in grid
    assert "costs the answer more than squares at random do" in deletion and "n = 12" in deletion
    assert "stays alike when all that the network has learnt is shuffled (rank correlation 0.70)" in shuffled
    own["grid"] |= {"low": 0.2}
    own["deletion_gain"] = {"value": 0.0, "low": -0.1, "high": 0.1, "n": 12}
    own["shuffled"][-1]["correlation"]["value"] = 0.4
    grid, deletion = sentences(found)
    assert "cannot be told from chance" in grid and "cannot be told from squares at random" in deletion
    backwards, _ = scored(one, x, {"input-x-gradient": -good}, classes, np.arange(12))
    assert backwards["methods"]["input-x-gradient"]["deletion_gain"]["high"] < 0
    assert "less than squares at random" in sentences(backwards | {"grid": {"chance": 0.25}})[0]


def test_a_network_of_one_size_gets_mosaics_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] == 16, "input height doesn't match model"
            return super().forward(x)

    one = subject()
    pixels, labels = coloured()
    probabilities = one.probability(one.logits(pixels)).numpy()
    object.__setattr__(one, "model", Fixed())
    found = grid_scored(one, pixels, probabilities, labels, ["input-x-gradient"])
    assert found["shrunk"] and found["cells"]["input-x-gradient"]["value"] > 0.5
