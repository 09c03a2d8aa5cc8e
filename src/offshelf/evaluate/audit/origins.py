"""Origins: do the classes come from different places?

Where a column names the source it is asked; where none does, the origin is guessed from what files tell: the form of
their names, and format, colour mode and size in their headers. A guess is no proof, but a class of which every file is
named in a way in which no other class is has most likely been collected elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

from offshelf.evaluate.audit.finding import finding, named, not_judged, worst
from offshelf.evaluate.audit.ground import MOST_TRAINED, Ground
from offshelf.evaluate.audit.looks import Header
from offshelf.evaluate.audit.material import Material
from offshelf.evaluate.source_probe import COVERED, FEWEST_ROWS, MOST_SOURCES, source_probe

PURE, OWN_NAME = 0.9, 0.9  # share of a value in one class; share of a class's files that carry its name
TOGETHER = 0.3  # least association (Cramér's V) that is worth a word
GUESSES = {
    "name": "form of the file names",
    "prefix": "first letters of the file names",
    "length": "length of the file names",
    "ending": "ending of the file names",
    "format": "file format and colour mode",
    "size": "size of the pictures",
}


def origins(material: Material, ground: Ground | str) -> dict[str, Any]:
    """Judge whether origin and class go together, and whether the features show the origin.

    With a source column (or, for want of one, groups) this is `offshelf.evaluate.source_probe`, with its levels.
    Without a source column each guess with 2 to 20 values of at least five pictures, which cover 90 % of the pictures,
    is held against the class. The rule: a guess counts when Cramér's V is at least 0.3 at p < 0.01, unless at
    least 90 % of the files of every class carry that class's name (then it is the class that named them). It is an
    alarm when some class has at least 90 % of its pictures under values of which it holds at least 90 %, while two
    other classes share a value, or when `source_probe` alarms on it; a warning otherwise. Fine when no guess counts;
    not judged when there is nothing to guess from.
    """
    key, title = "origins", "Where the pictures come from"
    if isinstance(ground, str):
        return not_judged(key, title, ground)
    if material.sources is not None:
        found = _probed(material, ground, material.sources, material.source_column)
        if found is not None:
            table = tabulated([None if v is None else str(v) for v in material.sources[ground.rows]], ground)
            return finding(
                key, title, found["level"], found["sentence"], _todo(found["level"]), probe=found, guesses=[],
                table=table, classes=ground.classes, told_by=f"the column {material.source_column}",
            )  # fmt: skip
    rows = _guessed(material, ground)
    probe = None
    if material.groups is not None:
        probe = _probed(material, ground, material.groups, "group")
    counted = [row for row in rows if row["level"] != "fine"]
    level = worst([row["level"] for row in rows])
    if probe is not None:
        level = worst([level, probe["level"]])
    common: dict[str, Any] = {"probe": probe, "guesses": rows, "classes": ground.classes}
    if counted:
        first = counted[0]
        sentence = f"There is no source column, but the class and the {first['what']} go together: {first['said']}."
        if first["probe"] is not None:
            sentence += f" {first['probe']['sentence']}"
        return finding(key, title, level, sentence, _todo(level), table=first["table"], told_by=first["what"], **common)
    if probe is not None:
        return finding(
            key, title, level, f"There is no source column. {probe['sentence']}", _todo(level), table=None,
            told_by="the group column", **common,
        )  # fmt: skip
    if not rows:
        reason = "there is no source column, and names and headers of the files are too alike or too unlike to guess."
        return not_judged(key, title, reason, table=None, told_by=None, **common)
    sentence = (
        f"There is no source column, and {named([row['what'] for row in rows])} "
        f"{'goes' if len(rows) == 1 else 'go'} no further together with the class than by accident."
    )
    return finding(key, title, "fine", sentence, table=None, told_by=None, **common)


def _todo(level: str) -> str:
    if level == "fine":
        return ""
    return (
        "Find out where the pictures of each class were taken. Compare classes within one origin, add pictures of "
        "every class from every origin, and name the origin in a column (--source-column)."
    )


def _guessed(material: Material, ground: Ground) -> list[dict[str, Any]]:
    """The guesses that divide the pictures, those most bound to the class first."""
    names = [material.names[row] for row in ground.rows]
    headers = [material.looks.headers[row] for row in ground.rows]
    found = []
    seen: set[tuple[int, ...]] = set()
    for key, values in guesses(names, headers, class_words=ground.classes).items():
        codes = tuple(np.unique(values, return_inverse=True)[1].tolist())
        counts = Counter(values)
        large = [value for value, count in counts.items() if count >= FEWEST_ROWS]
        if codes in seen or not 2 <= len(large) <= MOST_SOURCES:
            continue
        if sum(counts[value] for value in large) < COVERED * len(values):
            continue
        seen.add(codes)
        found.append(_judged(key, list(values), material, ground))
    order = {"alarm": 0, "warning": 1, "fine": 2}
    return sorted(found, key=lambda row: (order[row["level"]], -row["association"]))


def guesses(
    names: list[str], headers: list[Header | None], class_words: list[str] | None = None
) -> dict[str, list[str]]:
    """What each picture's name and header tell of its origin, by the keys of ``GUESSES``."""
    last = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in names]
    stems = [re.sub(r"\.\w{1,5}$", "", name) for name in last]
    known = [header for header in headers if header is not None]
    assert len(known) == len(names)  # readable pictures have one
    found = {
        "name": [name_form(stem) for stem in stems],
        "prefix": [(re.match(r"[^\W\d_]*", stem) or [""])[0].lower() or "no letters" for stem in stems],
        "length": [str(len(stem)) for stem in stems],
        "ending": [(re.search(r"\.\w{1,5}$", name) or ["(none)"])[0].lower() for name in last],
        "format": [f"{header.format} {header.mode}" for header in known],
        "size": [f"{header.width} × {header.height}" for header in known],
    }
    # A number that only counts grows longer as it goes: 9 and 10 do not come from two places.
    if all(re.fullmatch(r"\D*\d+", stem) for stem in stems):
        del found["length"]
    if class_words is not None and not any(re.search(r"[^\W\d_]", stem) for stem in stems):
        del found["prefix"]
    return found


