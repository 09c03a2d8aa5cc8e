"""The page of an ``explain`` run: each picture beside its maps, what the maps say and do not, and how good they are.

``results.json`` of such a run::

    {
      "title": str, "verb": "explain", "classes": [name], "verdict": [sentence], "cost": {...}, "data": {...},
      "explained": {"run", "verb", "arm", "source", ...},      # the run that was asked, as of `evaluate`
      "label": name or null,                                   # of --label
      "methods": [{"name", "views", "shows", "caution", "serves", "signed"}], "refused": {method: why},
      "pictures": [{"path", "truth", "predicted", "confidence", "explained", "probability", "logit", "picture",
                    "maps": [{"method", "images": {view: data URI}, "sum", "positive", "negative", "half", "offset"}]}],
      "sums": {"largest_gap", "n", "holds"} or null,
      "scores": null or {"n", "steps", "squares", "random": {...}, "methods": {method: {test: cell}}, "grid": {...}}
    }
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offshelf.report.content import BAD_FILES, THUMBNAIL, cell, cleaned
from offshelf.report.templating import environment, own

NEEDED = ("pictures", "methods", "verdict", "data", "explained")
PICTURE_BYTES = 1_500_000  # of all pictures together; the page stays below 2 MB
CAPTIONS = {"contributions": "contributions, in colour", "contributions-signed": "contributions, for and against"}
GAINS = ("deletion", "insertion", "deletion_gain", "insertion_gain")


def render(results: Any, run: Any, folder: Path) -> str:
    """The page's HTML from what results.json and run.json of an ``explain`` run hold.

    Raises
    ------
    RunError
        When a part that every run must have is missing; the message names it.
    """
    results, run = cleaned(results, run, folder, NEEDED, "an explain run")
    pictures, left_out = fitting(results["pictures"])
    page = environment()
    page.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]  # and leave the rest as it is
    return page.get_template("explain.html.j2").render(
        title=results.get("title") or "offshelf explain",
        verdict=results["verdict"],
        methods=results["methods"],
        refused=results.get("refused") or {},
        label=results.get("label"),
        explained={"run": "", "verb": "", "arm": "", "source": "not recorded"} | results["explained"],
        pictures=pictures,
        pictures_left_out=left_out,
        captions=CAPTIONS,
        sums=results.get("sums"),
        scores=_scores(results.get("scores")),
        data={"source": "not recorded", "n": None, "n_used": None, "notes": [], "bad_files": [], "fingerprint": None}
        | results["data"],
        shown={"bad_files": BAD_FILES},
        cost=results.get("cost") or {},
        run={"command": "", "versions": {}, "seed": None, "machine": {}, "arguments": {}} | run,
        style=own("style.css"),
        script=own("script.js"),
    )


def fitting(pictures: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The pictures whose images are images and fit the page, and how many were left out."""
    left, shown = PICTURE_BYTES, []
    for one in pictures:
        images = [one["picture"], *(image for found in one["maps"] for image in found["images"].values())]
        size = sum(len(image) for image in images)
        if size <= left and all(THUMBNAIL.fullmatch(image) for image in images):
            shown.append(one)
            left -= size
    return shown, len(pictures) - len(shown)


def _scores(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """The scores with every cell in place."""
    if not scores:
        return None
    methods: dict[str, dict[str, Any]] = {}
    for name, found in scores["methods"].items():
        row: dict[str, Any] = {key: cell(found.get(key)) for key in GAINS}
        row["grid"] = None if found.get("grid") is None else cell(found["grid"])
        row["shuffled"] = [one | {"correlation": cell(one["correlation"])} for one in found["shuffled"]]
        methods[name] = row
    return scores | {"methods": methods, "random": {key: cell(one) for key, one in scores["random"].items()}}
