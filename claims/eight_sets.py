"""Eight small sets of pictures of very different kinds, each with its given test split, for claims over data sets."""

from __future__ import annotations

import re

import numpy as np

from claims.cifar import balanced
from claims.common import data_folder
from claims.off_the_shelf import Task, make_task, shots
from offshelf.data.sources import open_dataset

SINGLE = {"flowers": "flowers5", "steel defects": "steel-defects", "hand signs": "sign-digits"}
CUT = {"digits": "mnist-10k", "small photographs": "cifar10"}  # far more pictures than the others have
MOST_TRAIN, MOST_TEST = 3000, 2000


def load_tasks() -> list[Task]:
    """Groups: patients (chest X-rays), blocks of five shots (waste), places (aerial scenes); else single pictures."""
    xray = open_dataset(
        data_folder("chest-xray") / "labels.csv", path_column="file", label_column="label", group_column="patient"
    )
    waste, aerial = open_dataset(data_folder("trashnet")), open_dataset(data_folder("rsscn7"))
    tasks = [
        make_task("chest X-rays", xray, xray["group"][:]),
        make_task("waste", waste, [shots(image["path"]) for image in waste["image"][:]]),
        make_task("aerial scenes", aerial, [place(image["path"]) for image in aerial["image"][:]]),
    ]
    for name, folder in SINGLE.items():
        dataset = open_dataset(data_folder(folder))
        tasks.append(make_task(name, dataset, list(range(len(dataset)))))
    return tasks + [_cut(name, folder) for name, folder in CUT.items()]


def place(name: str) -> str:
    """What ``g128.jpg`` may show together with others: two neighbouring numbers of each hundred, at all four scales."""
    kind, number = re.fullmatch(r"([a-z])(\d+)\.jpg", name).groups()  # type: ignore[union-attr]
    return f"{kind} {(int(number) - 1) % 100 // 2}"


def _cut(name: str, folder: str) -> Task:
    """Part of a large set, evenly over the classes, drawn by a fixed seed."""
    dataset = open_dataset(data_folder(folder))
    labels, splits = np.array(dataset["label"][:]), np.array(dataset["split"][:])
    rows = [
        balanced(labels, np.flatnonzero(splits == split), most, seed=0)
        for split, most in (("train", MOST_TRAIN), ("test", MOST_TEST))
    ]
    dataset = dataset.select(np.concatenate(rows))
    return make_task(name, dataset, list(range(len(dataset))))
