"""Deep reproductive features (arXiv 2304.10677), their claim measured again, small, on 897 chest X-rays.

The claim: codes learnt without labels from eight networks over four sections classify at least as well as the best
single network on whole pictures and as a supervised bottleneck of equal width; one set of codes serves both the
three-class and the two-class task.

Rule, fixed before running (``RULE``):
M is the code, A the best single network, B the supervised bottleneck, all with a Gaussian support vector machine. Four
paired differences: M - A and M - B, in macro-F1 over three classes and in balanced accuracy of COVID-19 against no
finding. A part is shown when its 95 % interval (patients and seeds drawn again) lies above -0.02, contradicted when
below -0.02. The claim is shown when all four parts are, contradicted when any is, else not shown at this scale.

Five outer folds, patients whole, the same for every arm; the split that comes with the data is not used. Everything
that is learnt, chosen or standardised is so inside the training rows of a fold. The codes of M are fitted once a fold
and seed on all training rows, see no label, and are the same arrays in every task. Widths and rates are the library's
defaults. Beside the rule stand other heads, PCA (C), the features themselves (D), the code of whole pictures (E), a
bottleneck trained for two classes and re-used for three, the nesting of one representation in the other, pictures
without their centre, and the pair of classes that comes from one source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from claims.common import Clock, better, data_folder, keep, seeded_interval, together
from offshelf.backbones.choose import default_backbones
from offshelf.data.sources import open_dataset
from offshelf.evaluate.controls import blank_centre_control
from offshelf.evaluate.groups import group_codes
from offshelf.evaluate.splits import Fold, inner_folds, outer_folds
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.heads import chosen, make_head
from offshelf.transfer.reproductive_features import ReproductiveFeatures, nesting
from offshelf.transfer.supervised_bottleneck import SupervisedBottleneck

SLUG, VERSION = "reproductive-features", 1
MARGIN = 0.02
RULE = (
    "M is the code, A the best single network, B the supervised bottleneck, all with a Gaussian support vector "
    "machine. Four paired differences: M - A and M - B, in macro-F1 over three classes and in balanced accuracy of "
    "COVID-19 against no finding. A part is shown when its 95 % interval (patients and seeds drawn again) lies above "
    "-0.02, contradicted when below -0.02. The claim is shown when all four parts are, contradicted when any is, else "
    "not shown at this scale."
)
SEEDS = (0, 1, 2)
HEADS, PRIMARY = ("svm-rbf", "slp", "mlp"), "svm-rbf"
INPUT_SIZE, BLANK_AREA, N_BOOT = 96, 0.6, 2000


@dataclass(frozen=True)
class Task:
    """A question about the pictures: its classes in order, and the metric it is judged by."""

    words: str
    classes: tuple[str, ...]
    metric: str
    heads: tuple[str, ...] = HEADS


TASKS = {
    "three": Task("Three classes", ("covid19", "no_finding", "pneumonia"), "macro_f1"),
    "two": Task("COVID-19 or no finding", ("covid19", "no_finding"), "balanced_accuracy"),
    "one source": Task(
        "One source: no finding or pneumonia", ("no_finding", "pneumonia"), "balanced_accuracy", (PRIMARY,)
    ),
}
METRIC_WORDS = {"macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}
RULED = ("three", "two")
ARMS = {
    "M": "M code of four sections, no labels",
    "A": "A best single network, whole picture",
    "B": "B supervised bottleneck",
    "C": "C PCA of the features, no labels",
    "D": "D the features themselves",
    "E": "E code of whole pictures, no labels",
    "B re-used": "B trained for two classes, re-used",
    "M blanked": "M without the central 60 % of pictures",
}
HEAD_WORDS = {
    "svm-rbf": "SVM, Gaussian",
    "slp": "SLP",
    "mlp": "MLP",
    "svm-linear": "SVM, linear",
    "own": "its own output layer",
}


@dataclass(frozen=True)
class Widths:
    """Hidden and code width of autoencoder and bottleneck; the code width is PCA's too."""

    hidden: int = 512
    code: int = 128


