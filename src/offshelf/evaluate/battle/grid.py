"""What a battle measured: a number for each backbone and setting, and the same number in paired resamples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from offshelf.errors import DataError, UsageError, near


@dataclass(frozen=True)
class Setting:
    """Task x data set x protocol (x share of labels): one column of the battle."""

    id: str
    data: str
    task: str
    protocol: str
    metric: str
    labels: str | None  # share of the labels trained on, such as "10%"; None where none are needed
    chance: float  # the metric's value by guessing
    n: int  # tested examples
    units: int  # independent groups among them; n where every example stands alone
    lower_is_better: bool = False


@dataclass(frozen=True, eq=False)
class Grid:
    """M backbones in S settings.

    Parameters
    ----------
    backbones
        M names, all different.
    settings
        S settings, their ids all different.
    values
        ``(M, S)`` mean over seeds; NaN where there is no value.
    drawn
        ``(M, S, B)`` the same number in B resamples of the test groups (and seeds). Resample b of a setting is of the
        same rows for all backbones; settings of one data set had better share their resamples too, or what they have
        in common is taken for independent. All NaN where ``values`` is; NaN where a resample leaves it undefined.

    Raises
    ------
    DataError
        Shapes that do not fit, names that repeat, or infinite numbers.
    """

    backbones: list[str]
    settings: list[Setting]
    values: np.ndarray
    drawn: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.backbones), len(self.settings))
        if not shape[0] or not shape[1]:
            raise DataError(f"grid of a battle: {shape[0]} backbones and {shape[1]} settings; at least one of each")
        if self.values.shape != shape:
            raise DataError(
                f"grid of a battle: values of shape {self.values.shape}; expected {shape}, a row a backbone"
            )
        if self.drawn.ndim != 3 or self.drawn.shape[:2] != shape or not self.drawn.shape[2]:
            raise DataError(
                f"grid of a battle: resamples of shape {self.drawn.shape}; expected {(*shape, 'B')}, B at least 1"
            )
        for what, names in (("backbone", self.backbones), ("setting", [setting.id for setting in self.settings])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f"grid of a battle: {what} {twice[0]!r} occurs twice; give each a name of its own")
        for array in (self.values, self.drawn):
            if np.isinf(array).any():
                m, s = np.argwhere(np.isinf(array))[0][:2]
                raise DataError(
                    f"grid of a battle: {self.backbones[m]!r} has an infinite number in {self.settings[s].id!r}; "
                    "leave the cell NaN where the metric is undefined"
                )

    @property
    def tasks(self) -> list[str]:
        """Task of each setting, S names."""
        return [setting.task for setting in self.settings]

    @property
    def data_sets(self) -> list[str]:
        """The different data sets, in order of first appearance."""
        return list(dict.fromkeys(setting.data for setting in self.settings))

    @property
    def examples(self) -> int:
        """Tested examples of all data sets together, each data set counted once."""
        return sum(max(s.n for s in self.settings if s.data == data) for data in self.data_sets)

    @property
    def units(self) -> int:
        """Independent groups of all data sets together, each data set counted once."""
        return sum(max(s.units for s in self.settings if s.data == data) for data in self.data_sets)

    def index(self, backbone: str) -> int:
        """Row of a backbone."""
        if backbone not in self.backbones:
            raise UsageError(f"backbone {backbone!r} is not in this battle{near(backbone, self.backbones)}")
        return self.backbones.index(backbone)

    def setting_index(self, setting: str) -> int:
        """Column of a setting, by its id."""
        ids = [s.id for s in self.settings]
        if setting not in ids:
            raise UsageError(f"setting {setting!r} is not in this battle{near(setting, ids)}")
        return ids.index(setting)

    def higher_is_better(self) -> Grid:
        """The grid with lower-is-better settings negated; the one place where signs are flipped.

        The settings of the result say that higher is better, so that flipping twice changes nothing.
        """
        sign = np.array([-1.0 if setting.lower_is_better else 1.0 for setting in self.settings])
        settings = [replace(setting, lower_is_better=False) for setting in self.settings]
        return Grid(self.backbones, settings, self.values * sign, self.drawn * sign[:, None])

    def without(self, names: Collection[str]) -> Grid:
        """The grid of the other backbones; their z-scores then are over a smaller pool."""
        kept = [m for m, name in enumerate(self.backbones) if name not in names]
        return Grid([self.backbones[m] for m in kept], self.settings, self.values[kept], self.drawn[kept])
