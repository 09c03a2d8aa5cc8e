"""The gauntlet: every backbone through every contest on every data set, one job a cell, nothing done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from offshelf.backbones.names import resolve
from offshelf.data.corruptions import CORRUPTIONS
from offshelf.engine.console import Console
from offshelf.engine.store import ResultStore
from offshelf.engine.work import Finished, Job, run_jobs
from offshelf.errors import OffshelfError, RunError, UsageError
from offshelf.evaluate.battle.cells import Column, cell_job, columns, extraction_jobs
from offshelf.evaluate.battle.contests import CONTESTS, DEFAULT, Contest, get_contest
from offshelf.evaluate.battle.cost import cost_job
from offshelf.evaluate.battle.decks import Deck, Place, forget, open_deck
from offshelf.evaluate.battle.facts import facts_of
from offshelf.evaluate.battle.probes import SEVERITY
from offshelf.evaluate.label_subsets import parse_budgets

STORE = "results.sqlite"
Asked = tuple[Job, Column, str]  # a job, its setting, and the backbone it is for


@dataclass
class Battle:
    """What came out: the settings, the facts of each backbone, and what every cell came to.

    ``cells``: (backbone, setting id) -> one `Finished` a seed. ``absent``: backbone -> why it could not be loaded.
    """

    columns: list[Column]
    facts: list[dict[str, Any]]
    absent: dict[str, str]
    cells: dict[tuple[str, str], list[Finished]]
    costs: dict[str, dict[str, Any]]
    decks: list[Deck]
    computed: int = 0
    reused: int = 0
    extracted: int = 0


@dataclass
class Gauntlet:
    """Settings of a battle of backbones; `run` fights it.

    Parameters
    ----------
    backbones : names or folders as `offshelf.backbones.load.load_backbone` takes them; at least two.
    places : the data sets.
    protocols : names of contests, see `offshelf.evaluate.battle.contests`.
    labels : shares or numbers of training pictures with labels, such as ``["10%", "100%"]``; each is a setting of its
        own for the contests that learn.
    seeds : how often what is drawn (labelled rows, folds, episodes) is drawn anew. Nothing is repeated that would come
        out the same.
    ways, shots : of the few-shot episodes.
    image_size : side in pixels at which the contest ``finetune`` trains.
    input_size : side in pixels that frozen backbones see, in place of their own.
    contests : further contests by name; the door for tasks that are not on the list.
    engine, address, workers, threads : as `offshelf.engine.work.run_jobs` takes them.

    References
    ----------
    Goldblum et al., "Battle of the Backbones" (2023, arXiv 2310.19909). Departures: small sweeps inside the training
    rows instead of best validation runs; detection and segmentation enter through ``contests``; every number has an
    interval, and ranks have one, too.
    """

    backbones: Sequence[str]
    places: Sequence[Place]
    protocols: Sequence[str] = DEFAULT
    labels: Sequence[str] = ("100%",)
    seeds: int = 3
    ways: int = 5
    shots: Sequence[int] = (1, 5)
    image_size: int = 64
    input_size: int | None = None
    contests: dict[str, Contest] = field(default_factory=dict)
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None
    threads: int = 1
    console: Console = field(default_factory=lambda: Console(quiet=True))

    def __post_init__(self) -> None:
        if len(self.backbones) < 2:
            raise UsageError(f"--backbones: {len(self.backbones)} given; a battle needs at least 2.")
        for what, names in (("--backbones", self.backbones), ("DATA", [place.name for place in self.places])):
            twice = [name for name, times in Counter(names).items() if times > 1]
            if twice:
                raise UsageError(f"{what}: {twice[0]} stands twice; expected each once.")
        for name in self.backbones:
            resolve(name)  # a wrong name is answered before any work is done
        if self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: expected 1 or more.")
        if self.ways < 2 or not self.shots or min(self.shots) < 1:
            raise UsageError(
                f"--ways {self.ways} --shots {' '.join(map(str, self.shots))}: expected at least 2 ways and 1 shot."
            )
        known = CONTESTS | self.contests
        self._contests = [get_contest(name, known) for name in dict.fromkeys(self.protocols)]
        self._budgets = parse_budgets(list(self.labels))

    def run(self, folder: Path) -> Battle:
        """Fight; every cell's result goes to ``results.sqlite`` in ``folder``, and what is there is not done again.

        Raises
        ------
        RunError
            When the folder holds results of another version of a protocol.
        DataError
            When a data set cannot be opened.
        """
        store = Path(folder) / STORE
        refuse_other_versions(store, self._contests)
        forget()
        decks = [open_deck(place) for place in self.places]
        for deck in decks:
            self.console.say(f"  {deck.place.name}: {len(deck.keys):,} pictures")
        facts, absent = self._look_up()
        found = Battle([], facts, absent, {}, {}, decks)
        found.columns = columns(
            decks,
            self._contests,
            self._budgets,
            self.seeds,
            ways=self.ways,
            shots=self.shots,
            image_size=self.image_size,
        )
        jobs = [
            (cell_job(column, fact, seed, self.input_size), column, fact["name"])
            for deck in decks  # what is asked of one backbone on one data set stands together: workers keep it at hand
            for fact in facts
            for column in found.columns
            if column.deck is deck and not column.why_not
            for seed in column.seeds
        ]
        self._extract(store, found, jobs)
        self._fight(store, found, jobs)
        self._weigh(store, found)
        return found

    def _look_up(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Facts of the backbones that can be loaded, and why the others cannot."""
        facts, absent = [], {}
        for name in self.backbones:
            try:
                told = facts_of(name)
            except OffshelfError as error:
                absent[name] = str(error)
                self.console.warn(f"{name} takes no part: {error}")
                continue
            path = Path(name)  # workers stand in another folder
            facts.append(told | {"path": str(path.resolve()) if path.is_dir() else name})
        if len(facts) < 2:
            raise UsageError(
                f"{len(facts)} of {len(self.backbones)} backbones can be loaded; a battle needs at least 2. "
                f"First reason: {next(iter(absent.values()))}"
            )
        return facts, absent

    def _run(self, jobs: list[Job], what: str, store: Path | None, workers: int | None = None) -> Iterable[Finished]:
        with self.console.progress(what, len(jobs), unit="jobs") as advance:
            yield from run_jobs(
                jobs,
                store=store,
                engine=self.engine,
                address=self.address,
                workers=workers or self.workers,
                threads=self.threads,
                advance=advance,
            )

    def _extract(self, store: Path, found: Battle, jobs: list[Asked]) -> None:
        """Fill the feature cache for the data sets and backbones of which a cell is missing."""
        with ResultStore(store) as results:
            done = results.done([job.key for job, _, _ in jobs])
        missing = [(column, name) for job, column, name in jobs if job.key not in done]
        for deck in found.decks:
            asked = [(column, name) for column, name in missing if column.deck is deck]
            if not asked:
                continue
            names = {name for _, name in asked}
            paths = [fact["path"] for fact in found.facts if fact["name"] in names]
            damaged = any(column.contest.protocol.name == "robustness" for column, _ in asked)
            kinds = [f"{kind}/{SEVERITY}" for kind in CORRUPTIONS] if damaged and not deck.several_labels else []
            for done_job in self._run(
                list(extraction_jobs([deck], paths, self.input_size, kinds)), f"features: {deck.place.name}", None
            ):
                found.extracted += done_job.value.get("computed", 0)
                if done_job.status == "failed":
                    self.console.warn(f"{done_job.job.name}: {done_job.reason}; each backbone is asked on its own")

    def _fight(self, store: Path, found: Battle, jobs: list[Asked]) -> None:
        with ResultStore(store) as results:
            held = results.done([job.key for job, _, _ in jobs])
        came: dict[str, Finished] = {}
        for one in self._run([job for job, _, _ in jobs], "cells", store):
            came[one.job.key] = one
            if one.status == "failed":
                self.console.warn(f"{one.job.name}: {one.reason}")
        found.reused = len(held & set(came))
        found.computed = len(came) - found.reused
        for job, column, name in jobs:  # two names of the same weights share their jobs
            found.cells.setdefault((name, column.id), []).append(came[job.key])

    def _weigh(self, store: Path, found: Battle) -> None:
        """Speed and memory, one backbone at a time so that they do not disturb each other."""
        jobs = {fact["name"]: cost_job(fact, self.input_size) for fact in found.facts}
        came = {one.job.key: one for one in self._run(list(jobs.values()), "cost", store, workers=1)}
        for name, job in jobs.items():
            if came[job.key].status == "done":
                found.costs[name] = came[job.key].value
            else:
                self.console.warn(f"{job.name}: {came[job.key].reason}")


def refuse_other_versions(store: Path, contests: Sequence[Contest]) -> None:
    """Refuse a store that holds results of a protocol with the name but not the contents of one of ``contests``.

    Raises
    ------
    RunError
        Naming both versions.
    """
    if not store.is_file():
        return
    mine = {contest.protocol.name: contest.protocol for contest in contests}
    with ResultStore(store) as results:
        for kind in results.kinds():
            protocol = mine.get(kind.partition("/")[0])
            if protocol is None:
                continue
            others = [
                row for row in results.rows(kind) if row.spec["protocol"] != [protocol.label, protocol.fingerprint]
            ]
            if others:
                what = f"{kind} with other contents" if kind == protocol.label else kind
                raise RunError(
                    f"{store}: holds {len(others)} results of {what}; now {protocol.label} is asked for, and numbers "
                    "of two protocols are never mixed. Name another folder with --out, or start anew with --overwrite."
                )
