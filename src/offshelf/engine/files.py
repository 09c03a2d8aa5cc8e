"""Files that are either wholly there or not there: write to a sibling, fsync, replace, fsync the folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offshelf.errors import RunError

TEMPORARY = ".tmp-"  # `name.tmp-<pid>-<random>`: the process number tells whose leftovers may be swept


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write ``content`` so that ``path`` holds either its old bytes or all of the new ones, also after ``kill -9``."""
    data = content.encode("utf-8") if isinstance(content, str) else content

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            view = memoryview(data)
            while view:  # a nearly full disk may write less than asked without an exception
                view = view[os.write(handle.fileno(), view) :]
            os.fsync(handle.fileno())

    return write_through(path, fill)


def write_through(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` write a temporary sibling, then put it in the place of ``path`` in one step.

    Raises
    ------
    RunError
        When the disk is full; what stood at ``path`` before stands there still.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        fill(temporary)
        _fsync(temporary)
        os.replace(temporary, path)  # noqa: PTH105 (the name says what it does: atomic replacement)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free
            raise RunError(
                f"{path}: the disk is full ({free:,} bytes free); nothing that was there before is lost. "
                "Free some space and give the same command again."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)
    return path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems refuse fsync on a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write ``value`` as indented JSON; NaN and infinities become null, since JSON has no word for them."""
    return write_atomic(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same nested value with NaN and infinities as None and NumPy scalars as plain numbers."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a broken one is named with the place where it breaks."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path}: this file is missing; expected a complete run folder. Run the command again."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not valid JSON ({error}); the file is damaged. Restore it or run again.") from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sweep(folder: Path) -> int:
    """Remove temporary files that dead processes left in ``folder`` (not below it); return how many."""
    removed = 0
    for path in folder.glob(f".*{TEMPORARY}*"):
        owner = path.name.rsplit(TEMPORARY, 1)[1].split("-")[0]
        if owner.isdigit() and not alive(int(owner)):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
