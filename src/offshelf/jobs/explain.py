"""`offshelf explain`: a finished classifier and pictures in, maps of what spoke for its answers out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offshelf.engine.console import Console
from offshelf.engine.runs import Run
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions
from offshelf.jobs.recording import RunResult, conclude, recorded


@dataclass
class Explained(RunResult):
    """Explained pictures: the folder with the maps, and the results."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the pictures in the page; the files of the maps are in ``maps.parquet``."""
        found = {key: value for key, value in self.results.items() if key != "pictures"}
        return found | {"run": str(self.folder), "report": str(self.report), "maps": str(self.folder / "maps")}

    def show(self, console: Console) -> None:
        """The verdict, the table of scores where they were asked for, and the paths."""
        from offshelf.evaluate.verdict import shown

        scores = self.results["scores"]
        if scores:
            names = {"grid": "grid pointing", "deletion": "deletion", "insertion": "insertion"}
            rows = [
                [name, *["" if one[key] is None else shown(one[key]) for key in names]]
                for name, one in scores["methods"].items()
            ]
            random = [shown(scores["random"][key]) for key in ("deletion", "insertion")]
            rows.append(["without a map", f"{scores['grid']['chance']:.3f}", *random])
            console.table("", ["method", *names.values()], rows)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nmaps:   {self.folder / 'maps'}\nrun:    {self.folder}\nreport: {self.report}")


def explain(
    run: Path,
    inputs: list[str],
    /,
    *,
    methods: list[str] | None = None,
    label: str | None = None,
    scores: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Explained:
    """Show in pictures what spoke for the answers of a finished run, and how far such maps can be trusted.

    Parameters
    ----------
    run
        Folder that fit, finetune or screen wrote.
    inputs
        Pictures, folders of pictures, or manifests.
    methods
        Any of contributions (B-cos networks), grad-cam, attention-rollout (vision transformers), input-x-gradient; all
        that serve the network by default.
    label
        The class to explain in every picture; the one that the run names by default.
    scores
        Measure the maps too: the grid pointing game, deletion and insertion, and shuffled weights. Takes minutes.
    seed
        Of mosaics, random orders, shuffling and the bootstrap.
    out
        Folder of the explanation; runs/explain-NAME by default.
    overwrite
        Replace a complete explanation in that folder.
    name
        What to call the pictures in the report; their path by default.
    """
    console = common.console()
    sources = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]  # from Python, one will do
    if not sources:
        raise UsageError("inputs: nothing to explain; expected pictures, such as new/ or a.jpg.")
    from offshelf.evaluate.evaluation import named
    from offshelf.evaluate.explanation_question import question
    from offshelf.evaluate.explanation_study import ExplanationStudy

    started = time.perf_counter()
    asked = question(Run.open(run), methods, label)
    for note in asked.classifier.notes():
        console.say(note)
    source = name or named(sources)
    arguments = {
        "run": str(run),
        "inputs": [named([one]) for one in sources],
        "methods": asked.methods,
        "label": label,
        "scores": scores,
        "seed": seed,
        "name": name,
    }
    with recorded("explain", source, arguments, seed, out, overwrite) as record:
        results = ExplanationStudy(asked, sources, source, console, scores, seed).run(record.folder)
        conclude(record, results, started)
    return Explained(record.folder, results, exit_code=3 if results["data"]["bad_files"] else 0)