@dataclass(frozen=True)
class Data:
    """What every arm works on: rows in one order.

    sections, blanked : (n, D) features of four sections, of whole pictures and of those without their centre;
    whole : (n, D') features of undivided pictures; networks : columns of each network in ``whole``; names : (n,) class
    names; units : (n,) patients as numbers 0 to G - 1.
    """

    sections: np.ndarray
    blanked: np.ndarray
    whole: np.ndarray
    networks: dict[str, slice]
    names: np.ndarray
    units: np.ndarray

    def folds(self) -> list[Fold]:
        """The outer folds of all arms and tasks."""
        return outer_folds(self.names, self.units, n_folds=5, seed=0)

    def labels(self, task: Task) -> np.ndarray:
        """Class numbers (n,) in the task, -1 for rows outside it."""
        numbers = np.full(len(self.names), -1)
        for number, name in enumerate(task.classes):
            numbers[self.names == name] = number
        return numbers


Found = dict[tuple[str, str, str], np.ndarray]  # (task, arm, head) -> (seeds, n) predicted class numbers, -1 outside


def measure() -> Path:
    """Run the whole study on the real X-rays and write ``claims/results/reproductive-features.json``."""
    clock = Clock.start()
    data, backbones = load()
    return keep(SLUG, VERSION, {**study(data), "setting": setting(data, backbones), "backbones": backbones}, clock)


def load() -> tuple[Data, list[dict[str, Any]]]:
    """Features of all X-rays in the manifest, and the cards of the networks they come from."""
    manifest = data_folder("chest-xray") / "labels.csv"
    pictures = open_dataset(manifest, path_column="file", label_column="label", group_column="patient")
    names, _ = default_backbones(reproductive=True)
    views = {}
    for view, grid, blank in (("sections", (2, 2), None), ("blanked", (2, 2), BLANK_AREA), ("whole", (1, 1), None)):
        views[view] = DeepFeatures(names, grid=grid, input_size=INPUT_SIZE, blank_area=blank).fit()
    tables = {view: extractor.transform(pictures) for view, extractor in views.items()}
    classes = pictures.features["label"]
    data = Data(
        **tables,
        networks={name: columns for name, _, columns in views["whole"].blocks()},
        names=np.array(classes.int2str(pictures["label"][:])),
        units=group_codes(pictures["group"][:], len(pictures)),
    )
    return data, [card.to_dict() | {"label": card.label} for card in views["whole"].cards_]


# -- one fold: everything is fitted on its training rows ---------------------------------------------------------------


def autoencoder(X: np.ndarray, train: np.ndarray, units: np.ndarray, seed: int, widths: Widths) -> Pipeline:
    """The label-free code of M and E, fitted on the training rows."""
    code = ReproductiveFeatures(hidden_dim=widths.hidden, code_dim=widths.code, random_state=seed)
    steps = [("scale", StandardScaler()), ("code", code), ("scale_codes", StandardScaler())]
    return Pipeline(steps).fit(X[train], code__groups=units[train])


def bottleneck(
    X: np.ndarray, labels: np.ndarray, train: np.ndarray, units: np.ndarray, seed: int, widths: Widths
) -> Pipeline:
    """The supervised k-vector of B: standardised on all training rows, as M is, and trained on those of the task."""
    learnt = train[labels[train] >= 0]
    scale = StandardScaler().fit(X[train])
    net = SupervisedBottleneck(hidden_dim=widths.hidden, code_dim=widths.code, random_state=seed)
    net.fit(scale.transform(X[learnt]), labels[learnt], groups=units[learnt])
    scale_codes = StandardScaler().fit(net.transform(scale.transform(X[train])))
    return Pipeline([("scale", scale), ("code", net), ("scale_codes", scale_codes)])


def label_free(data: Data, train: np.ndarray, widths: Widths) -> dict[str, list[np.ndarray]]:
    """Arm -> representation (n, k) of all rows, one for each seed, fitted on the training rows without labels."""
    learnt = {
        arm: [autoencoder(X, train, data.units, seed, widths).transform(X) for seed in SEEDS]
        for arm, X in (("M", data.sections), ("M blanked", data.blanked), ("E", data.whole))
    }
    standardised = StandardScaler().fit(data.sections[train]).transform(data.sections)
    components = PCA(widths.code, svd_solver="full").fit(standardised[train]).transform(standardised)
    # One common scale: each component's own would undo what PCA is about, their order.
    learnt["C"] = [components / np.sqrt((components[train] ** 2).mean())]
    learnt["D"] = [standardised]
    return learnt


