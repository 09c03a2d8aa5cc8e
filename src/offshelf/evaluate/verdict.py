"""What the numbers say, in plain sentences; the rules are here and nowhere else."""

from __future__ import annotations

from typing import Any

CALLED = {"balanced_accuracy": "balanced accuracy", "macro_auroc": "mean AUROC"}


def sentences(results: dict[str, Any]) -> list[str]:
    """The verdict at the top of a report, most important first."""
    parts = (_best, _labels_left_out, _fewer_labels, _ties, _controls, _retrieval, _data, _backbones)
    return [sentence for part in parts for sentence in part(results)]


def _best(results: dict[str, Any]) -> list[str]:
    arm = next(arm for arm in results["arms"] if arm["name"] == results["best"])
    metric = results.get("primary_metric") or "balanced_accuracy"
    score, chance = arm["metrics"][metric], results["baselines"]["chance"]
    text = f"Best: {results['best']}, {CALLED[metric]} {shown(score)} on {score['n']} pictures (chance {chance:.3f})."
    if not defined(score["low"]):
        text += " Too few pictures of a class for an interval: do not rely on this number."
    elif score["low"] <= chance:
        text += " This cannot be told from chance."
    selected = results.get("selected")
    if selected and selected["arms"] > 1 and defined(selected["value"]):
        text += f" Corrected for choosing among {selected['arms']} on the same pictures: {shown(selected)}."
    return [text]


def _labels_left_out(results: dict[str, Any]) -> list[str]:
    left_out = (results.get("multi_label") or {}).get("left_out") or {}
    if not left_out:
        return []
    named = "; ".join(f"{name} ({why})" for name, why in left_out.items())
    return [f"Not in the mean: {named}."]


def _fewer_labels(results: dict[str, Any]) -> list[str]:
    curve = results.get("label_efficiency")
    if not curve:
        return []
    metric, points = curve["metric"], curve["points"]
    first, last = points[0], points[-1]
    few, many = (
        f"with {point['said']} ({point['n']} pictures) {shown(point['metrics'][metric])}" for point in (first, last)
    )
    seeds = len(curve["seeds"])
    name = CALLED[metric][0].upper() + CALLED[metric][1:]
    found = [f"{name}: {few}, {many}; {f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}."]
    gain, before = last["gain"], points[-2]
    if defined(gain["low"]):
        step = f"From {before['n']} to {last['n']} labelled pictures: {gain['value']:+.3f} [{gain['low']:+.3f}, "
        step += f"{gain['high']:+.3f}]. "
        if gain["low"] > 0:
            step += "More labels were still helping."
        elif gain["high"] < 0:
            step += "More labels made it worse: look at the labels and the settings."
        else:
            step += "Whether the last labels helped cannot be told."
        found.append(step)
    return found


def shown(cell: dict[str, Any]) -> str:
    """``0.912 [0.871, 0.946]``; without bounds where there are none, and "not defined" without a value."""
    if not defined(cell["value"]):
        return "not defined"
    if not defined(cell["low"]):
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def defined(value: float | None) -> bool:
    """Whether a number is there; null and NaN are not."""
    return value is not None and value == value


def _ties(results: dict[str, Any]) -> list[str]:
    first = results["tie_groups"][0] if results["tie_groups"] else []
    others = [name for name in first if name != results["best"]]
    if not others:
        return []
    return [f"On this data it cannot be told apart from {', '.join(others)}."]


def _controls(results: dict[str, Any]) -> list[str]:
    return [control["sentence"] for control in results["controls"].values() if control and control["level"] != "fine"]


def _retrieval(results: dict[str, Any]) -> list[str]:
    found = results.get("retrieval")
    if not found:
        return []
    hit = found["hit_at_1"]
    return [
        f"The most similar other picture is of the same class at a rate of {shown(hit)} (chance {found['chance']:.3f})."
    ]


def _data(results: dict[str, Any]) -> list[str]:
    data, found = results["data"], []
    across = [twin for twin in data["duplicates"] if len(set(twin["splits"])) > 1]
    if across:
        found.append(
            f"{len(across)} pictures stand in more than one split, byte for byte: "
            "the score counts pictures that were trained on."
        )
    conflicting = [twin for twin in data["duplicates"] if len(set(twin["labels"])) > 1]
    if conflicting:
        found.append(f"{len(conflicting)} pictures stand under two different labels.")
    if data["bad_files"]:
        found.append(f"{len(data['bad_files'])} of {data['n']} pictures could not be read and were left out.")
    if data["unlabelled"]:
        found.append(f"{data['unlabelled']} pictures have no label and were left out.")
    if data["groups"] is None:
        found.append("No group column: if several pictures come from one patient or site, the score is too high.")
    return found


def _backbones(results: dict[str, Any]) -> list[str]:
    random = [card["name"] for card in results["backbones"] if card["weights"] == "random"]
    if not random:
        return []
    if len(random) == len(results["backbones"]):
        return ["All backbones have random weights: nothing here was learnt from other data."]
    return [f"{len(random)} of {len(results['backbones'])} backbones have random weights: {', '.join(random)}."]
