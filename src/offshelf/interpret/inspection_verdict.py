"""What an inspection found, in a few numbers a network and in sentences."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from offshelf.interpret.filter_quality import FEWEST, LOW, RANDOM_LIKE, SPARSE

FLAGS = {
    SPARSE: "sparse (a quarter of the filters or more do nothing)",
    LOW: "of low diversity (the filters are nearly all of one shape)",
    RANDOM_LIKE: "like random ones (nothing tells the filters from an untrained draw)",
}
NAMED = 4  # networks in one sentence


def summary_of(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A network's layers in a few numbers; None where nothing is defined."""
    flags = Counter(flag for row in layers for flag in row["flags"])
    return {
        "layers": len(layers),
        "filters": sum(row["n"] for row in layers),
        "degenerate": sum(bool(row["flags"]) for row in layers),
        "flags": {flag: flags[flag] for flag in FLAGS},
        "judged": sum(row["relative_entropy"] is not None for row in layers),
        **{key: _median(layers, key) for key in ("sparsity", "relative_entropy", "orthogonality")},
    }


def _median(layers: list[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in layers if row[key] is not None and row[key] == row[key]]  # NaN is no number
    return statistics.median(known) if known else None


def verdict(
    networks: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    axes: list[dict[str, Any]],
    left_out: list[dict[str, str]],
) -> list[str]:
    """What was found, in sentences; the first one is the whole in short."""
    said = _degenerate(networks, layers) if layers else []
    unjudged = sum(row["relative_entropy"] is None for row in layers)
    if unjudged:
        said.append(
            f"For {unjudged} layer{'s' * (unjudged > 1)} diversity and randomness are not judged: the threshold is one "
            f"of 3 × 3 kernels and of {FEWEST} filters or more."
        )
    medians = {axis["axis"]: axis["median"] for axis in axes if axis["median"] is not None}
    if medians:
        told = "; ".join(f"{name} {value:.3f}" for name, value in medians.items())
        said.append(f"Median shift between groups of 10,000 filters or more: {told}.")
    elif axes:
        said.append(
            "No group has 10,000 filters: the shifts are in large part chance. Hold them against those between the two "
            "halves of each network, or look at larger networks."
        )
    if left_out:
        said.append(f"Left out: {', '.join(one['label'] for one in left_out)}; the reasons stand below.")
    return said or ["There were no filters to look at; what else was found stands below."]


def _degenerate(networks: list[dict[str, Any]], layers: list[dict[str, Any]]) -> list[str]:
    bad = [row for row in layers if row["flags"]]
    with_layers = sum(one["layers"] > 0 for one in networks)
    whose = f"{with_layers} networks" if with_layers > 1 else "the network"
    of = f"{len(layers)} layer{'s' * (len(layers) > 1)} of {whose}"
    if not bad:
        return [f"None of the {of} looks degenerate."]
    said = [f"{len(bad)} of the {of} look{'s' * (len(bad) == 1)} degenerate."]
    for flag, words in FLAGS.items():
        own = Counter(row["network"] for row in bad if flag in row["flags"])
        if own:
            named = ", ".join(f"{n} in {name}" for name, n in own.most_common(NAMED))
            rest = f", others in {len(own) - NAMED} more networks" if len(own) > NAMED else ""
            said.append(f"{own.total()} {'is' if own.total() == 1 else 'are'} {words}: {named}{rest}.")
    return said
