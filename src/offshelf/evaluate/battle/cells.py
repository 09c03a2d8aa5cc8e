"""The cells of a battle as jobs: what each is, what its key says, and what a worker does with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from offshelf.engine.work import Job
from offshelf.evaluate.battle.contests import Contest
from offshelf.evaluate.battle.decks import Deck, Place, enter, open_deck, shared_classes
from offshelf.evaluate.label_subsets import LabelBudget
from offshelf.transfer.deep_features import DeepFeatures

SHARD = 1024  # pictures a job of extraction takes through all backbones
ALL = LabelBudget("100%", share=1.0)


@dataclass(frozen=True)
class Column:
    """One setting of the battle before anything was measured.

    ``variant`` is what stands after the @ of its id: a share of the labels, or ways and shots.
    """

    id: str
    deck: Deck
    contest: Contest
    variant: str | None
    budget: LabelBudget
    seeds: tuple[int, ...]
    options: dict[str, Any]
    why_not: str = ""

    @property
    def protocol(self) -> str:
        """Such as ``"linear/v1"``."""
        return self.contest.protocol.label


def columns(
    decks: Sequence[Deck],
    contests: Sequence[Contest],
    budgets: Sequence[LabelBudget],
    seeds: int,
    *,
    ways: int,
    shots: Sequence[int],
    image_size: int,
) -> list[Column]:
    """All settings, data set by data set."""
    partners = shared_classes(decks)
    found = []
    for deck in decks:
        for contest in contests:
            if contest.pairs:
                found += _against_others(deck, decks, partners.get(deck.place.name, []), contest, budgets, seeds)
                continue
            options = dict(contest.options) | ({"image_size": image_size} if contest.image_size else {})
            if contest.protocol.name == "few-shot":
                for k in shots:
                    found.append(
                        _column(deck, contest, f"{ways}-way {k}-shot", ALL, seeds, options | {"ways": ways, "shots": k})
                    )
                continue
            for budget in budgets if contest.learns else [ALL]:
                found.append(_column(deck, contest, budget.text if contest.learns else None, budget, seeds, options))
    return found


def _against_others(
    deck: Deck, decks: Sequence[Deck], partners: list[str], contest: Contest, budgets: Sequence[LabelBudget], seeds: int
) -> list[Column]:
    if not partners:
        why = f"{deck.place.name}: no other data set of this battle has two of its classes"
        return [_column(deck, contest, None, ALL, seeds, {}, why)]
    places = {other.place.name: other.place.to_dict() for other in decks}
    return [
        _column(deck, contest, f"{budget.text}, tested on {name}", budget, seeds, {"tested_on": places[name]})
        for name in partners
        for budget in budgets
    ]


def _column(
    deck: Deck,
    contest: Contest,
    variant: str | None,
    budget: LabelBudget,
    seeds: int,
    options: dict[str, Any],
    why_not: str = "",
) -> Column:
    few = contest.learns and budget.share != 1.0
    drawn = contest.draws or few or (contest.learns and not deck.given_split)
    name = f"{deck.place.name}/{contest.protocol.label}" + (f"@{variant}" if variant else "")
    return Column(name, deck, contest, variant, budget, tuple(range(seeds if drawn else 1)), options, why_not)


def cell_job(column: Column, facts: dict[str, Any], seed: int, input_size: int | None) -> Job:
    """One backbone in one setting with one seed.

    The key holds the protocol's contents, the backbone's weights and preprocessing, the data set's content, and what
    was asked; so a change of any is another cell, and a folder's name is none.
    """
    deck, contest = column.deck, column.contest
    options = {key: value for key, value in column.options.items() if key != "tested_on"}
    if "tested_on" in column.options:
        options["tested_on"] = open_deck(Place.from_dict(column.options["tested_on"])).fingerprint()
    said = {
        "protocol": [contest.protocol.label, contest.protocol.fingerprint],
        "backbone": facts["identity"],
        "data": deck.fingerprint(),
        "labels": column.budget.text,
        "seed": seed,
        "input_size": input_size,
        "options": options,
    }
    spec = {
        "call": contest.call,
        "place": deck.place.to_dict(),
        "backbone": facts["path"],
        "labels": column.budget.text,
        "seed": seed,
        "input_size": input_size,
        "one_label": contest.one_label,
        "options": column.options,
        "protocol": [contest.protocol.label, contest.protocol.fingerprint],
    }
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    name = f"{facts['name']} in {column.id}, seed {seed}"
    return Job(key, name, f"{__name__}:run_cell", spec, kind=contest.protocol.label)


def run_cell(
    *,
    call: str,
    place: dict[str, Any],
    backbone: str,
    labels: str,
    seed: int,
    input_size: int | None,
    one_label: bool,
    options: dict[str, Any],
    protocol: list[str],
) -> tuple[dict[str, Any], bytes]:
    """What a worker does: the outcome of one cell, packed for the store with its protocol."""
    module, _, function = call.partition(":")
    contest = getattr(import_module(module), function)
    entry = enter(open_deck(Place.from_dict(place)), backbone, input_size, one_label=one_label)
    value, replicates = contest(entry, LabelBudget.parse(labels), seed, **options).pack()
    return value | {"protocol": protocol}, replicates


def extraction_jobs(
    decks: Sequence[Deck], backbones: Sequence[str], input_size: int | None, corruptions: Sequence[str]
) -> Iterator[Job]:
    """Jobs that fill the feature cache: a shard of pictures is decoded once for all backbones.

    They only save time: what they leave undone, the cells do for themselves.
    """
    for deck in decks:
        for corruption in [None, *corruptions]:
            for first in range(0, len(deck.keys), SHARD):
                spec = {
                    "place": deck.place.to_dict(),
                    "backbones": list(backbones),
                    "input_size": input_size,
                    "corruption": corruption,
                    "first": first,
                    "count": SHARD,
                }
                said = json.dumps([spec, deck.fingerprint()], sort_keys=True)
                name = f"features of {deck.place.name} from picture {first + 1} on" + (
                    f", {corruption}" if corruption else ""
                )
                yield Job(
                    hashlib.sha256(said.encode()).hexdigest(), name, f"{__name__}:run_extraction", spec, "features"
                )


def run_extraction(
    *,
    place: dict[str, Any],
    backbones: list[str],
    input_size: int | None,
    corruption: str | None,
    first: int,
    count: int,
) -> dict[str, Any]:
    """Put the features of a shard into the cache; damaged copies of the tested pictures only."""
    deck = open_deck(Place.from_dict(place))
    rows = list(range(first, min(first + count, len(deck.dataset))))
    if corruption is not None:
        rows = deck.tested(rows)
    if not len(rows):
        return {"computed": 0, "pictures": 0}
    features = DeepFeatures(backbones, input_size=input_size, corruption=corruption)
    found = features.extract(deck.dataset.select(rows))
    return {"computed": found.computed, "pictures": len(rows)}
