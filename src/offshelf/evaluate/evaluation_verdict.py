"""What the numbers of an evaluation say, in plain sentences."""

from __future__ import annotations

from typing import Any

from offshelf.evaluate.verdict import defined, shown

CALLED = {"real": "ReaL", "variable_top_k": "variable top-k"}
SAME = 1e-9


def sentences(results: dict[str, Any]) -> list[str]:
    """What the numbers say, most important first."""
    found = _label_set_sentences(results) if "multilabel" in results else _one_label_sentences(results)
    data, evaluated = results["data"], results["evaluated"]
    if data["fingerprint"] == evaluated["fingerprint"]:
        found.append(
            "These are, byte for byte, the pictures and labels that the run was made from: it has trained on them, and "
            "the numbers say nothing about new ones."
        )
    if data["bad_files"]:
        found.append(f"{len(data['bad_files'])} of {data['n']} pictures could not be read and were left out.")
    if data["unlabelled"]:
        found.append(f"{data['unlabelled']} pictures do not say what is right for them and were left out.")
    if data["groups"] is None:
        found.append(
            "No group column: if several pictures come from one patient or site, the intervals are too narrow."
        )
    return found


def _one_label_sentences(results: dict[str, Any]) -> list[str]:
    score, chance = results["metrics"]["balanced_accuracy"], results["baselines"]["chance"]
    text = f"Balanced accuracy {shown(score)} on {score['n']} pictures (chance {chance:.3f})."
    if not defined(score["low"]):
        text += " Too few pictures of a class for an interval: do not rely on this number."
    elif score["low"] <= chance:
        text += " This cannot be told from chance."
    own = results["evaluated"]["balanced_accuracy"]
    found = [text]
    if own is not None and defined(own["value"]):
        found.append(f"On the pictures that the run itself was tested on: {shown(own)}.")
    absent = [text for text, n in results["data"]["class_counts"].items() if not n]
    if absent:
        found.append(f"No picture of {', '.join(absent[:10])}{' and others' if len(absent) > 10 else ''}.")
    return found


def _label_set_sentences(results: dict[str, Any]) -> list[str]:
    told = results["multilabel"]
    cells = {row["metric"]: row for row in told["rows"] if row["k"] is None}
    several = told["n"] - told["label_counts"].get("1", 0)
    share = several / told["n"]
    found = []
    if defined(cells["top_1"]["value"]):
        found.append(
            f"Against the one label, top-1 is {shown(cells['top_1'])}; any valid label counted, {shown(cells['real'])}."
        )
    else:
        found.append(
            f"The first answer is a valid label at a rate of {shown(cells['real'])}; there is no one label for top-1."
        )
    found.append(
        f"{several} of {told['n']} pictures ({share:.0%}) have several valid labels. Of a picture's k valid labels the "
        f"first k answers hold {shown(cells['variable_top_k'])}."
    )
    if told["empty"]:
        found.append(f"{told['empty']} pictures have no valid label at all and count nowhere.")
    against = results.get("against")
    if against:
        found[1:1] = _against_sentences(against, results["data"]["source"])
    return found


def _against_sentences(against: dict[str, Any], of: str) -> list[str]:
    name, falls = against["data"]["source"], against["drops"]
    metric = "top_1" if "top_1" in against["decomposition"] else "real"
    split = against["decomposition"][metric]
    said = "Top-1" if metric == "top_1" else "ReaL accuracy"
    text = f"{said} is {shown_drop(split['drop'])} on {name}."
    share = split["composition_share"]
    if defined(share["low"]):
        text += (
            f" Other shares of pictures with one, two, ... valid labels make up {shown(share)} of that (1 is all of "
            f"it); with the shares of {of} it would be {shown(split['reweighted'])} there."
        )
    else:
        text += " That cannot be told from no change."
    more = "; ".join(f"{label} is {shown_drop(falls[key])}" for key, label in CALLED.items() if key != metric)
    return [text, f"On the same two sets {more}."]


def shown_drop(cell: dict[str, Any]) -> str:
    """``0.104 [0.081, 0.130] lower``, higher where the drop is below 0, or that it is the same."""
    if abs(cell["value"]) < SAME:
        return "the same"
    if cell["value"] > 0:
        return f"{shown(cell)} lower"
    turned = {"value": -cell["value"], "low": None, "high": None}
    if defined(cell["low"]):
        turned |= {"low": -cell["high"], "high": -cell["low"]}
    return f"{shown(turned)} higher"
