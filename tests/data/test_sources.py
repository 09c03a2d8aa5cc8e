"""The door: names, lists, hub, archives, digits, Datasets, and what it says when there is nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.data.columns import class_names, label_array, notes
from offshelf.data.hf import datasets
from offshelf.data.images import decode_image, read_bytes
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, UsageError


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def hub_set(levels: list[int], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["x", "y"])})
    return datasets.Dataset.from_dict(
        {"img": [{"bytes": png(v), "path": None} for v in levels], "fine": labels}, features
    )


def test_digits() -> None:
    dataset = open_dataset("digits")
    assert len(dataset) == 1797 and class_names(dataset) == [str(k) for k in range(10)]
    assert dataset["id"][:2] == ["digits/0000", "digits/0001"] and label_array(dataset)[:10].tolist() == list(range(10))
    from sklearn.datasets import load_digits

    image = decode_image(read_bytes(dataset[3]["image"]))
    np.testing.assert_array_equal(image[0].numpy(), np.rint(load_digits().images[3] * 255 / 16))
    with pytest.raises(DataError, match="has no splits"):
        open_dataset("digits", "train")
    with pytest.raises(UsageError):
        open_dataset("digits", group_column="x")


def test_one_picture_and_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    one = open_dataset(tmp_path / "a.png")
    assert one[0] == {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "id": "a.png"}
    some = open_dataset([str(tmp_path / "a.png"), tmp_path / "gone.png"])
    assert len(some) == 2 and "1 of 2 listed files are absent" in notes(some)[0]
    for bad, words in [
        ([], "empty"),
        ([tmp_path], "a folder in a list"),
        ([tmp_path / "x", tmp_path / "y"], "not one of the 2"),
    ]:
        with pytest.raises(DataError, match=words):
            open_dataset(bad)


def test_missing_source(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="did you mean 'photos'.* Expected a folder of class folders"):
        open_dataset(tmp_path / "photo")
    with pytest.raises(DataError, match="did you mean 'digits'"):
        open_dataset("digts")
    with pytest.raises(DataError, match="nor is there a folder"):
        open_dataset(tmp_path / "no" / "photo")
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(DataError, match="a file of a kind that is not read"):
        open_dataset(tmp_path / "x.docx")


def test_mistyped_path_is_not_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="did you mean 'train'"):
        open_dataset("photos/trian")


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    parts = datasets.DatasetDict({"test": hub_set([9], [0]), "train": hub_set([1, 2], [1, 0])})
    monkeypatch.setattr("offshelf.data.hub.reachable", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or parts)
    for name in ("owner/name", "hf://owner/name"):
        dataset = open_dataset(name)
        assert dataset["split"][:] == ["train", "train", "test"] and class_names(dataset) == ["x", "y"]
        assert label_array(dataset).tolist() == [1, 0, 0] and dataset[2]["image"]["bytes"] == png(9)
        assert dataset["id"][:] == ["train/000000", "train/000001", "test/000000"]
    assert asked == ["owner/name"] * 2
    assert len(open_dataset("owner/name", "test")) == 1

    def absent(name: str) -> None:
        raise FileNotFoundError("Dataset 'owner/nme' doesn't exist on the Hub.\nMore lines")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(
        DataError, match="owner/nme: cannot be read from the hub: Dataset 'owner/nme' doesn't exist"
    ) as caught:
        open_dataset("owner/nme")
    assert "More lines" not in str(caught.value)


def test_hub_out_of_reach_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(DataError, match="no such file or folder here, and 127.0.0.1 cannot be reached"):
        open_dataset("owner/name")
    assert time.perf_counter() - started < 3.5


def test_odd_splits_of_a_dict() -> None:
    parts = datasets.DatasetDict({"train": hub_set([1], [0]), "extra": hub_set([2, 3], [1, 1])})
    with pytest.raises(DataError, match="splits named train, extra; .*split='extra'"):
        open_dataset(parts)
    assert len(open_dataset(parts, "extra")) == 2
    assert len(open_dataset(datasets.DatasetDict({"all": hub_set([1, 2], [0, 1])}))) == 2


def test_dataset_passes_through() -> None:
    mine = hub_set([1, 2, 3], [0, 1, 1])
    dataset = open_dataset(mine)
    assert dataset.features["image"] == datasets.Image(decode=False) and label_array(dataset).tolist() == [0, 1, 1]
    assert mine.column_names == ["img", "fine"] and mine.info.description == ""
    again = open_dataset(dataset)
    assert again.column_names == dataset.column_names and notes(again) == notes(dataset)
    picked = open_dataset(mine.select([2, 0]))
    assert [row["image"]["bytes"] for row in picked] == [png(3), png(1)]
    with pytest.raises(DataError, match="no column with pictures"):
        open_dataset(datasets.Dataset.from_dict({"text": ["a"]}))


def test_unknown_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match="has no split 'tset'; did you mean 'test'.* It has: train, test"):
        open_dataset(tmp_path, "tset")
    with pytest.raises(DataError, match="has no split 'val'"):
        open_dataset(tmp_path, "val")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tars(tmp_path: Path) -> None:
    archive(tmp_path / "test-000.tar", {"a/1.png": png(9), "a/1.cls": b"10"})
    archive(
        tmp_path / "train-000.tar",
        {
            "a/1.png": png(1),
            "a/1.cls": b"10",
            "a/1.json": b'{"patient": "007"}',
            "a/2.png": png(2),
            "a/2.cls": b"9\n",
            "a/3.txt": b"x",
        },
    )
    dataset = open_dataset(tmp_path)
    assert class_names(dataset) == ["9", "10"] and label_array(dataset).tolist() == [1, 0, 1]
    assert dataset["split"][:] == ["train", "train", "test"]
    assert dataset["id"][:] == ["train-000/a/1", "train-000/a/2", "test-000/a/1"]
    assert [row["image"]["bytes"] for row in dataset] == [png(1), png(2), png(9)]
    assert any("1 samples of train-000.tar hold no picture" in note for note in notes(dataset))
    alone = open_dataset(tmp_path / "train-000.tar")
    assert alone["group"][:] == ["007", None] and class_names(alone) == ["9", "10"]


def test_tars_refuse(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", {"1.png": png(1) * 100})
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(DataError, match="x.tar: not a tar archive, or cut short"):
        open_dataset(path)
    path.write_bytes(b"hello" * 300)
    with pytest.raises(DataError, match="not a tar archive"):
        open_dataset(tmp_path)
    archive(path, {"1.txt": b"x"})
    with pytest.raises(DataError, match="no picture in any archive"):
        open_dataset(path)
    archive(path, {"1.png": png(1), "1.json": b"{oops"})
    with pytest.raises(DataError, match="sample 1: its json"):
        open_dataset(path)


def test_no_counter_and_no_telemetry() -> None:
    code = "import os, offshelf.data.hf as h; "
    code += "print(h.datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["False", "1"]


def test_real_folder_and_manifest_agree(real_data: Path) -> None:
    from offshelf.data.summary import summarise

    folder = summarise(open_dataset(real_data / "chest-xray"))
    manifest = summarise(open_dataset(real_data / "chest-xray" / "labels.csv"))
    assert folder.class_counts == manifest.class_counts == {"covid19": 103, "no_finding": 399, "pneumonia": 395}
    assert folder.splits == manifest.splits and folder.splits["test"] == {
        "covid19": 19,
        "no_finding": 102,
        "pneumonia": 71,
    }
    assert folder.fingerprint == manifest.fingerprint and manifest.groups == 607 and not folder.bad_files