def fitted_head(
    head: str, Z: np.ndarray, labels: np.ndarray, train: np.ndarray, units: np.ndarray, seed: int
) -> BaseEstimator:
    """A head fitted on the training rows of the task; its settings are chosen on inner folds with patients whole."""
    rows = train[labels[train] >= 0]
    inner = inner_folds(labels[rows], units[rows])
    return make_head(head, cv=inner, random_state=seed).fit(Z[rows], labels[rows])


def best_single(
    data: Data, head: str, labels: np.ndarray, train: np.ndarray
) -> tuple[str, StandardScaler, BaseEstimator]:
    """The network whose whole-picture features do best on the inner folds of the training rows; the first of equals."""
    best: tuple[float, str, StandardScaler, BaseEstimator] | None = None
    for name, columns in data.networks.items():
        scale = StandardScaler().fit(data.whole[train, columns])
        model = fitted_head(head, scale.transform(data.whole[:, columns]), labels, train, data.units, SEEDS[0])
        told = chosen(model)
        score = told["inner_balanced_accuracy"] if "inner_balanced_accuracy" in told else -told["inner_log_loss"]
        if best is None or score > best[0]:
            best = score, name, scale, model
    assert best is not None
    return best[1:]


def heads_of(arm: str, task: Task) -> tuple[str, ...]:
    """The heads an arm is measured with in a task."""
    if arm == "D":
        return ("svm-linear",)
    return (PRIMARY,) if arm in ("M blanked", "B re-used") else task.heads


def run_fold(data: Data, fold: Fold, widths: Widths, found: Found) -> dict[str, Any]:
    """Fit every arm on the fold's training rows and write its answers for the test rows into ``found``.

    Returns
    -------
    dict
        ``nesting``: (R2(d | r), R2(r | d)) for each seed; ``single``: the network chosen in each task and head.
    """
    train, units = fold.train, data.units
    codes = label_free(data, train, widths)
    single: dict[str, str] = {}
    supervised: dict[str, list[np.ndarray]] = {}

    def put(task: str, arm: str, head: str, seed: int, model: BaseEstimator, Z: np.ndarray, n_seeds: int) -> None:
        labels = data.labels(TASKS[task])
        rows = fold.test[labels[fold.test] >= 0]
        kept = found.setdefault((task, arm, head), np.full((n_seeds, len(labels)), -1))
        kept[seed, rows] = model.predict(Z[rows])

    for key, task in TASKS.items():
        labels = data.labels(task)
        trained = [bottleneck(data.sections, labels, train, units, seed, widths) for seed in SEEDS]
        supervised[key] = [pipeline.transform(data.sections) for pipeline in trained]
        for seed, pipeline in enumerate(trained):
            head = Pipeline([("scale", pipeline["scale"]), ("net", pipeline["code"])])
            put(key, "B", "own", seed, head, data.sections, len(SEEDS))
        for arm, tables in {**codes, "B": supervised[key]}.items():
            for head in heads_of(arm, task):
                for seed, Z in enumerate(tables):
                    model = fitted_head(head, Z, labels, train, units, SEEDS[seed])
                    put(key, arm, head, seed, model, Z, len(tables))
        for head in heads_of("A", task):
            name, scale, model = best_single(data, head, labels, train)
            single[f"{key}, {head}"] = name
            put(key, "A", head, 0, model, scale.transform(data.whole[:, data.networks[name]]), 1)
    labels = data.labels(TASKS["three"])
    for seed, Z in enumerate(supervised["two"]):
        model = fitted_head(PRIMARY, Z, labels, train, units, SEEDS[seed])
        put("three", "B re-used", PRIMARY, seed, model, Z, len(SEEDS))
    nested = [list(nesting(r, d, train, fold.test)) for r, d in zip(codes["M"], supervised["three"])]
    return {"nesting": nested, "single": single}


# -- from answers to numbers -------------------------------------------------------------------------------------------


