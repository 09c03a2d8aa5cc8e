"""From a name such as ``reproductive + svm-rbf`` to a scikit-learn pipeline over deep features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from offshelf.errors import UsageError, near
from offshelf.transfer.heads import HEADS, make_head
from offshelf.transfer.off_the_shelf import OffTheShelf
from offshelf.transfer.reproductive_features import ReproductiveFeatures

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
OFF_THE_SHELF = "off-the-shelf"


@dataclass(frozen=True)
class Arm:
    """One way from features to labels: a feature set ("deep" or "reproductive") and a head."""

    features: str
    head: str

    @property
    def name(self) -> str:
        """``features + head``, as it stands in every table."""
        return f"{self.features} + {self.head}"

    @property
    def copies_apart(self) -> bool:
        """Whether the head takes each copy of a picture as a sample of its own."""
        return self.head == OFF_THE_SHELF


def check_heads(names: Sequence[str]) -> list[str]:
    """The same names without repeats.

    Raises
    ------
    UsageError
        Naming near ones.
    """
    known = [*HEADS, OFF_THE_SHELF]
    for name in names:
        if name not in known:
            raise UsageError(f"--heads {name}: no such head{near(name, known)} Known: {', '.join(known)}.")
    return list(dict.fromkeys(names))


def make_arms(heads: Sequence[str], reproductive: bool) -> list[Arm]:
    """Every head on the deep features and, when asked for, on the reproductive code of them."""
    arms = [Arm("reproductive", head) for head in heads if reproductive and head != OFF_THE_SHELF]
    return arms + [Arm("deep", head) for head in heads]


def make_pipeline(
    arm: Arm,
    *,
    copies: int = 1,
    code_dim: int = 128,
    hidden_dim: int = 512,
    inner: Folds | None = None,
    seed: int = 0,
    memory: Any = None,
) -> Pipeline:
    """A fresh pipeline for one arm; all its choices are made inside the rows it is fitted on.

    Parameters
    ----------
    arm : Arm
    copies : copies of each picture in the features (only the off-the-shelf head sees them apart).
    code_dim, hidden_dim : widths of the autoencoder of the reproductive features.
    inner : (train, test) rows for choosing regularisation, so that groups stay whole; 3 stratified folds by default.
    seed : every random choice hangs on it.
    memory : joblib memory that shares fitted steps between arms.
    """
    if arm.copies_apart:  # the paper's own order: unit length, then the power; no standardisation
        power = 2.0 if copies == 16 else 1.0
        head = OffTheShelf(copies=copies, power=power, cv=inner if inner is not None else 3, random_state=seed)
        return Pipeline([("head", head)], memory=memory)
    steps: list[tuple[str, Any]] = [("scale", StandardScaler())]
    if arm.features == "reproductive":
        steps.append(
            ("reproductive", ReproductiveFeatures(hidden_dim=hidden_dim, code_dim=code_dim, random_state=seed))
        )
        # Codes come in whatever scale the autoencoder liked; heads with a penalty or a distance need one scale.
        steps.append(("scale_codes", StandardScaler()))
    return Pipeline([*steps, ("head", make_head(arm.head, cv=inner, random_state=seed))], memory=memory)


def fit_pipeline(pipeline: Pipeline, features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> Pipeline:
    """Fit, letting the autoencoder's early stopping keep groups whole where there are groups."""
    extra = {"reproductive__groups": groups} if groups is not None and "reproductive" in pipeline.named_steps else {}
    return pipeline.fit(features, labels, **extra)
