"""The claim's arithmetic on made-up grids, its rule, and a run of the whole on a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from claims import battle_of_the_backbones as claim
from claims.cifar import Pictures
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN
from claims.table import markdown
from offshelf.evaluate.battle.grid import Grid, Setting

SIZES = claim.Sizes(seeds=(0, 1))
EXTRA = ("x-rays/knn/v1@100%", "x-rays/retrieval/v1", "x-rays/robustness/v1@100%")
TASK = {"linear": "classification", "knn": "classification", "retrieval": "retrieval", "robustness": "robustness"}


def made_up(cnn_ahead: float, noise: float = 0.01) -> Grid:
    """A grid in which learning helps, and supervised CNNs lie ``cnn_ahead`` above supervised ViTs."""
    rng = np.random.default_rng(0)
    names = [claim.entry(d, way, seed) for d in claim.DESIGNS for way in claim.WAYS for seed in SIZES.seeds]
    base = {"random": 0.3, "self-supervised": 0.5, "supervised": 0.6}
    quality = []
    for name in names:
        design, way = next((d, w) for d in claim.DESIGNS for w in claim.WAYS if name.startswith(f"{d}-{w}-"))
        lead = cnn_ahead / 2 * (1 if claim.DESIGNS[design] is claim.CNN else -1) if way == "supervised" else 0.0
        quality.append(base[way] + lead + 0.01 * list(claim.DESIGNS).index(design))
    settings = [
        Setting(key, data, TASK[name], f"{name}/v1", "m", None, 0.25, 200, 200)
        for key in (*claim.COLUMNS, *EXTRA)
        for data, name, _ in [key.split("/")]
    ]
    values = np.array(quality)[:, None] + noise * rng.normal(size=(len(names), len(settings)))
    shared = 0.02 * rng.normal(size=(1, len(settings), 300))
    drawn = values[:, :, None] + shared + 0.01 * rng.normal(size=(len(names), len(settings), 300))
    return Grid(names, settings, values, drawn)


def test_agreement_is_scipys_over_the_means_of_the_seeds() -> None:
    grid = made_up(0.1, noise=0.05)
    found = claim.agreement(grid, SIZES, claim.WAYS)
    assert found["n"] == 12
    columns = [[setting.id for setting in grid.settings].index(name) for name in claim.COLUMNS]
    table = np.stack([grid.values[2 * i : 2 * i + 2][:, columns].mean(axis=0) for i in range(12)])
    expected = spearmanr(table).statistic
    assert found["value"] == pytest.approx(expected[np.triu_indices(5, 1)].mean())
    assert found["low"] < found["value"] < found["high"]
    assert claim.agreement(grid, SIZES, claim.WAYS[1:])["n"] == 8


@pytest.mark.parametrize("ahead", [0.2, -0.2])
def test_the_lead_has_the_sign_of_the_truth(ahead: float) -> None:
    found = claim.lead(made_up(ahead), SIZES, "supervised")
    assert np.sign(found["difference"]) == np.sign(found["low"]) == np.sign(found["high"]) == np.sign(ahead)
    assert found["low"] < found["difference"] < found["high"]


def numbers(
    everything: tuple[float, float], learnt: tuple[float, float], ahead: tuple[float, float]
) -> dict[str, dict]:
    keys = ("agreement", "agreement_learnt", "lead_supervised")
    return {key: {"low": low, "high": high} for key, (low, high) in zip(keys, (everything, learnt, ahead))}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (numbers((0.6, 0.9), (0.1, 0.8), (0.2, 0.5)), SHOWN),
        (numbers((0.4, 0.9), (0.1, 0.8), (0.2, 0.5)), NOT_SHOWN),  # not surely strong
        (numbers((0.6, 0.9), (-0.1, 0.8), (0.2, 0.5)), NOT_SHOWN),
        (numbers((0.6, 0.9), (0.1, 0.8), (-0.5, -0.2)), CONTRADICTED),
        (numbers((0.1, 0.4), (0.1, 0.8), (0.2, 0.5)), CONTRADICTED),
        (numbers((0.6, 0.9), (float("nan"), float("nan")), (0.2, 0.5)), NOT_SHOWN),
    ],
)
def test_the_rule(told: dict[str, dict], expected: str) -> None:
    assert claim.verdict_of(told)[0] == expected


def test_the_record_says_every_part() -> None:
    told = claim.record(claim.numbers_of(made_up(0.2), SIZES), SIZES)
    assert set(told["parts"].values()) <= {SHOWN, NOT_SHOWN, CONTRADICTED}
    assert len(told["table"]["rows"]) == 12
    text = markdown(told | dict.fromkeys(("version", "seconds"), 1) | {
        "date": "2026-01-01", "command": "c", "commit": "x", "machine": {"cores": 2, "cpu": "y"},
    })  # fmt: skip
    for part in (claim.RULE, "test_vit2 self-supervised", told["sentence"]):
        assert part in text


@pytest.mark.slow
def test_every_network_can_be_made_and_loaded(tmp_path: Path) -> None:
    from offshelf.backbones.load import load_backbone

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 3, claim.SIDE, claim.SIDE), dtype=np.uint8)
    pictures = Pictures(pixels, np.arange(32) % 2, pixels[:2], np.arange(2))
    tiny = claim.Sizes(supervised_epochs=1, self_supervised_epochs=1, batch=16, decoder_width=16, seeds=(0,))
    found = claim.make_networks(pictures, tiny, tmp_path)
    assert len(found) == 12
    hashes = {load_backbone(folder).card.weights_hash for folder in found.values()}  # type: ignore[union-attr]
    assert len(hashes) == 12
