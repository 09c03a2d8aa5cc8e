"""The gauntlet on small folders: complete, the same twice, resumed without work, and every odd cell marked."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offshelf.backbones.card import weights_hash
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.engine.store import ResultStore
from offshelf.errors import DataError, NotApplicable, RunError, UsageError
from offshelf.evaluate.battle.cells import cell_job, columns
from offshelf.evaluate.battle.contests import CONTESTS, LINEAR_V1, Contest, get_contest
from offshelf.evaluate.battle.decks import Place, enter, forget, open_deck
from offshelf.evaluate.battle.facts import facts_of
from offshelf.evaluate.battle.gather import make_grid
from offshelf.evaluate.battle.gauntlet import STORE, Battle, Gauntlet
from offshelf.evaluate.battle.probes import linear, retrieval, robustness
from offshelf.evaluate.battle.results import battle_results
from offshelf.evaluate.label_subsets import LabelBudget
from tests.conftest import draw, write_folder

BACKBONES = ["test_resnet.random", "test_byobnet.offshelf_finetune_cifar10"]
ALL = LabelBudget("100%", share=1.0)
SMALL = {"input_size": 32, "seeds": 2, "ways": 3, "shots": (1,), "workers": 2}


def put(root: Path, name: str, per_class: int = 18, **options: object) -> Place:
    return Place(str(write_folder(root / name, per_class, **options)), name)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return put(tmp_path, "shapes")


def status(battle: Battle) -> dict[tuple[str, str], str]:
    return {key: outcomes[0].status for key, outcomes in battle.cells.items()}


@pytest.fixture(scope="module")
def fought(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gauntlet, Battle, Path]:
    """One battle that several tests look at: two data sets, five protocols, one backbone of which is broken."""
    root = tmp_path_factory.mktemp("battle")
    patch = pytest.MonkeyPatch()
    patch.setenv("OFFSHELF_CACHE", str(root / "cache"))
    first = put(root, "shapes")
    second = put(root, "two", names=("across", "down"))
    broken = load_backbone("test_convnext.random")
    next(broken.parameters()).data.fill_(float("nan"))
    folder = save_backbone(broken, root / "broken")
    gauntlet = Gauntlet([*BACKBONES, str(folder)], [first, second], **SMALL)  # type: ignore[arg-type]
    (root / "run").mkdir()
    battle = gauntlet.run(root / "run")
    yield gauntlet, battle, root / "run"
    patch.undo()


def test_every_cell_is_there_and_the_odd_ones_say_why(fought: tuple[Gauntlet, Battle, Path]) -> None:
    gauntlet, battle, _ = fought
    assert [column.id for column in battle.columns] == [
        *(f"shapes/{rest}" for rest in ("linear/v1@100%", "knn/v1@100%", "few-shot/v1@3-way 1-shot", "retrieval/v1")),
        "shapes/robustness/v1@100%",
        *(f"two/{rest}" for rest in ("linear/v1@100%", "knn/v1@100%", "few-shot/v1@3-way 1-shot", "retrieval/v1")),
        "two/robustness/v1@100%",
    ]
    found = status(battle)
    assert len(found) == 30
    for (name, setting), what in found.items():
        few_classes = setting.startswith("two/few-shot")
        expected = "failed" if name == gauntlet.backbones[2] else "not applicable" if few_classes else "done"
        assert what == expected, (name, setting, battle.cells[name, setting][0].reason)
    assert "2 of 2 classes" in battle.cells[BACKBONES[0], "two/few-shot/v1@3-way 1-shot"][0].reason
    assert "not numbers" in battle.cells[gauntlet.backbones[2], "shapes/linear/v1@100%"][0].reason
    seeds = {column.id: column.seeds for column in battle.columns}
    assert seeds["shapes/linear/v1@100%"] == (0, 1)  # folds are drawn
    assert seeds["shapes/retrieval/v1"] == (0,)  # nothing is


def test_results_hold_the_paper_s_scores_and_the_broken_backbone_has_no_rank(
    fought: tuple[Gauntlet, Battle, Path],
) -> None:
    gauntlet, battle, _ = fought
    results = battle_results(gauntlet, battle)
    cells = {(cell["backbone"], cell["setting"]): cell for cell in results["cells"]}
    assert len(cells) == 30
    best = cells[BACKBONES[1], "shapes/linear/v1@100%"]
    assert best["value"] > 0.9  # stripes and discs
    assert best["low"] <= best["value"] <= best["high"]
    assert best["n"] == 54
    assert len(best["by_seed"]) == 2
    assert best["value"] == pytest.approx(np.mean(best["by_seed"]))
    failed = cells[gauntlet.backbones[2], "shapes/linear/v1@100%"]
    assert failed["value"] is None  # a missing cell never becomes a zero
    assert failed["z"] is None
    by_name = {one["backbone"]: one for one in results["standing"]["overall"]}
    assert by_name[gauntlet.backbones[2]]["rank"] is None
    assert by_name[gauntlet.backbones[2]]["why"]
    assert {by_name[name]["rank"] for name in BACKBONES} <= {1, 2}
    assert len(results["failures"]) == 10
    assert {one["name"]: one["pretraining_kind"] for one in results["backbones"]}[BACKBONES[0]] == "random"
    assert all(one["images_per_second"] > 0 for one in results["backbones"])
    assert all(one["memory_mb"] is None or one["memory_mb"] >= 0 for one in results["backbones"])
    assert [one["label"] for one in results["protocols"]] == [
        "linear/v1", "knn/v1", "few-shot/v1", "retrieval/v1", "robustness/v1",
    ]  # fmt: skip


def test_a_second_run_does_nothing_and_finds_the_same(
    fought: tuple[Gauntlet, Battle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauntlet, battle, folder = fought
    monkeypatch.setenv("OFFSHELF_CACHE", str(folder.parent / "cache"))  # the one that the first run filled
    again = gauntlet.run(folder)
    failed = sum(one.status == "failed" for outcomes in battle.cells.values() for one in outcomes)
    assert again.computed == failed  # what failed is tried again
    assert again.reused == battle.computed - failed
    assert again.extracted == 0
    (tmp_path / "other").mkdir()
    fresh = gauntlet.run(tmp_path / "other")
    assert fresh.computed == battle.computed
    one, other = make_grid(battle), make_grid(fresh)
    assert np.array_equal(one.values, other.values, equal_nan=True)
    assert np.array_equal(one.drawn, other.drawn, equal_nan=True)


def test_a_protocol_of_another_version_in_the_store_is_refused(
    fought: tuple[Gauntlet, Battle, Path], tmp_path: Path
) -> None:
    gauntlet, battle, _ = fought
    old = replace(LINEAR_V1, version=0)
    changed = replace(LINEAR_V1, normalisation="none")
    for protocol, said in ((old, "linear/v0"), (changed, "linear/v1 with other contents")):
        with ResultStore(tmp_path / STORE) as store:
            spec = {"protocol": [protocol.label, protocol.fingerprint]}
            store.put(said, name="x", kind=protocol.label, status="done", spec=spec)
        with pytest.raises(RunError, match=f"1 results of {said}; now linear/v1 is asked for.*--out"):
            gauntlet.run(tmp_path)
        (tmp_path / STORE).unlink()


def test_asking_leaves_a_backbone_as_it_was(place: Place) -> None:
    model = load_backbone("test_resnet.random")
    before = weights_hash(model)
    entry = enter(open_deck(place), "test_resnet.random", 32)
    linear(entry, ALL, 0)
    assert weights_hash(load_backbone("test_resnet.random")) == before


def test_the_key_of_a_cell_hangs_on_what_it_hangs_on(tmp_path: Path, place: Place) -> None:
    def key(
        where: Place = place, backbone: str = BACKBONES[0], labels: str = "100%", seed: int = 0, **change: object
    ) -> str:
        contest = replace(CONTESTS["linear"], **change)
        column = columns(
            [open_deck(where)], [contest], [LabelBudget.parse(labels)], 3, ways=5, shots=[1], image_size=64
        )[0]
        return cell_job(column, facts_of(backbone) | {"path": backbone}, seed, 32).key

    same = key()
    moved = put(tmp_path / "elsewhere", "other-name")
    assert key(moved) == same  # the same pictures and classes under another name
    folder = save_backbone(load_backbone(BACKBONES[0]), tmp_path / "copy")
    assert key(backbone=str(folder)) == same  # the same weights under another name
    assert len({same, key(labels="50%"), key(seed=1), key(backbone=BACKBONES[1])}) == 4
    assert key(protocol=replace(LINEAR_V1, version=2)) != same
    Image.fromarray(draw(1, 99)).save(Path(moved.source) / "across" / "000.jpg")
    forget()
    assert key(moved) != same


def test_damage_lowers_a_score_and_every_kind_is_told(place: Place) -> None:
    outcome = robustness(enter(open_deck(place), BACKBONES[1], 32), ALL, 0)
    each = outcome.about["balanced_accuracy"]
    assert set(each) == {"undamaged", "gaussian-noise/3", "gaussian-blur/3", "contrast/3", "jpeg/3"}
    kinds = [value for name, value in each.items() if name != "undamaged"]
    assert outcome.value == pytest.approx(np.mean(kinds))
    assert outcome.value < each["undamaged"]


def test_retrieval_is_the_house_s_mean_average_precision(place: Place) -> None:
    from offshelf.evaluate.retrieval import leave_one_out_retrieval

    entry = enter(open_deck(place), BACKBONES[1], 32)
    outcome, direct = retrieval(entry, ALL, 0), leave_one_out_retrieval(entry.values, entry.rows.labels)
    assert outcome.value == pytest.approx(direct["mean_average_precision"]["value"])
    assert outcome.about["recall_at_5"] == pytest.approx(direct["recall_at_5"]["value"])


def test_other_data_with_the_same_classes_and_without(tmp_path: Path) -> None:
    here, there = put(tmp_path, "here"), put(tmp_path, "there", names=("across", "down"))
    for number in range(18):  # the same classes, drawn darker
        for kind, name in enumerate(("across", "down")):
            ending = "png" if number % 2 else "jpg"
            dark = (draw(kind, number + 100) * 0.6).astype(np.uint8)
            Image.fromarray(dark).save(Path(there.source) / name / f"{number:03d}.{ending}")
    alone = put(tmp_path, "alone", names=("red", "blue"))
    gauntlet = Gauntlet(BACKBONES, [here, there, alone], protocols=["ood"], **SMALL)  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    battle = gauntlet.run(tmp_path / "run")
    ids = {column.id: column.why_not for column in battle.columns}
    assert set(ids) == {"here/ood/v1@100%, tested on there", "there/ood/v1@100%, tested on here", "alone/ood/v1"}
    assert "no other data set" in ids["alone/ood/v1"]
    outcome = battle.cells[BACKBONES[1], "here/ood/v1@100%, tested on there"][0]
    assert outcome.value["about"]["classes"] == ["across", "down"]
    assert outcome.value["n"] == 36
    assert outcome.value["chance"] == 0.5
    assert outcome.value["value"] > 0.8


def test_several_labels_a_picture_and_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 20)
    rows = []
    for kind, name in enumerate(("across", "down", "disc")):
        for path in sorted((folder / name).iterdir()):
            rows.append({"path": f"pictures/{name}/{path.name}", "lines": int(kind < 2), "round": int(kind == 2)})
    with (tmp_path / "table.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    several = Place(str(tmp_path / "table.csv"), "table", label_column=("lines", "round"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(6):
        Image.fromarray(draw(0, number)).save(flat / f"{number}.png")
    gauntlet = Gauntlet(BACKBONES, [several, Place(str(flat), "flat")], protocols=["multi-label", "knn"], **SMALL)  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    battle = gauntlet.run(tmp_path / "run")
    cells = {setting: battle.cells[BACKBONES[1], setting][0] for _, setting in battle.cells}
    assert cells["table/multi-label/v1@100%"].value["metric"] == "macro_auroc"
    assert cells["table/multi-label/v1@100%"].value["value"] > 0.95
    assert "several labels a picture" in cells["table/knn/v1@100%"].reason
    for setting in ("flat/multi-label/v1@100%", "flat/knn/v1@100%"):
        assert cells[setting].status == "not applicable"
        assert "no labels" in cells[setting].reason


def test_nothing_measured_at_all_is_an_error(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(4):
        Image.fromarray(draw(0, number)).save(flat / f"{number}.png")
    gauntlet = Gauntlet(BACKBONES, [Place(str(flat), "flat")], protocols=["knn"], **SMALL)  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="no cell of this battle could be measured.*no labels"):
        battle_results(gauntlet, gauntlet.run(tmp_path / "run"))


def test_fine_tuning_moves_the_weights_and_is_judged_on_held_out_rows(tmp_path: Path) -> None:
    from offshelf.evaluate.battle.finetuned import finetuned

    place = put(tmp_path, "shapes", 20)
    outcome = finetuned(enter(open_deck(place), "test_byobnet.offshelf_finetune_cifar10", 32), ALL, 0, image_size=32)
    assert outcome.n == 12  # a fifth of sixty
    assert outcome.value > 0.8
    assert outcome.about["epochs"] == round(400 * 32 / 48)


def test_a_contest_of_one_s_own_enters_by_one_line(place: Place, tmp_path: Path) -> None:
    protocol = replace(LINEAR_V1, name="spread", question="how far apart are the pictures")
    own = Contest(protocol, "dense prediction", "tests.evaluate.battle.toy_contest:spread", learns=False)
    gauntlet = Gauntlet(BACKBONES, [place], protocols=["spread"], contests={"spread": own}, **SMALL)  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    battle = gauntlet.run(tmp_path / "run")
    found = battle_results(gauntlet, battle)
    assert found["settings"][0]["id"] == "shapes/spread/v1"
    assert found["settings"][0]["task"] == "dense prediction"
    assert found["cells"][0]["value"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbones": ["test_resnet.random"]}, "at least 2"),
        ({"backbones": ["test_resnet.random"] * 2}, "stands twice"),
        ({"protocols": ["linaer"]}, "linear"),
        ({"seeds": 0}, "1 or more"),
        ({"ways": 1}, "at least 2 ways"),
        ({"labels": ["0%"]}, "0%"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(place: Place, change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Gauntlet(**({"backbones": BACKBONES, "places": [place]} | change))  # type: ignore[arg-type]


def test_contests_are_found_by_name() -> None:
    assert get_contest("few-shot").protocol.label == "few-shot/v1"
    with pytest.raises(UsageError, match="did you mean 'robustness'"):
        get_contest("robustnes")


def test_families_are_told_apart() -> None:
    names = ("test_resnet", "test_convnext", "test_mambaout", "test_vit", "test_coatnet", "mixer_s32_224")
    assert [facts_of(f"{name}.random")["family"] for name in names] == ["CNN", "CNN", "CNN", "ViT", "hybrid", "other"]


def test_too_few_pictures_for_folds_or_labels_are_not_applicable(tmp_path: Path) -> None:
    one = put(tmp_path, "one", 1)
    with pytest.raises(NotApplicable, match="one: class 'across' has 1 image"):
        linear(enter(open_deck(one), BACKBONES[0], 32), ALL, 0)
    few = put(tmp_path, "few", 6)
    with pytest.raises(NotApplicable, match="few: 500 labels were asked for, and fold 1 of 5 leaves 1[45] pictures"):
        linear(enter(open_deck(few), BACKBONES[0], 32), LabelBudget.parse("500"), 0)
    with pytest.raises(NotApplicable, match="few: --labels 2: 2 of 1[45] training pictures are too few"):
        linear(enter(open_deck(few), BACKBONES[0], 32), LabelBudget.parse("2"), 0)


def test_classes_that_only_the_test_part_has_are_not_applicable(tmp_path: Path) -> None:
    for split, kinds in (("train", ("across", "down")), ("test", ("disc", "ring"))):
        write_folder(tmp_path / "apart" / split, 8, names=kinds)
    entry = enter(open_deck(Place(str(tmp_path / "apart"), "apart")), BACKBONES[0], 32)
    with pytest.raises(NotApplicable, match="apart: no class of the tested pictures has a picture to learn from"):
        linear(entry, ALL, 0)
    assert retrieval(entry, ALL, 0).n == 16
