import pytest

from offshelf.evaluate.controls import blank_centre_control


def cell(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 90, "interval": "bootstrap" if low is not None else "none"}


FULL = cell(0.9, 0.85, 0.95)


@pytest.mark.parametrize(
    ("blanked", "level", "retained"),
    [
        (cell(0.8, 0.7, 0.9), "alarm", 0.75),
        (cell(0.7, 0.6, 0.8), "alarm", 0.5),
        (cell(0.6, 0.51, 0.7), "warning", 0.25),
        (cell(0.8, 0.49, 0.9), "fine", 0.75),
        (cell(0.45, 0.35, 0.55), "fine", 0.0),
        (cell(0.8, None, None), "warning", 0.75),
    ],
)
def test_rule(blanked, level, retained):
    control = blank_centre_control(FULL, blanked, 0.5, 0.6, "deep + svm-rbf")
    assert control["level"] == level
    assert control["retained"] == pytest.approx(retained)
    assert (control["area"], control["arm"], control["full"], control["blanked"]) == (
        0.6,
        "deep + svm-rbf",
        FULL,
        blanked,
    )
    assert "central 60%" in control["sentence"]
    assert "deep + svm-rbf" in control["sentence"]


def test_sentence_carries_the_numbers():
    sentence = blank_centre_control(FULL, cell(0.8, 0.7, 0.9), 0.5, 0.6, "x")["sentence"]
    for part in ("0.800 [0.700, 0.900] on 90 pictures", "against 0.900", "chance 0.500", "75%"):
        assert part in sentence


def test_an_arm_at_chance_retains_nothing_that_can_be_shared():
    control = blank_centre_control(cell(0.5, 0.4, 0.6), cell(0.6, 0.55, 0.65), 0.5, 0.6, "x")
    assert (control["retained"], control["level"]) == (None, "warning")
    assert blank_centre_control(cell(0.4, 0.3, 0.5), cell(0.5, 0.4, 0.6), 0.5, 0.6, "x")["level"] == "fine"
