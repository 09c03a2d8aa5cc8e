"""`offshelf battle`: many backbones, many data sets, many tasks; who is best, and with what certainty."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.console import Console
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.recording import RunResult, as_recorded, conclude, recorded

TOP = 12  # lines of the table on a terminal


@dataclass
class Battled(RunResult):
    """A finished battle: its folder and its results."""

    def summary(self) -> dict[str, Any]:
        """The numbers, without what only the page needs."""
        left_out = ("pareto", "tiers", "apples")
        found = {key: value for key, value in self.results.items() if key not in left_out}
        return found | {"run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """The ranking, the verdict, and the paths."""
        place = self.results["standing"]
        tasks = list(place["tasks"])
        by_task = {task: {one["backbone"]: one["score"] for one in entries} for task, entries in place["tasks"].items()}
        rows = [
            [
                one["backbone"],
                "-" if one["rank"] is None else f"{one['rank']} [{one['rank_low']}, {one['rank_high']}]",
                "-" if one["score"] is None else f"{one['score']:+.2f}",
                *[_signed(by_task[task].get(one["backbone"])) for task in tasks],
            ]
            for one in place["overall"]
        ]
        console.table("", ["backbone", "rank [95 %]", "score (z)", *tasks], rows[:TOP])
        if len(rows) > TOP:
            print(f"... and {len(rows) - TOP} more; the page and the CSV hold all.")
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}\ntable:  {self.folder / 'leaderboard.csv'}")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def battle(
    data: list[str],
    /,
    *,
    backbones: list[str],
    protocols: list[str] | None = None,
    labels: list[str] | None = None,
    seeds: int = 3,
    ways: int = 5,
    shots: list[int] | None = None,
    image_size: int = 64,
    input_size: int | None = None,
    allow_missing: bool = False,
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns: list[str] | None = None,
    label_separator: str | None = None,
    group_column: str | None = None,
    allow_outside: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    common: CommonOptions = Common(),  # noqa: B008
) -> Battled:
    """Hold backbones against each other over many data sets and tasks, with ranks that have intervals.

    Parameters
    ----------
    data
        One data set or several, each as fit takes it; their folders' names are their names.
    backbones
        At least two: timm names, embedded ones, ARCH.random, folders, runs of pretrain or finetune.
    protocols
        Any of linear knn finetune few-shot retrieval robustness ood multi-label; all but finetune, ood and multi-label
        by default.
    labels
        Shares or numbers of training pictures with labels, such as 10% 100%; each is a setting of its own.
    seeds
        How often labelled rows, folds and episodes are drawn anew, where anything is drawn.
    ways
        Classes of a few-shot episode.
    shots
        Labelled pictures of each class in an episode; 1 and 5 by default.
    image_size
        Side in pixels at which finetune trains.
    input_size
        Side in pixels that frozen backbones see, in place of their own.
    allow_missing
        Rank backbones, too, that have no result in some setting.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    label_columns
        Columns that each hold one of several labels a picture, 1 or 0.
    label_separator
        What stands between the labels where a cell of the label column holds several.
    group_column
        Column that must not be split across folds, such as the patient.
    allow_outside
        Accept files outside a manifest's folder.
    engine
        Where the jobs run: processes of this machine, or a Ray cluster.
    address
        HOST:PORT of a running Ray cluster; without it Ray starts on this machine.
    workers
        Jobs at once; as many as there are cores by default.
    threads
        Threads of each job.
    seed
        Of the intervals over data sets; what is drawn for the numbers themselves hangs on 0, 1, 2, ...
    out
        Folder of the run; runs/battle-NAME by default.
    resume
        Go on with a run that is there, finished or not: cells that it holds are kept, others are added.
    overwrite
        Start anew in that folder.
    """
    console = common.console()
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one of them.")
    for name, value in (("seeds", seeds), ("image-size", image_size), ("threads", threads)):
        at_least(name, value, 1)
    if label_column and label_columns:
        raise UsageError("--label-column and --label-columns: give one of the two.")
    source = data[0] if len(data) == 1 else f"{len(data)}-sets"
    local = (
        "common",
        "console",
        "resume",
        "overwrite",
        "out",
        "name",
        "value",
        "workers",
        "threads",
        "engine",
        "address",
    )
    arguments = {key: value for key, value in locals().items() if key not in (*local, "local")}
    from offshelf.evaluate.battle.contests import DEFAULT
    from offshelf.evaluate.battle.gather import write_cells
    from offshelf.evaluate.battle.gauntlet import STORE, Gauntlet
    from offshelf.evaluate.battle.results import battle_results

    started = time.perf_counter()
    columns = {
        "path_column": path_column,
        "label_column": tuple(label_columns or ([label_column] if label_column else ())),
        "group_column": group_column,
        "label_separator": label_separator,
        "allow_outside": allow_outside,
    }
    gauntlet = Gauntlet(
        backbones,
        places(data, columns),
        protocols=protocols or DEFAULT,
        labels=labels or ["100%"],
        seeds=seeds,
        ways=ways,
        shots=shots or [1, 5],
        image_size=image_size,
        input_size=input_size,
        engine=engine,
        address=address,
        workers=workers,
        threads=threads,
        console=console,
    )
    place = _folder(source, as_recorded(arguments), out, resume, overwrite)
    with recorded("battle", source, arguments, seed, place, overwrite) as run:
        if overwrite:
            for left in run.folder.glob(f"{STORE}*"):
                left.unlink()
        sets = f"{len(data)} data set" + ("" if len(data) == 1 else "s")
        console.say(f"{len(backbones)} backbones, {sets}; {', '.join(gauntlet.protocols)}")
        found = gauntlet.run(run.folder)
        results = battle_results(gauntlet, found, seed=seed, allow_missing=allow_missing)
        write_cells(run.folder / "cells.parquet", found)
        conclude(run, results, started)
    return Battled(run.folder, results)


def places(data: list[str], columns: dict[str, Any]) -> list[Any]:
    """Where the data sets are, each with a name of its own: that of its folder or file, or the path where two agree."""
    from offshelf.evaluate.battle.decks import Place

    names = [Path(source).stem or source for source in data]
    times = Counter(names)
    found = []
    for source, name in zip(data, names):
        path = Path(source).expanduser()
        at = str(path.resolve()) if path.exists() else source  # workers stand in another folder
        found.append(Place(at, source if times[name] > 1 else name, told=source, **columns))
    return found


def _folder(source: str, arguments: dict[str, Any], out: Path | None, resume: bool, overwrite: bool) -> Path | None:
    """The folder to work in: the one named, else that of an equal command that is unfinished, else None (a new one)."""
    from offshelf.engine.runs import Run, unfinished

    place = Path(out) if out is not None else None if overwrite else unfinished("battle", source, arguments)
    if resume:
        if place is None or not (place / "run.json").is_file():
            where = f"{place}: holds" if place is not None else "runs/: there is"
            raise UsageError(f"{where} no run to --resume. Name one with --out, or leave --resume out to start one.")
        Run.reopen(place, "battle")
    return place
