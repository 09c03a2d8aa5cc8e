"""Short cuts: what a linear probe reaches when it sees no subject.

The same probe on the same folds sees whole pictures, pictures with the centre blanked, a thin border alone, and
pictures of 8 x 8 pixels. The rule is that of `offshelf.evaluate.controls.blank_centre_control`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from offshelf.data.samples import as_samples
from offshelf.evaluate.audit.finding import LEVELS, bounds, finding, not_judged
from offshelf.evaluate.audit.ground import Ground, balanced_accuracy, excess, out_of_fold
from offshelf.evaluate.audit.looks import COARSE
from offshelf.evaluate.controls import ALARM_RETAINED, blank_centre_control
from offshelf.transfer.deep_features import DeepFeatures

CENTRE, ALL_BUT_BORDER = 0.6, 0.75  # share of the surface that is blanked
MOST, SMALL = 2000, 16
HEAD = "ridge"  # eight times as quick as the logistic head, and as good within the intervals
CALLED = {  # with shares of the surface
    "whole": "whole pictures",
    "centre": "centre blanked (60 %)",
    "border": "border alone (25 %)",
    "coarse": "8 x 8 pixels",
}


def shortcuts(ground: Ground | str) -> dict[str, Any]:
    """Judge how much of a probe's lead over chance is there without the subject.

    The rule: blanked centre and border follow `blank_centre_control` (alarm when the lower bound is above
    chance and at least half of the lead over chance is kept), but an alarm whose lower bound keeps less than half is a
    warning. 8 x 8 pixels hold colour and layout, which may rightly
    tell the class; they warn, never alarm, when at least half of the lead is kept. The worst
    level counts. Pictures of at most 16 pixels are not judged, since they have no border apart from their subject, nor
    are any when the probe is no better than chance on whole pictures.
    """
    key, title = "shortcuts", "Short cuts"
    if isinstance(ground, str):
        return not_judged(key, title, ground)
    ground = ground.limited(MOST)
    headers = [ground.material.looks.headers[row] for row in ground.rows]
    side = int(np.median([min(header.width, header.height) for header in headers if header is not None]))
    if side <= SMALL:
        return not_judged(key, title, f"pictures of {side} pixels have no border apart from their subject.")
    cells = {"whole": _score(ground, ground.material.features[ground.rows])}
    for name, area in (("centre", CENTRE), ("border", ALL_BUT_BORDER)):
        cells[name] = _score(ground, _blanked(ground, area))
    cells["coarse"] = _score(ground, _coarse(ground))
    rows = [_row(name, cell, cells["whole"], ground.chance) for name, cell in cells.items()]
    about = {"rows": rows, "chance": ground.chance, "n": len(ground.rows), "backbone": ground.material.backbone}
    whole = cells["whole"]
    if whole["low"] is None or whole["low"] <= ground.chance:
        reason = f"the probe itself is no better than chance on whole pictures ({bounds(whole)}, {ground.chance:.2f})."
        return not_judged(key, title, reason, **about)
    told = rows[1:]
    level = min((row["level"] for row in told), key=LEVELS.index)
    start = f"A linear probe reaches a balanced accuracy of {bounds(whole)} (chance {ground.chance:.2f})"
    parts = ", ".join(f"{bounds(row['score'])} with {row['what']}" for row in told)
    sentence = f"{start}; {parts}."
    todo = ""
    if level == "alarm":
        first = next(row for row in told if row["level"] == "alarm")
        sentence += f" With {first['what']} {first['retained']:.0%} of its lead over chance is still there."
        todo = (
            "Look at the pictures without their centre: find the marks, letters, borders or backgrounds that tell the "
            "class, and crop or mask them before training. Test on pictures from elsewhere."
        )
    elif level == "warning":
        todo = "Test on pictures from elsewhere: part of the score comes from outside the subject, or from its colours."
    return finding(key, title, level, sentence, todo, **about)


def _score(ground: Ground, features: np.ndarray) -> dict[str, Any]:
    predicted = out_of_fold(ground, features, HEAD).predicted
    return balanced_accuracy(ground.labels, predicted, ground.units, len(ground.classes), ground.material.seed)


def _blanked(ground: Ground, area: float) -> np.ndarray:
    extractor = DeepFeatures([ground.material.backbone], blank_area=area).fit()
    return extractor.transform(ground.material.samples.take(ground.rows))


def _coarse(ground: Ground) -> np.ndarray:
    """Features of the pictures at 8 x 8 pixels, encoded anew, so that the cache knows them for what they are."""
    colour = ground.material.looks.colour[ground.rows]
    assert colour.shape[1:3] == (COARSE, COARSE)
    return DeepFeatures([ground.material.backbone]).fit().transform(as_samples(colour))


def _row(name: str, cell: dict[str, Any], whole: dict[str, Any], chance: float) -> dict[str, Any]:
    retained, level = None, "fine"
    if name in ("centre", "border"):
        area = CENTRE if name == "centre" else ALL_BUT_BORDER
        control = blank_centre_control(whole, cell, chance, area, "the probe")
        retained, level = control["retained"], control["level"]
        lead = excess(whole["value"], chance)
        if level == "alarm" and excess(cell["low"], chance) < ALARM_RETAINED * lead:
            level = "warning"
    elif name == "coarse":
        lead = excess(whole["value"], chance)
        retained = excess(cell["value"], chance) / lead if lead else None
        above = cell["low"] is not None and cell["low"] > chance
        level = "warning" if above and retained is not None and retained >= ALARM_RETAINED else "fine"
    return {"name": name, "what": CALLED[name], "score": cell, "retained": retained, "level": level}
