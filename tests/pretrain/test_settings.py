"""Settings as words: typed, and refused with near names."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from offshelf.errors import UsageError
from offshelf.pretrain.settings import all_settings, settings_of


class Method:
    def __init__(
        self,
        backbone: Any,
        image_size: int,
        *,
        mask_ratio: float = 0.6,
        depth: int = 2,
        crop: tuple[float, float] = (0.2, 1.0),
        pixels: bool = False,
        kind: Literal["a", "b"] = "a",
        width: int | None = None,
    ) -> None: ...


def test_words_become_values_of_the_annotated_type() -> None:
    words = ["mask_ratio=1", "depth=3", "crop=0.5,1", "pixels=true", "kind=b", "width=none"]
    found = settings_of(Method, words)
    assert found == {
        "mask_ratio": 1.0, "depth": 3, "crop": (0.5, 1.0), "pixels": True, "kind": "b", "width": None,
    }  # fmt: skip
    assert isinstance(found["mask_ratio"], float)
    assert settings_of(Method, {"mask_ratio": 0.75, "crop": [0.3, 1]}) == {"mask_ratio": 0.75, "crop": (0.3, 1.0)}
    assert settings_of(Method, ["width=7"]) == {"width": 7}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mask_ration=0.5", "no such setting; did you mean 'mask_ratio'"),
        ("image_size=3", "It has: mask_ratio=0.6, depth=2"),
        ("depth=2.5", "depth=2.5: expected a whole number"),
        ("depth=true", "expected a whole number"),
        ("mask_ratio=much", "expected a number"),
        ("pixels=1", "expected true or false"),
        ("kind=c", "expected one of a, b"),
        ("crop=0.5", "expected 2 values"),
        ("mask_ratio", "expected a setting as name=value"),
    ],
)
def test_wrong_words_are_refused(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settings_of(Method, [word])


def test_all_settings_are_the_defaults_with_what_was_asked() -> None:
    assert all_settings(Method, {"depth": 9})["depth"] == 9
    assert list(all_settings(Method, {})) == ["mask_ratio", "depth", "crop", "pixels", "kind", "width"]
