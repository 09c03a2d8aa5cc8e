"""Which settings fine-tuning takes, and what it says of others."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from offshelf.errors import UsageError

Rule = tuple[Callable[[Any], bool], str]

WHOLE: Rule = (lambda v: isinstance(v, int | np.integer) and bool(v >= 1), "a whole number, 1 or more")
ABOVE_0: Rule = (lambda v: 0 < v < float("inf"), "a number above 0")
FROM_0: Rule = (lambda v: 0 <= v < float("inf"), "0 or more")
SHARE: Rule = (lambda v: 0 <= v < 1, "from 0 to below 1")
INSIDE: Rule = (lambda v: 0 < v < 1, "between 0 and 1")
FACTOR: Rule = (lambda v: 0 < v <= 1, "above 0 and at most 1")

RULES: dict[str, Rule] = {
    "image_size": WHOLE,
    "epochs": WHOLE,
    "batch_size": WHOLE,
    "learning_rate": ABOVE_0,
    "trunk_scale": FROM_0,
    "weight_decay": FROM_0,
    "label_smoothing": SHARE,
    "shift": SHARE,
    "warm_head": SHARE,
    "drop_path": SHARE,
    "mixup": FROM_0,
    "cutmix": FROM_0,
    "rotation": (lambda v: 0 <= v <= 180, "from 0 to 180 degrees"),
    "scale": SHARE,
    "translation": SHARE,
    "validation_share": INSIDE,
}
OPTIONAL: dict[str, Rule] = {
    "store_size": WHOLE,
    "layer_decay": FACTOR,
    "crop": FACTOR,
    "average": INSIDE,
    "early_stopping": WHOLE,
    "head_std": ABOVE_0,
    "b_cos": (lambda v: 1 <= v < float("inf"), "1 or more"),
}


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse the first setting that is out of its range.

    Raises
    ------
    UsageError
        Naming the setting, its value and what was expected.
    """
    for name, (fits, words) in (RULES | OPTIONAL).items():
        value = settings[name]
        if value is None and name in OPTIONAL:
            continue
        if not isinstance(value, Real) or not fits(value):
            without = ", or None" if name in OPTIONAL else ""
            raise UsageError(f"{name}={value!r}: expected {words}{without}.")
    if settings["precision"] not in ("auto", "bf16", "fp32"):
        raise UsageError(f"precision={settings['precision']!r}: expected 'auto', 'bf16' or 'fp32'.")
    if settings["balanced"] and settings["multi_label"]:
        raise UsageError("balanced=True with multi_label=True: expected one class a picture; leave one of the two out.")
    if settings["rand_augment"] is not None:
        _check_rand_augment(settings["rand_augment"])


def _check_rand_augment(recipe: Any) -> None:
    from timm.data.auto_augment import rand_augment_transform

    try:
        rand_augment_transform(recipe, {})
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"rand_augment={recipe!r}: timm cannot read it ({error or type(error).__name__}); expected a text such as "
            "'rand-m6-mstd0.5-inc1', or None."
        ) from error