def study(data: Data, widths: Widths | None = None, n_boot: int = N_BOOT) -> dict[str, Any]:
    """All folds, and the record made of their answers (without the parts that name the real data)."""
    found: Found = {}
    folds = data.folds()
    told = []
    for fold in folds:
        told.append(run_fold(data, fold, widths or Widths(), found))
        print(f"{fold.name} done", file=sys.stderr, flush=True)
    scores, differences = score(data, found, n_boot)
    nested = np.array([one for fold in told for one in fold["nesting"]])
    picked = {key: [fold["single"][key] for fold in told] for key in told[0]["single"]}
    control = {task: blanked(scores, task, len(TASKS[task].classes)) for task in TASKS}
    return {
        "verdict": judge(differences),
        "sentence": sentence(differences),
        "rule": RULE,
        "margin": MARGIN,
        "table": table(scores, differences),
        "notes": notes(scores, differences, nested, picked, control),
        "numbers": {
            "scores": scores,
            "differences": differences,
            "nesting": {"d_from_r": nested[:, 0].tolist(), "r_from_d": nested[:, 1].tolist()},
            "single_network_chosen": picked,
            "blank_centre": control,
            "folds": [{"train": len(fold.train), "test": len(fold.test)} for fold in folds],
        },
    }


def compared(task: str) -> Iterator[tuple[str, str, str]]:
    """(arm, head, name) of what M with the primary head is compared with in a task."""
    others = ("A", "B", "C", "D", "E", "B re-used") if task == "three" else ("A", "B", "C", "D", "E")
    for arm in others:
        yield arm, heads_of(arm, TASKS[task])[0], f"M - {arm}"