def name_form(stem: str) -> str:
    """``covid_c46_d3660e13`` -> ``letters_mixed_mixed``; ``00001613_000`` -> ``digits_digits``."""

    def kind(match: re.Match[str]) -> str:
        word = match[0]
        return "digits" if word.isdigit() else "letters" if word.isalpha() else "mixed"

    return re.sub(r"[^\W_]+", kind, stem)


def _judged(key: str, values: list[str], material: Material, ground: Ground) -> dict[str, Any]:
    table = tabulated(values, ground)
    counts = np.array([row["counts"] for row in table])
    association, p = cramers_v(counts)
    own = _named_by_class(material, ground) if key in ("name", "prefix", "length") else False
    level, said, probe = "fine", "", None
    if association >= TOGETHER and p < 0.01 and not own:
        shares = counts / counts.sum(axis=1, keepdims=True)
        # How much of each class lies under values that are all but its own, and whether two classes share a value.
        apart = [(counts[shares[:, k] >= PURE, k].sum() / counts[:, k].sum()) for k in range(counts.shape[1])]
        alone = [ground.classes[k] for k in np.flatnonzero(np.array(apart) >= PURE)]
        shared = bool(((shares > 1 - PURE).sum(axis=1) > 1).any())
        column = np.array(values, dtype=object)
        probe = _probed_rows(ground, column, "guessed origin")
        level = "warning"
        if (alone and shared) or (probe is not None and probe["level"] == "alarm"):
            level = "alarm"
        said = f"{named(alone)} has a form of its own" if alone and shared else f"Cramér's V is {association:.2f}"
        if alone and shared:
            k = ground.classes.index(alone[0])
            row = max(table, key=lambda one: one["counts"][k])
            said = f"{row['counts'][k]} of {int(counts[:, k].sum())} pictures of {alone[0]} are {row['value']!r}, "
            others = sum(row["counts"]) - row["counts"][k]
            said += f"and {others or 'none'} of the {int(counts.sum() - counts[:, k].sum())} others"
    return {
        "key": key, "what": GUESSES[key], "level": level, "said": said, "association": association,
        "named_by_class": own, "probe": probe, "table": table,
    }  # fmt: skip


def _named_by_class(material: Material, ground: Ground) -> bool:
    """Whether nearly all files of every class carry the name of their class."""
    bare = [
        re.sub(r"[\W_]", "", material.names[row].replace("\\", "/").rsplit("/", 1)[-1].lower()) for row in ground.rows
    ]
    for k, name in enumerate(ground.classes):
        word = re.sub(r"[\W_]", "", name.lower())
        inside = [bare[row] for row in np.flatnonzero(ground.labels == k)]
        if np.mean([word in one for one in inside]) < OWN_NAME:
            return False
    return True


def tabulated(values: Sequence[str | None], ground: Ground) -> list[dict[str, Any]]:
    """Origin by class: ``{"value", "counts": one a class}``, the commonest first; at most 20, the rest as one."""
    counts: dict[str, np.ndarray] = {}
    for value, label in zip(values, ground.labels):
        word = "(none)" if value is None else value
        counts.setdefault(word, np.zeros(len(ground.classes), dtype=int))[label] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1].sum())
    rest = ordered[MOST_SOURCES:]
    kept = ordered[:MOST_SOURCES]
    if rest:
        kept.append((f"{len(rest)} others", np.sum([one for _, one in rest], axis=0)))
    return [{"value": value, "counts": row.tolist()} for value, row in kept]


def cramers_v(counts: np.ndarray) -> tuple[float, float]:
    """Cramér's V of a table ``(R, K)`` without empty lines, 0 to 1, and the p of its chi-squared test."""
    if min(counts.shape) < 2:
        return 0.0, 1.0
    test = chi2_contingency(counts, correction=False)
    return float(np.sqrt(test.statistic / counts.sum() / (min(counts.shape) - 1))), float(test.pvalue)


def _probed(material: Material, ground: Ground, column: np.ndarray, name: str) -> dict[str, Any] | None:
    return _probed_rows(ground, column[ground.rows], name)


def _probed_rows(ground: Ground, values: np.ndarray, name: str) -> dict[str, Any] | None:
    limited = ground.limited(MOST_TRAINED)
    here = np.isin(ground.rows, limited.rows)
    return source_probe(
        limited.material.features[limited.rows], values[here], limited.labels, limited.material.seed, column=name,
        clusters=limited.units, n_boot=500,
    )  # fmt: skip
