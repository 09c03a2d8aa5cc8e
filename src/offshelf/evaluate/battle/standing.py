"""Who stands where in a battle."""

from __future__ import annotations

from typing import Any

from offshelf.evaluate.battle.grid import Grid


def standing(grid: Grid, *, seed: int = 0, allow_missing: bool = False) -> dict[str, Any]:
    """Overall and task scores with their intervals, ranks, and groups that cannot be told apart."""
    raise NotImplementedError
