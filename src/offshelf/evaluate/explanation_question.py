"""What is to be explained: a run's classifier, by which methods, for which class; refused before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offshelf.engine.runs import Run
from offshelf.errors import BackboneError, RunError, UsageError, near
from offshelf.interpret.explainable import Explainable, explainable
from offshelf.interpret.explanations import check_methods, serving
from offshelf.transfer.classifier import FeatureClassifier, FinetunedClassifier, load_classifier


@dataclass
class Question:
    """A run's classifier that can be explained, by which methods, and for which class."""

    finished: Run
    classifier: FeatureClassifier | FinetunedClassifier
    subject: Explainable
    methods: list[str]
    refused: dict[str, str]
    label: int | None


def question(finished: Run, methods: Sequence[str] | None = None, label: str | None = None) -> Question:
    """Load what is to be explained, and refuse what cannot be, before any picture is read.

    Raises
    ------
    RunError
        When the run holds no classifier.
    UsageError
        For a head without a gradient, unknown methods, or a class that the run does not know.
    BackboneError
        For a method that was named and does not serve the network.
    """
    asked = None if methods is None else check_methods(methods)
    folder = finished.folder / "model"
    if not (folder / "classifier.json").is_file():
        raise RunError(
            f"{finished.folder}: a run of `offshelf {finished.record.get('verb')}` has no classifier to explain; "
            "give the folder that fit, finetune or screen wrote."
        )
    classifier = load_classifier(folder)
    subject = explainable(classifier)
    if label is not None and label not in subject.classes:
        hint = near(label, subject.classes) or ";"
        raise UsageError(f"--label {label}: no such class{hint} expected one of {', '.join(subject.classes[:30])}.")
    names, refused = serving(subject.model, subject.example())
    for name in asked or ():
        if name in refused:
            raise BackboneError(refused[name])
    chosen = subject.classes.index(label) if label is not None else None
    return Question(finished, classifier, subject, asked or names, refused, chosen)
