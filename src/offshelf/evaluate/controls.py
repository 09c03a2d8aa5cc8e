"""Controls: does a score come from the picture's subject, or from its border, scanner or source?

The middle of every picture blanked stands here; the probe that tries to read the source is in ``source_probe.py`` and
is offered here too.
"""

from __future__ import annotations

from typing import Any

from offshelf.evaluate.source_probe import source_probe

__all__ = ["blank_centre_control", "source_probe"]

# A control alarms when at least this share of what the arm knows survives without the centre.
ALARM_RETAINED = 0.5


def blank_centre_control(
    full: dict[str, Any],
    blanked: dict[str, Any],
    chance: float,
    area: float,
    arm: str,
    metric: str = "balanced accuracy",
) -> dict[str, Any]:
    """Compare an arm on whole pictures with the same arm on pictures whose centre is blanked.

    The rule, fixed beforehand: retained = (blanked - chance) / (full - chance), not below 0. Level "alarm" when the
    lower bound of the blanked score is above chance and retained is at least 0.5; "warning" when the lower bound is
    above chance, or when it has no interval and so cannot be judged; otherwise "fine". When the whole picture itself is
    no better than chance, retained is null and the level at most "warning".

    Parameters
    ----------
    full, blanked
        Metric cells of the two.
    chance
        Chance level of the metric.
    area
        Share of the picture's area that was blanked, 0 to 1.
    arm
        Name of the arm.
    metric
        What the cells hold, for the sentence.

    Returns
    -------
    control
        ``area``, ``arm``, ``full``, ``blanked``, ``chance``, ``retained``, ``level``, ``sentence``.
    """
    judged = full["value"] is not None and blanked["value"] is not None and blanked["low"] is not None
    retained = None
    if full["value"] is not None and blanked["value"] is not None and full["value"] > chance:
        retained = max(0.0, (blanked["value"] - chance) / (full["value"] - chance))
    above = judged and blanked["low"] > chance
    # The tolerance keeps exactly half an alarm in spite of rounding.
    if above and retained is not None and retained >= ALARM_RETAINED - 1e-9:
        level = "alarm"
    else:
        level = "warning" if above or not judged else "fine"
    return {
        "area": area,
        "arm": arm,
        "full": full,
        "blanked": blanked,
        "chance": chance,
        "retained": retained,
        "level": level,
        "sentence": _sentence(full, blanked, chance, area, arm, metric, retained, level, judged),
    }


def _sentence(
    full: dict[str, Any],
    blanked: dict[str, Any],
    chance: float,
    area: float,
    arm: str,
    metric: str,
    retained: float | None,
    level: str,
    judged: bool,
) -> str:
    """What the control says, with its numbers."""
    start = f"With the central {area:.0%} of every picture blanked, {arm}"
    if not judged:
        return f"{start} has no {metric} with an interval, so this control cannot be judged."
    numbers = (
        f"reaches a {metric} of {blanked['value']:.3f} [{blanked['low']:.3f}, {blanked['high']:.3f}] on "
        f"{blanked['n']} pictures, against {full['value']:.3f} on whole pictures (chance {chance:.3f})"
    )
    if level == "alarm":
        return (
            f"{start} still {numbers}: {retained:.0%} of its lead over chance is there without the centre, so the "
            "score may rest on borders, markers, scanner or source rather than on the subject."
        )
    if level == "warning":
        share = "" if retained is None else f"; {retained:.0%} of its lead over chance is there without the centre"
        return f"{start} {numbers}{share}: part of the score does not come from the middle of the picture."
    return f"{start} {numbers}: no better than chance, as it should be when the subject is in the middle."
