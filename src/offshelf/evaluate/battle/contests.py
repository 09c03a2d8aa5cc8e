"""The written list of contests: what a battle can ask of a backbone, each by a named and versioned protocol.

A contest is a function ``(entry, budget, seed, **options) -> Outcome`` (`offshelf.evaluate.battle.outcome`); the list
names it as ``"module:function"`` and says which task it belongs to. Dense prediction and detection enter here, by one
line and one function; `offshelf.evaluate.battle_of_the_backbones.Gauntlet` takes further ones from Python, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from offshelf.errors import UsageError, near
from offshelf.evaluate.battle.outcome import N_BOOT
from offshelf.evaluate.protocols import FINETUNE_V1, HEADS_V1, RETRIEVAL_V1, Protocol

HERE = "offshelf.evaluate.battle"


@dataclass(frozen=True)
class Contest:
    """One way to ask.

    task : what its settings are averaged within. call : ``"module:function"``. learns : whether labels are learnt from,
    so that ``--labels`` and the seed of their drawing matter. draws : whether a seed matters even with all labels.
    one_label : one label a picture, or several. image_size : whether pictures are trained on at a size of their own.
    options : further arguments of the function.
    """

    protocol: Protocol
    task: str
    call: str
    learns: bool = True
    draws: bool = False
    one_label: bool = True
    image_size: bool = False
    pairs: bool = False
    options: dict[str, Any] = field(default_factory=dict)


_FROZEN = replace(HEADS_V1, n_boot=N_BOOT, interval="95 % percentile interval over resampled groups of test rows")
_BALANCED = (("balanced_accuracy", "mean over the classes of the share of their rows named right"),)

LINEAR_V1 = replace(
    _FROZEN,
    name="linear",
    question="how well does a linear classifier on frozen features name the class of images it was not fitted on",
    regularisation="multinomial logistic regression, its penalty chosen by 3 inner folds of the training rows, "
    "stratified by class, groups whole",
    pooling="the given test rows, or five folds pooled; every row counted once a seed; mean over seeds",
    metrics=_BALANCED,
)
KNN_V1 = replace(
    LINEAR_V1,
    name="knn",
    question="do the nearest images in frozen features have the same class",
    regularisation="the number of neighbours (cosine), chosen by 3 inner folds of the training rows, groups whole",
)
ROBUSTNESS_V1 = replace(
    LINEAR_V1,
    name="robustness",
    question="how well does the linear probe, fitted on images as they are, name the class of damaged ones",
    pooling="gaussian noise, gaussian blur, contrast and JPEG at severity 3 of 5; mean over the four of each tested "
    "row's answers; mean over seeds",
)
OOD_V1 = replace(
    LINEAR_V1,
    name="ood",
    question="how well does the linear probe name the class of images of another data set, which it never saw",
    pooling="the tested rows of the other data set whose class both have; answers limited to those classes",
)
FEW_SHOT_V1 = replace(
    _FROZEN,
    name="few-shot",
    question="how well are images named from a few labelled ones of each of N classes",
    normalisation="unit length",
    regularisation="nothing is chosen: the nearest mean of the labelled images of a class",
    pooling="200 episodes a seed, 15 images of each class asked; mean over episodes",
    metrics=(("accuracy", "share of the asked images named right, mean over episodes"),),
    primary_metric="accuracy",
    interval="95 % percentile interval over resampled episodes",
    n_folds=0,
    n_inner_folds=0,
)
MULTI_LABEL_V1 = replace(
    LINEAR_V1,
    name="multi-label",
    question="how well do linear classifiers on frozen features tell, label by label, which other images have it",
    metrics=(("macro_auroc", "mean over the measured labels of the area under the ROC curve"),),
    primary_metric="macro_auroc",
)

CONTESTS: dict[str, Contest] = {
    "linear": Contest(LINEAR_V1, "classification", f"{HERE}.probes:linear"),
    "knn": Contest(KNN_V1, "classification", f"{HERE}.probes:knn"),
    "finetune": Contest(
        replace(FINETUNE_V1, n_boot=N_BOOT), "fine-tuning", f"{HERE}.finetuned:finetuned", draws=True, image_size=True
    ),
    "few-shot": Contest(FEW_SHOT_V1, "few-shot", f"{HERE}.few_shot:few_shot", learns=False, draws=True),
    "retrieval": Contest(replace(RETRIEVAL_V1, n_boot=N_BOOT), "retrieval", f"{HERE}.probes:retrieval", learns=False),
    "robustness": Contest(ROBUSTNESS_V1, "robustness", f"{HERE}.probes:robustness"),
    "ood": Contest(OOD_V1, "other data", f"{HERE}.probes:other_data", pairs=True),
    "multi-label": Contest(MULTI_LABEL_V1, "multi-label", f"{HERE}.several_labels:several_labels", one_label=False),
}
DEFAULT = ("linear", "knn", "few-shot", "retrieval", "robustness")


def get_contest(name: str, contests: dict[str, Contest] | None = None) -> Contest:
    """A contest by name; a wrong one is answered with near ones (UsageError)."""
    known = CONTESTS if contests is None else contests
    if name not in known:
        raise UsageError(f"--protocols {name}: no such protocol{near(name, known)} Known: {', '.join(known)}.")
    return known[name]
