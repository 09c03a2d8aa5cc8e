from __future__ import annotations

import json
from pathlib import Path

import pytest

from offshelf.backbones.embedded import EMBEDDED
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, UsageError
from offshelf.interpret.networks import networks_of


def make_run(folder: Path, method: str | None, source: str) -> Path:
    save_backbone(load_backbone("test_resnet.random"), folder / "model")
    verb = "pretrain" if method else "finetune"
    (folder / "run.json").write_text(json.dumps({"verb": verb, "arguments": {"method": method} if method else {}}))
    (folder / "results.json").write_text(json.dumps({"data": {"source": source}}))
    return folder


def test_names_and_what_they_say() -> None:
    found = networks_of([EMBEDDED[0], "test_resnet.random_2", EMBEDDED[0]])
    assert [one.name for one in found] == [EMBEDDED[0], "test_resnet.random_2"]
    assert found[0].facts == {"method": "finetune", "data": "cifar10"}
    assert found[1].facts == {"method": "none", "data": "none"}
    assert [one.name for one in networks_of(["embedded"])] == list(EMBEDDED)


def test_folders_runs_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "one", "spark", "photos/birds")
    make_run(tmp_path / "runs" / "two", None, "xrays.csv")
    make_run(tmp_path / "other" / "one", None, "xrays.csv")
    found = networks_of(["runs"])
    assert [(one.name, one.label) for one in found] == [("./runs/one", "one"), ("./runs/two", "two")]
    assert [one.facts for one in found] == [
        {"method": "spark", "data": "birds"},
        {"method": "finetune", "data": "xrays.csv"},
    ]
    assert [one.label for one in networks_of(["runs", "other/one"])] == ["./runs/one", "two", "other/one"]
    assert networks_of([str(tmp_path / "runs" / "two" / "model")])[0].label == "model"
    (tmp_path / "runs" / "n.csv").write_text(f"network,task,data\none,painting,mine\n{EMBEDDED[0]},,\n")
    found = networks_of(["runs/n.csv"], ["g=./runs/one,test_resnet.random"])
    assert [one.name for one in found] == ["./runs/one", EMBEDDED[0], "test_resnet.random"]
    assert found[0].facts == {"method": "spark", "data": "mine", "task": "painting", "group": "g"}
    assert found[1].facts == {"method": "finetune", "data": "cifar10"}
    assert found[2].facts["group"] == "g"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("network\n", "no column 'network'.*no rows"),
        ("backbone,task\nx,y\n", "no column 'network' that names the networks.*backbone, task"),
        ("network,task\n,y\n", "row 1 names no network"),
    ],
)
def test_tables_that_name_nothing(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "n.csv").write_text(text)
    with pytest.raises(UsageError, match=told):
        networks_of([str(tmp_path / "n.csv")])


def test_what_is_written_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("medical", "=test_resnet.random", "medical="):
        with pytest.raises(UsageError, match="expected NAME=NETWORK,NETWORK"):
            networks_of([], [text])
    with pytest.raises(UsageError, match="test_resnet.random is in the group 'a' already"):
        networks_of([], ["a=test_resnet.random", "b=test_resnet.random"])
    with pytest.raises(BackboneError, match="did you mean 'test_resnet'"):
        networks_of(["test_resnt.random"])
    with pytest.raises(UsageError, match="no run below runs/ holds a network"):
        networks_of(["runs"])
