"""Protocols: named, versioned records of everything that fixes how a number was measured, stored beside the number.

A protocol is never edited under its version: a change that could move a number raises it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from offshelf.errors import UsageError, near
from offshelf.evaluate.multi_label import FEWEST_GROUPS, MULTI_LABEL_METRICS
from offshelf.evaluate.multilabel_imagenet import LABEL_SET_METRICS
from offshelf.evaluate.reliability import CALIBRATION_ERROR
from offshelf.evaluate.splits import Fold

CLASSIFICATION_METRICS = (
    ("accuracy", "share of rows predicted right"),
    ("balanced_accuracy", "mean sensitivity over the classes that have rows"),
    ("macro_f1", "mean F1 over the classes that have rows"),
    ("macro_auroc", "mean one-against-the-rest area under the ROC curve, ties counted half"),
    ("macro_average_precision", "mean one-against-the-rest average precision, without interpolation"),
    ("log_loss", "mean negative log probability of the true class, in nats"),
    ("brier", "mean squared error of the probabilities, summed over classes; halved with two classes"),
    ("calibration_error", CALIBRATION_ERROR),
)
CLUSTER_BOOTSTRAP = (
    "95 % percentile interval over resampled groups; Wilson's over the number of groups where it has no width; "
    "basic interval for the calibration error; none when over 5 % of the resamples are undefined"
)


@dataclass(frozen=True)
class FoldRecord:
    """What is kept of a fold: its name, sizes and a SHA-256 over the row positions of both parts."""

    name: str
    n_train: int
    n_test: int
    rows: str


@dataclass(frozen=True)
class Protocol:
    """What is fixed about a measurement. Equal, and equally hashed, when all contents are equal.

    Attributes
    ----------
    name, version
        Together the label, ``"heads/v1"``.
    question
        What the number answers.
    feature_point
        Where features are read.
    normalisation
        What is done to them, and on which rows it is learnt.
    regularisation
        How free settings are chosen.
    pooling
        How folds or queries become one number.
    metrics
        Pairs (name, definition).
    primary_metric
        The one that ranks.
    interval
        How the interval is made.
    verdict
        Rule by which arms are told apart.
    n_folds, n_inner_folds, n_seeds, n_boot
        Outer folds (fewer when a class is too small for them), inner folds, repetitions with other seeds, resamples.
    seed
        The one seed of folds and resamples.
    folds
        Filled in by :meth:`with_folds`.
    """

    name: str
    version: int
    question: str
    feature_point: str
    normalisation: str
    regularisation: str
    pooling: str
    metrics: tuple[tuple[str, str], ...]
    primary_metric: str
    interval: str
    verdict: str
    n_folds: int
    n_inner_folds: int
    n_seeds: int = 1
    n_boot: int = 2000
    seed: int = 0
    folds: tuple[FoldRecord, ...] = ()

    @property
    def label(self) -> str:
        """Name and version: ``"heads/v1"``."""
        return f"{self.name}/v{self.version}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the contents; the same on every machine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def with_folds(self, folds: Sequence[Fold]) -> Protocol:
        """The same protocol with a record of the folds it was run on."""
        return replace(self, folds=tuple(_record(fold) for fold in folds))

    def to_dict(self) -> dict[str, Any]:
        """All contents, ready for JSON, with ``label`` and ``fingerprint``; ``metrics`` becomes name -> definition."""
        contents = asdict(self)
        contents["metrics"] = dict(self.metrics)
        contents["folds"] = list(contents["folds"])
        return {"label": self.label, **contents, "fingerprint": self.fingerprint}


def _record(fold: Fold) -> FoldRecord:
    digest = hashlib.sha256()
    for part in (fold.train, fold.test):
        digest.update(np.asarray(part, dtype="<i8").tobytes() + b"|")
    return FoldRecord(fold.name, len(fold.train), len(fold.test), digest.hexdigest())


HEADS_V1 = Protocol(
    name="heads",
    version=1,
    question="how well does a head on frozen features name the class of images it was not fitted on",
    feature_point="pooled output of the frozen network, in evaluation mode, with the preprocessing of its weights",
    normalisation="each feature to mean 0 and standard deviation 1, learnt on the training rows",
    regularisation="chosen by 3 inner folds of the training rows, stratified by class, groups whole",
    pooling="predictions of all test parts pooled; every row counted once",
    metrics=CLASSIFICATION_METRICS,
    primary_metric="balanced_accuracy",
    interval=CLUSTER_BOOTSTRAP,
    verdict="arms are told apart when the paired interval of the difference leaves out 0 and at least 6 groups differ",
    n_folds=5,
    n_inner_folds=3,
)

RETRIEVAL_V1 = Protocol(
    name="retrieval",
    version=1,
    question="do images of one class lie nearer to each other than to the rest",
    feature_point="pooled output of the frozen network, in evaluation mode, with the preprocessing of its weights",
    normalisation="unit length; similarity is the cosine",
    regularisation="nothing is learnt",
    pooling="every row is the query once against all others, itself and rows of its group left out; mean over queries "
    "that have a relevant row",
    metrics=(
        ("mean_average_precision", "mean over queries of average precision, rows of equal similarity taken together"),
        ("recall_at_1", "share of the relevant rows among the first 1, mean over queries"),
        ("recall_at_5", "share of the relevant rows among the first 5, mean over queries"),
        ("hit_at_1", "share of queries whose nearest row is relevant"),
    ),
    primary_metric="mean_average_precision",
    interval="95 % percentile interval over resampled groups of queries",
    verdict="arms are told apart when the paired interval of the difference leaves out 0 and at least 6 groups differ",
    n_folds=0,
    n_inner_folds=0,
)

FINETUNE_V1 = Protocol(
    name="finetune",
    version=1,
    question="how well does a network whose weights were all trained on the training rows name the class of "
    "other images",
    feature_point="the network's own classifier, in evaluation mode",
    normalisation="mean and standard deviation of the weights the training started from",
    regularisation="as given in the settings; nothing is chosen on the rows that score",
    pooling="one held-out part: the given test rows, else one fold of five, groups whole",
    metrics=CLASSIFICATION_METRICS,
    primary_metric="balanced_accuracy",
    interval=CLUSTER_BOOTSTRAP,
    verdict="one arm; its interval is compared with chance",
    n_folds=1,
    n_inner_folds=0,
)

FINETUNE_FOLDS_V1 = replace(
    FINETUNE_V1,
    name="finetune-folds",
    pooling="predictions of all test parts pooled; every row counted once; a network of its own for every fold",
    n_folds=5,
)

MULTI_LABEL_V1 = replace(
    FINETUNE_V1,
    name="finetune-multi-label",
    question="how well does a network whose weights were all trained on the training rows tell, label by label, which "
    "of other images have it",
    metrics=MULTI_LABEL_METRICS,
    primary_metric="macro_auroc",
    interval=f"{CLUSTER_BOOTSTRAP}; unknown answers are left aside, and means are over the labels with both answers in "
    f"every training part and in at least {FEWEST_GROUPS} tested groups each",
)
MULTI_LABEL_FOLDS_V1 = replace(
    MULTI_LABEL_V1, name="finetune-multi-label-folds", pooling=FINETUNE_FOLDS_V1.pooling, n_folds=5
)

LABEL_EFFICIENCY_V1 = replace(
    FINETUNE_V1,
    name="label-efficiency",
    question="how does the score grow with the number of labelled training rows",
    regularisation="as given in the settings; small numbers pass more often over their rows: 200 steps at least, or as "
    "many as all rows would get if those are fewer",
    pooling="the same test part for every number of labels; the labelled rows of a seed are nested, stratified by "
    "class, groups whole; mean over the seeds",
    interval="95 % percentile interval over resampled groups of test rows and resampled seeds together",
    verdict="one more step of labels helps when the paired interval of the difference leaves out 0",
    n_seeds=3,
)

EVALUATION_V1 = replace(
    FINETUNE_V1,
    name="evaluation",
    question="how well does a finished classifier name the class of pictures that were labelled elsewhere",
    feature_point="the classifier as its run keeps it",
    normalisation="as the classifier has it; nothing is learnt",
    regularisation="nothing is chosen",
    pooling="every readable and labelled picture once; classes are matched by name",
    n_folds=0,
)

LABEL_SETS_V1 = replace(
    EVALUATION_V1,
    name="label-sets",
    question="how well does a one-label classifier name what pictures with several valid labels show",
    pooling="every readable picture with at least one valid label once; ties go to the first class",
    metrics=LABEL_SET_METRICS,
    primary_metric="variable_top_k",
    interval="95 % percentile interval over resampled groups; Wilson's over the number of groups where it has no "
    "width; two sets of pictures are resampled independently of each other",
    verdict="a drop is split by the number of valid labels (Kitagawa); its interval is compared with 0",
)

PROTOCOLS = {
    protocol.label: protocol
    for protocol in (
        HEADS_V1,
        RETRIEVAL_V1,
        FINETUNE_V1,
        FINETUNE_FOLDS_V1,
        MULTI_LABEL_V1,
        MULTI_LABEL_FOLDS_V1,
        LABEL_EFFICIENCY_V1,
        EVALUATION_V1,
        LABEL_SETS_V1,
    )
}


def get_protocol(label: str) -> Protocol:
    """The protocol of a label such as ``"heads/v1"``; a wrong one is answered with near ones (UsageError)."""
    if label not in PROTOCOLS:
        raise UsageError(f"protocol {label!r} is unknown{near(label, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[label]
