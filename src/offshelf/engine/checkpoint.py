"""Checkpoints of a training: written whole or not at all, checked when read, the last two kept.

A file's name carries its step and the start of its own SHA-256, so a damaged one is noticed and the one before is
taken. Read with ``weights_only=True``: nothing in a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

from offshelf.engine.files import sweep, write_atomic
from offshelf.errors import RunError

KEPT = 2
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The checkpoints in one folder.

    Parameters
    ----------
    folder : Path
    identity : dict
        What the training's result depends on (method, settings, data, seed, batch, ...), plain values. A checkpoint of
        another identity is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.identity = identity

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` steps, then remove all but the last two."""
        import torch

        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "step": step, "state": state}, buffer)
        content = buffer.getvalue()
        path = self.folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        write_atomic(path, content)
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that is whole, as ``{"step", "state"}``, and a sentence for each damaged one.

        Raises
        ------
        RunError
            When checkpoints are there but belong to another training, naming what differs; or when none is whole.
        """
        sweep(self.folder)
        damaged: list[str] = []
        files = self._files()
        for path in reversed(files):
            found = self._read(path)
            if isinstance(found, str):
                damaged.append(found)
                continue
            self._check(path, found["identity"])
            return found, damaged
        if files:
            raise RunError(
                f"{self.folder}: none of {len(files)} checkpoints is whole ({'; '.join(damaged)}). Restore one, or "
                "start anew with --overwrite."
            )
        return None, damaged

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))

    def _read(self, path: Path) -> dict[str, Any] | str:
        import torch

        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        assert match is not None  # _files lists no others
        if hashlib.sha256(content).hexdigest()[:16] != match[2]:
            return f"{path.name} is damaged or cut short (its SHA-256 differs from its name)"
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")

    def _check(self, path: Path, theirs: dict[str, Any]) -> None:
        differing = [
            f"{key} was {theirs.get(key)!r} and is now {self.identity.get(key)!r}"
            for key in sorted(theirs.keys() | self.identity.keys())
            if theirs.get(key) != self.identity.get(key)
        ]
        if differing:
            raise RunError(
                f"{path}: belongs to another training: {'; '.join(differing)}. Give the same command and data to go "
                "on, another folder with --out, or --overwrite to start anew."
            )