def score(data: Data, found: Found, n_boot: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cells of every arm (``task|arm|head|metric``) and differences (``task|M - other``), those of the rule judged."""
    scores: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for key, task in TASKS.items():
        everyone = data.labels(task)
        rows = np.flatnonzero(everyone >= 0)
        labels, units = everyone[rows], np.unique(data.units[rows], return_inverse=True)[1]
        for (of, arm, head), predicted in found.items():
            if of == key:
                for metric in dict.fromkeys((task.metric, "balanced_accuracy")):
                    cell = seeded_interval(labels, predicted[:, rows], None, units, metric, n_boot=n_boot)
                    scores[f"{key}|{arm}|{head}|{metric}"] = cell | {"n": len(rows)}
        ours = found[key, "M", PRIMARY][:, rows]
        for arm, head, name in compared(key):
            theirs = found[key, arm, head][:, rows]
            pair: dict[str, Any] = dict(seeded_interval(labels, ours, theirs, units, task.metric, n_boot=n_boot))
            if key in RULED and arm in ("A", "B"):
                pair |= {"verdict": better(pair["low"], pair["high"], MARGIN)}
            differences[f"{key}|{name}"] = pair
    return scores, differences


def judge(differences: dict[str, Any]) -> str:
    """The claim's verdict by the rule."""
    parts = [differences[f"{task}|M - {arm}"] for task in RULED for arm in ("A", "B")]
    return together([better(part["low"], part["high"], MARGIN) for part in parts])


def blanked(scores: dict[str, Any], task: str, n_classes: int) -> dict[str, Any]:
    """The library's blanked-centre control of M, in balanced accuracy."""
    full, blank = (scores[f"{task}|{arm}|{PRIMARY}|balanced_accuracy"] for arm in ("M", "M blanked"))
    return blank_centre_control(full, blank, 1 / n_classes, area=BLANK_AREA, arm=f"reproductive + {PRIMARY}")


# -- from numbers to words ---------------------------------------------------------------------------------------------


def shown(cell: dict[str, Any]) -> str:
    """A score or a difference with its interval."""
    if "difference" in cell:
        return f"{cell['difference']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def sentence(differences: dict[str, Any]) -> str:
    """The four parts in numbers, each with its verdict."""

    def part(arm: str) -> str:
        three, two = (differences[f"{task}|M - {arm}"] for task in RULED)
        return (
            f"{shown(three)} in macro-F1 over three classes ({three['verdict']}) and {shown(two)} in balanced accuracy "
            f"over two ({two['verdict']})"
        )

    return (
        f"Codes learnt without labels less the best single network: {part('A')}. Less a supervised bottleneck of equal "
        f"width: {part('B')}."
    )


def table(scores: dict[str, Any], differences: dict[str, Any]) -> dict[str, Any]:
    """Every arm and head, then the differences; the verdict of a part stands beside it."""
    header = ["Arm", "Head", *(f"{task.words}, {METRIC_WORDS[task.metric]}" for task in TASKS.values())]
    rows = []
    for arm, words in ARMS.items():
        for head in HEAD_WORDS:
            cells = [scores.get(f"{key}|{arm}|{head}|{task.metric}") for key, task in TASKS.items()]
            if any(cells):
                rows.append([words, HEAD_WORDS[head], *(shown(cell) if cell else "" for cell in cells)])
    for _, head, name in compared("three"):
        cells = [differences.get(f"{key}|{name}") for key in TASKS]
        heads = HEAD_WORDS[PRIMARY] + ("" if head == PRIMARY else f" - {HEAD_WORDS[head]}")
        rows.append([f"**{name}**", heads, *(shown(cell) if cell else "" for cell in cells)])
    return {"header": header, "rows": rows}


def notes(
    scores: dict[str, Any],
    differences: dict[str, Any],
    nested: np.ndarray,
    picked: dict[str, list[str]],
    control: dict[str, Any],
) -> list[str]:
    """What a reader must know beside the table."""
    sides = []
    for key, task in TASKS.items():
        full, blank = (shown(scores[f"{key}|{arm}|{PRIMARY}|balanced_accuracy"]) for arm in ("M", "M blanked"))
        sides.append(f"{task.words}: {full} on whole pictures, {blank} without the centre. {control[key]['sentence']}")
    chosen_names = picked[f"three, {PRIMARY}"]
    taken = ", ".join(f"{name} ({chosen_names.count(name)} folds)" for name in dict.fromkeys(chosen_names))
    return [
        "**Two sources.** The COVID-19 pictures come from other hospitals, scanners and crops than the other two "
        "classes, so the first two columns overstate medical skill for every arm. Only no finding against pneumonia "
        "lies within one source.",
        "**Control of M, in balanced accuracy.** " + " ".join(sides),
        "**One set of codes.** The codes of M are the same arrays in all columns. M less a bottleneck trained for two "
        f"classes and re-used for three: {shown(differences['three|M - B re-used'])} in macro-F1 (outside the rule).",
        "**Nesting.** With r the code and d the supervised vector of three classes, linear prediction of unseen "
        f"pictures: R2(d given r) {span(nested[:, 0])}, R2(r given d) {span(nested[:, 1])} (mean, and lowest to "
        f"highest of {len(nested)} fits). A gap in favour of the first is nearly built in, since a vector supervised "
        "by three classes tends towards two directions, which a code of many holds more easily than they hold it.",
        "**The single network of A** is chosen anew in each fold on inner folds of the training rows; with the "
        f"Gaussian machine and three classes: {taken}.",
        "**Limits.** The intervals hold other patients and other seeds of the same kind, not training on other rows. A "
        "head on B learns from vectors that have already seen the labels of its training rows; B's own output layer is "
        "shown for that reason.",
    ]


def span(values: np.ndarray) -> str:
    """Mean, lowest and highest."""
    return f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]"


def setting(data: Data, backbones: list[dict[str, Any]]) -> str:
    """Data, networks and protocol in a few sentences; random weights are called so."""
    counts = ", ".join(f"{name} {np.count_nonzero(data.names == name)}" for name in TASKS["three"].classes)
    random = [card["name"] for card in backbones if card["weights"] == "random"]
    learnt = [card["name"] for card in backbones if card["weights"] != "random"]
    return (
        f"{len(data.names)} chest X-rays of {len(np.unique(data.units))} patients ({counts}), five folds with patients "
        f"whole. Eight tiny networks at {INPUT_SIZE} px, far below those of the paper: with learnt weights "
        f"{', '.join(learnt) or 'none'}{'; with **random weights** ' if random else ''}{', '.join(random)}. "
        f"{data.sections.shape[1]} features of four sections; h = {Widths().hidden}, k = {Widths().code}; seeds "
        f"{', '.join(map(str, SEEDS))} of autoencoder and bottleneck."
    )
