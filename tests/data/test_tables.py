"""Tables of pictures: cells stay text, paths stay inside, splits and labels mean what they say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offshelf.data.columns import class_names, label_array, notes
from offshelf.data.hf import datasets
from offshelf.data.sources import open_dataset
from offshelf.errors import DataError, UsageError


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "pics").mkdir(parents=True)
    for number in range(4):
        (folder / "pics" / f"{number}.png").write_bytes(png(number))
    (tmp_path / "outside.png").write_bytes(png(9))
    return folder


def table(folder: Path, text: str, name: str = "m.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_cells_stay_text(home: Path) -> None:
    text = "\ufeffpath,label,patient,id,split,age\npics/0.png,NA,007,001,Train,5\n"
    text += "pics/1.png,,008,002,valid,\n\npics/2.png,null,007,003,TEST,7\n,,,,,\n"
    dataset = open_dataset(table(home, text))
    assert class_names(dataset) == ["NA", "null"] and label_array(dataset).tolist() == [0, -1, 1]
    assert dataset["group"][:] == ["007", "008", "007"] and dataset["id"][:] == ["001", "002", "003"]
    assert dataset["split"][:] == ["train", "validation", "test"] and dataset["age"][:] == ["5", "", "7"]
    assert dataset[0]["image"] == {"bytes": None, "path": str(home / "pics" / "0.png")}
    assert "1 of 3 rows have no label." in notes(dataset)


@pytest.mark.parametrize(("name", "mark"), [("m.tsv", "\t"), ("m.csv", ";"), ("m.csv", "\t")])
def test_separators(home: Path, name: str, mark: str) -> None:
    text = "\n".join(mark.join(cells) for cells in (["File", "Class"], ["pics/0.png", "a,b"], ["pics/1.png", "c"]))
    dataset = open_dataset(table(home, text, name))
    assert class_names(dataset) == ["a,b", "c"] and dataset["id"][:] == ["pics/0.png", "pics/1.png"]


def test_whole_numbers_sort_by_value(home: Path) -> None:
    dataset = open_dataset(
        table(home, "image_path,target\n" + "".join(f"pics/{k}.png,{v}\n" for k, v in enumerate([10, 9, 2, 9])))
    )
    assert class_names(dataset) == ["2", "9", "10"] and label_array(dataset).tolist() == [2, 1, 0, 1]


def test_named_columns(home: Path) -> None:
    path = table(home, "where,finding,ward,label\npics/0.png,x,A,1\npics/1.png,y,B,2\n")
    dataset = open_dataset(path, path_column="where", label_column="finding", group_column="ward")
    assert class_names(dataset) == ["x", "y"] and dataset["group"][:] == ["A", "B"]
    with pytest.raises(DataError, match="no column 'findin' for the labels; did you mean 'finding'"):
        open_dataset(path, path_column="where", label_column="findin")
    with pytest.raises(DataError, match="no column with pictures; .*It has: where, finding, ward, label"):
        open_dataset(path)


@pytest.mark.parametrize("columns", ["a,b", ["a", "b"]])
def test_several_label_columns(home: Path, columns: object) -> None:
    path = table(home, "path,a,b\npics/0.png,1,0\npics/1.png,,yes\npics/2.png,0.0,-1\n")
    dataset = open_dataset(path, label_column=columns)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.array(dataset["labels"][:]), [[1, 0], [np.nan, 1], [0, np.nan]])
    assert class_names(dataset) == ["a", "b"] and "label" not in dataset.column_names
    assert class_names(dataset.select([2, 0])) == ["a", "b"]
    assert notes(dataset) == ["1 label cells say -1 or NA and count as unknown."]
    odd = table(home, "path,a,b\npics/0.png,1,perhaps\n", "odd.csv")
    with pytest.raises(DataError, match="row 1: column 'b' holds 'perhaps'; expected 0 or 1"):
        open_dataset(odd, label_column=columns)  # type: ignore[arg-type]


def test_labels_missing_altogether(home: Path) -> None:
    dataset = open_dataset(table(home, "path,label\npics/0.png,\npics/1.png,\n"))
    assert "label" not in dataset.column_names and "is empty" in notes(dataset)[0]
    dataset = open_dataset(table(home, "path\npics/0.png\n"))
    assert "label" not in dataset.column_names and "No label column" in notes(dataset)[0]


def test_paths_outside(home: Path) -> None:
    for text in ("../outside.png", str(home.parent / "outside.png"), "pics/../../outside.png", "/etc/passwd"):
        path = table(home, f"path,label\npics/0.png,a\n{text},b\n")
        with pytest.raises(DataError, match="row 2: the path .*lies outside"):
            open_dataset(path)
        assert len(open_dataset(path, allow_outside=True)) == 2
    inside = open_dataset(table(home, f"path\n{home / 'pics' / '1.png'}\n"))
    assert inside["id"][:] == ["pics/1.png"]


def test_absent_files(home: Path) -> None:
    dataset = open_dataset(table(home, "path\npics/0.png\npics/gone.png\n"))
    assert len(dataset) == 2 and any("1 of 2 listed files are absent" in note for note in notes(dataset))
    with pytest.raises(DataError, match="not one of its 4 files is there; looked for .*x0.png, .*x1.png, .*x2.png[.]"):
        open_dataset(table(home, "path\n" + "".join(f"x{k}.png\n" for k in range(4))))
    with pytest.raises(DataError, match="row 2: no path"):
        open_dataset(table(home, "path,label\npics/0.png,a\n,b\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,split\npics/0.png,trian\npics/1.png,holdout\n", "holds 'holdout', 'trian'; expected train"),
        ("path,split\npics/0.png,train\npics/1.png,\n", "holds ''; expected train"),
        ("path,label\npics/0.png,a,b\n", "line 2: 3 cells; expected 2"),
        ("path,path\npics/0.png,a\n", "stand twice"),
        ('path,label\n"pics/0.png,a\n', "line 2"),
        ("path,label\n", "no rows"),
        ("", "empty"),
    ],
)
def test_broken_tables(home: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(table(home, text))


def test_not_utf8(home: Path) -> None:
    (home / "m.csv").write_bytes("path,label\npics/0.png,Gr\u00f6\u00dfe\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        open_dataset(home / "m.csv")


def test_json_lines(home: Path) -> None:
    lines = [
        {"file": "pics/0.png", "label": 3, "id": "007"},
        {"file": "pics/1.png", "label": 11, "site": "N"},
        {"file": "pics/2.png"},
    ]
    dataset = open_dataset(table(home, "\n".join(map(json.dumps, lines)), "m.jsonl"))
    assert class_names(dataset) == ["3", "11"] and label_array(dataset).tolist() == [0, 1, -1]
    assert dataset["id"][:] == ["007", "pics/1.png", "pics/2.png"]
    with pytest.raises(DataError, match="line 2: not JSON"):
        open_dataset(table(home, '{"file": "pics/0.png"}\n{oops', "m.jsonl"))
    lists = [{"path": "pics/0.png", "labels": ["b", "a"]}, {"path": "pics/1.png", "labels": []}]
    dataset = open_dataset(table(home, "\n".join(map(json.dumps, lists)), "m.jsonl"))
    assert dataset["labels"][:] == [[1, 1], [0, 0]] and class_names(dataset) == ["a", "b"]


def test_parquet_with_bytes_and_names(home: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    made = {"image": [{"bytes": png(k), "path": "x.png"} for k in range(3)], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(made, features=features).to_parquet(home / "p.parquet")
    dataset = open_dataset(home / "p.parquet")
    assert class_names(dataset) == ["zebra", "ant"] and label_array(dataset).tolist() == [0, 1, -1]
    assert dataset[2]["image"]["bytes"] == png(2) and dataset["id"][:] == ["p/000000", "p/000001", "p/000002"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string()])
def test_parquet_without_metadata(home: Path, kind: pa.DataType) -> None:
    pictures = ["pics/0.png", "pics/1.png"] if pa.types.is_string(kind) else [png(0), png(1)]
    made = pa.table(
        {
            "image": pa.array(pictures, kind),
            "label": pa.array([1.0, None]),
            "mood": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pq.write_table(made, home / "p.parquet")
    dataset = open_dataset(home / "p.parquet")
    assert (
        class_names(dataset) == ["1"] and label_array(dataset).tolist() == [0, -1] and dataset["mood"][:] == ["x", "y"]
    )
    image = dataset[1]["image"]
    assert image["bytes"] == png(1) or image["path"] == str(home / "pics" / "1.png")


def test_parquet_of_paths_in_a_struct(home: Path) -> None:
    made = pa.table({"image": [{"bytes": None, "path": "pics/0.png"}, {"bytes": png(1), "path": "n.png"}]})
    pq.write_table(made, home / "p.parquet")
    dataset = open_dataset(home / "p.parquet")
    assert [row["image"]["path"] for row in dataset] == [str(home / "pics" / "0.png"), "n.png"]
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "/etc/passwd"}]}), home / "p.parquet")
    with pytest.raises(DataError, match="lies outside"):
        open_dataset(home / "p.parquet")


def shard(path: Path, label: object, levels: list[int], **extra: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(level), "path": None} for level in levels]
    pq.write_table(pa.table({"image": pictures, "label": label, **extra}), path)


@pytest.mark.parametrize("below", ["", "data"])
def test_folder_of_parquet(tmp_path: Path, below: str) -> None:
    shard(tmp_path / below / "test-00000-of-00001.parquet", ["b"], [9])
    shard(tmp_path / below / "train-00000-of-00002.parquet", ["c", "a"], [1, 2])
    shard(tmp_path / below / "train-00001-of-00002.parquet", ["a"], [3])
    (tmp_path / "README.md").write_text("x")
    dataset = open_dataset(tmp_path)
    assert dataset["split"][:] == ["train"] * 3 + ["test"] and class_names(dataset) == ["a", "b", "c"]
    assert label_array(dataset).tolist() == [2, 0, 0, 1] and len(set(dataset["id"][:])) == 4
    assert open_dataset(tmp_path, "test")[0]["image"]["bytes"] == png(9)


def test_class_numbers_of_parts_are_joined_by_name(tmp_path: Path) -> None:
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        made = {"image": [{"bytes": png(k), "path": None} for k in range(2)], "label": [0, 1]}
        datasets.Dataset.from_dict(made, features=features).to_parquet(tmp_path / f"{split}.parquet")
    dataset = open_dataset(tmp_path)
    assert [class_names(dataset)[k] for k in label_array(dataset)] == ["a", "b", "b", "a"]


def test_parquet_odds(tmp_path: Path) -> None:
    shard(tmp_path / "train.parquet", ["a"], [1], extra=[1])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "lists.parquet")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1 and any("lists.parquet holds no pictures" in note for note in notes(dataset))
    shard(tmp_path / "more.parquet", ["b"], [2])
    dataset = open_dataset(tmp_path)
    assert "split" not in dataset.column_names and "extra" not in dataset.column_names and len(notes(dataset)) == 3
    (tmp_path / "lists.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="lists.parquet: not a Parquet file"):
        open_dataset(tmp_path)


def test_large_parquet_is_mapped_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "train.parquet", ["b", "a"], [1, 2])
    monkeypatch.setattr("offshelf.data.tables.IN_MEMORY", 10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = open_dataset(tmp_path / "train.parquet")
    assert class_names(dataset) == ["a", "b"] and dataset[1]["image"]["bytes"] == png(2) and dataset.cache_files


def test_fractions_are_no_classes(tmp_path: Path) -> None:
    shard(tmp_path / "p.parquet", [0.5], [1])
    with pytest.raises(DataError, match="holds the fraction 0.5"):
        open_dataset(tmp_path / "p.parquet")


def test_source_type(home: Path) -> None:
    with pytest.raises(UsageError, match="source of type int"):
        open_dataset(3)
