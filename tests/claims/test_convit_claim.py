from __future__ import annotations

import numpy as np
import pytest
import torch

from claims import convit as claim
from claims.common import CONTRADICTED, NOT_SHOWN, SHOWN, seeded_interval
from claims.table import markdown
from offshelf.transfer.classification import Classification

TINY = claim.Sizes(side=12, few=16, many=32, test=24, updates=3, batch_size=8, looked_at=4, seeds=(0, 1))


def cell(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("lead", "shrinks", "expected"),
    [
        (cell(0.01, 0.03), cell(0.001, 0.02), SHOWN),
        (cell(0.01, 0.03), cell(-0.01, 0.02), NOT_SHOWN),
        (cell(-0.01, 0.03), cell(0.001, 0.02), NOT_SHOWN),
        (cell(0.01, 0.03), cell(-0.02, -0.01), CONTRADICTED),
        (cell(-0.03, -0.01), cell(0.001, 0.02), CONTRADICTED),
    ],
)
def test_the_claim_needs_both_parts(lead: dict[str, float], shrinks: dict[str, float], expected: str) -> None:
    large = cell(-1, 1)  # the lead with many pictures alone decides nothing
    verdict, parts = claim.verdict_of({"convit - vit, few": lead, "convit - vit, many": large, claim.SHRINKS: shrinks})
    assert verdict == expected
    assert set(parts) == {"convit - vit, few", claim.SHRINKS}


def test_the_rule_of_the_record_is_the_one_in_the_docstring() -> None:
    assert claim.RULE in " ".join(str(claim.__doc__).split())


def test_the_arms_differ_by_the_gated_layers_alone() -> None:
    sizes = claim.Sizes()
    arms = {arm: claim.network(arm, 0, sizes) for arm in claim.ARMS}
    counts = {arm: sum(p.numel() for p in model.parameters()) for arm, model in arms.items()}
    assert counts["convit"] == counts["unlocal"] == counts["vit"] + 3 * (4 * 9 + 9)  # positions, their bias, and gates
    assert [block.use_gpsa for block in arms["convit"].blocks] == [True] * 3 + [False]
    assert not any(block.use_gpsa for block in arms["vit"].blocks)
    first = {arm: model.blocks[0] for arm, model in arms.items()}
    assert torch.equal(first["convit"].attn.v.weight, torch.eye(72))
    assert first["unlocal"].attn.v.weight.std() < 0.03
    assert torch.equal(first["convit"].attn.qk.weight, first["unlocal"].attn.qk.weight)


def test_gates_do_not_decay() -> None:
    sizes = claim.Sizes()
    model = claim.network("convit", 0, sizes)
    groups = Classification(model).parameter_groups(1e-3, sizes.weight_decay)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(block.attn.gating_param)] for block in model.blocks[:3]] == [0.0] * 3
    assert decays[id(model.blocks[0].attn.qk.weight)] == 0.05


def test_the_few_are_among_the_many() -> None:
    labels = np.repeat(np.arange(10), 40)
    few, many = (claim.balanced(labels, np.arange(400), n, seed=3) for n in (50, 200))
    assert len(few) == 50 and len(many) == 200 and set(few) <= set(many)
    assert set(few) != set(claim.balanced(labels, np.arange(400), 50, seed=4))


def test_intervals_of_means_are_those_of_accuracies() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    a, b = random.integers(0, 4, (3, 60)), random.integers(0, 4, (3, 60))
    values = (a == labels).astype(float) - (b == labels)
    expected = seeded_interval(labels, a, b, np.arange(60), "accuracy", n_boot=200)
    assert claim.mean_interval(values, n_boot=200) == pytest.approx(expected, abs=1e-12)


def test_numbers_of_answers_that_are_known() -> None:
    labels = np.arange(40) % 4
    right, wrong = np.stack([labels] * 2), np.stack([(labels + 1) % 4] * 2)
    half = np.where(np.arange(40) < 20, right, wrong)
    told = {"convit few": right, "vit few": wrong, "unlocal few": half, "convit many": right, "vit many": half}
    found = claim.numbers_of(labels, told, n_boot=100)
    assert found["differences"]["convit - vit, few"] == {"difference": 1.0, "low": 1.0, "high": 1.0}
    assert found["differences"]["convit - vit, many"]["difference"] == 0.5
    assert found["differences"][claim.SHRINKS]["difference"] == 0.5
    assert 0.2 < found["differences"][claim.SHRINKS]["low"] < 0.5 < found["differences"][claim.SHRINKS]["high"] < 0.8
    assert found["by_seed"]["unlocal few"] == [0.5, 0.5]


def test_locality_before_and_after() -> None:
    looks = [
        [
            {"step": step, "layer": layer, "head": head, "gate": gate, "non_locality": 1.0 + step}
            for step in (0, 9)
            for layer, gates in ((0, [0.7, 0.5]), (1, [None, None]))
            for head, gate in enumerate(gates)
        ]
    ]
    first, second = claim.locality_of(looks)
    assert first["before"] == {"non_locality": 1.0, "gate": pytest.approx(0.6), "gates": [0.5, 0.7]}
    assert second["after"] == {"non_locality": 10.0, "gate": None, "gates": None}


def test_a_whole_measurement_on_made_pictures() -> None:
    random = np.random.default_rng(0)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        pictures = random.integers(0, 100, (n, 3, 12, 12)) + 100 * labels[:, None, None, None]
        return pictures.astype(np.uint8), labels

    result = claim.compare(claim.Pictures(*made(64), *made(24)), TINY)
    told = result["numbers"]
    assert result["verdict"] in (SHOWN, NOT_SHOWN, CONTRADICTED)
    assert [len(seeds) for seeds in told["by_seed"].values()] == [2] * 5
    before = told["locality"]["convit few"][0]["before"]
    assert before["gate"] == pytest.approx(0.7310586)
    # positions share 0.731 of the attention and the rest is near uniform at the start: well below uniform
    assert before["non_locality"] < 0.9 * told["uniform"]
    assert told["locality"]["vit few"][0]["before"]["non_locality"] == pytest.approx(told["uniform"], rel=0.02)
    assert told["locality"]["convit few"][0]["after"]["gate"] != before["gate"]
    assert all(0.2 < loss < 3 for each in told["told"].values() for loss in each["losses"])
    assert len(result["table"]["rows"]) == 5 + 4 + 1
    shared = {"version": 1, "date": "", "command": "", "seconds": 1.0, "commit": "", "machine": {"cores": 2, "cpu": ""}}
    assert "the first minus the second" in markdown(result | shared)
