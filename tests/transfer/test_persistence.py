from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offshelf.errors import RunError
from offshelf.transfer import persistence
from offshelf.transfer.heads import HEADS, make_head
from offshelf.transfer.off_the_shelf import OffTheShelf, RetrievalWhitening
from offshelf.transfer.persistence import TRUSTED, load_head, save_head
from offshelf.transfer.reproductive_features import ReproductiveFeatures
from offshelf.transfer.supervised_bottleneck import SupervisedBottleneck


def problem() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 60)
    return (random.normal(size=(60, 20)) + random.normal(size=(3, 20))[y]).astype(np.float32), np.array(list("abc"))[y]


@pytest.mark.parametrize("name", HEADS)
def test_every_head_comes_back_with_equal_predictions(name: str, tmp_path: Path) -> None:
    X, y = problem()
    codes = ReproductiveFeatures(hidden_dim=16, code_dim=6, max_epochs=3)
    pairs = [(np.arange(0, 30), np.arange(30, 60)), (np.arange(30, 60), np.arange(0, 30))]
    fitted = make_pipeline(StandardScaler(), codes, make_head(name, cv=pairs)).fit(X, y)
    path = save_head(fitted, tmp_path / "head.skops")
    loaded = load_head(path)
    assert loaded.predict_proba(X).tobytes() == fitted.predict_proba(X).tobytes()
    assert (loaded.predict(X) == fitted.predict(X)).all()
    assert loaded[-1].chosen_ == fitted[-1].chosen_


@pytest.mark.parametrize(
    "estimator",
    [OffTheShelf(copies=2, C=(0.2, 2.0)), SupervisedBottleneck(8, 4, max_epochs=2), RetrievalWhitening(5)],
    ids=lambda e: type(e).__name__,
)
def test_the_other_estimators_come_back(estimator: object, tmp_path: Path) -> None:
    X, y = problem()
    fitted = estimator.fit(X, y)  # type: ignore[attr-defined]
    loaded = load_head(save_head(fitted, tmp_path / "one.skops"))
    method = "transform" if hasattr(fitted, "transform") else "decision_function"
    assert getattr(loaded, method)(X).tobytes() == getattr(fitted, method)(X).tobytes()


def test_the_list_of_types_names_classes_that_exist() -> None:
    import importlib

    for name in TRUSTED:
        module, _, attribute = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), attribute), type)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "head.skops"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RunError, match="not a saved head"):
        load_head(path)
    assert not (tmp_path / "sprung").exists()


def rewritten(path: Path, old: str, new: str) -> Path:
    """The same file with a text of its schema replaced."""
    target = path.with_name("changed.skops")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for item in source.namelist():
            content = source.read(item)
            copy.writestr(item, content.replace(old.encode(), new.encode()) if item == "schema.json" else content)
    return target


def test_a_foreign_class_is_refused(tmp_path: Path) -> None:
    X, y = problem()
    path = save_head(make_head("ridge").fit(X, y), tmp_path / "head.skops")
    changed = rewritten(path, '"RidgePath"', '"Popen"')
    with pytest.raises(RunError, match="changed.skops.*Popen"):
        load_head(changed)
    forged = tmp_path / "forged.skops"
    import skops.io

    forged.write_bytes(skops.io.dumps(np.random.default_rng(0).spawn(1)[0]))
    other = tmp_path / "other.skops"
    other.write_bytes(skops.io.dumps(RandomForestClassifier(2).fit(X, y)))
    with pytest.raises(RunError, match="not trusted"):
        load_head(other)


def test_damaged_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    X, y = problem()
    path = save_head(make_head("ridge").fit(X, y), tmp_path / "head.skops")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match="cut short"):
        load_head(path)
    with pytest.raises(RunError, match="cannot be read"):
        load_head(tmp_path / "absent.skops")
    with zipfile.ZipFile(path, "w") as empty:
        empty.writestr("note.txt", "nothing")
    with pytest.raises(RunError, match="cannot be loaded"):
        load_head(path)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = problem()
    fitted = make_head("ridge").fit(X, y)
    monkeypatch.setattr(persistence, "TRUSTED", ())
    with pytest.raises(RunError, match="could not be loaded again"):
        save_head(fitted, tmp_path / "head.skops")
    assert not (tmp_path / "head.skops").exists()
