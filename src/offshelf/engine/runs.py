"""A run is a folder: what was asked, what came out, and the proof that nothing was changed since.

``run.json`` is written first ("running") and last ("complete", with the SHA-256 of every other file). It is all that
later verbs read; they `open` it, which checks the hashes, and refuse what executes code.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from offshelf.engine.files import alive, finite, read_json, sha256_file, sweep, write_json
from offshelf.errors import RunError, UsageError

FORMAT = 1
# Files that a later verb may read from a run. A pickle has no place here, whatever it is called.
TABLES = {".json", ".jsonl", ".parquet", ".sqlite", ".csv", ".txt"}
SUFFIXES = {*TABLES, ".html", ".svg", ".png", ".safetensors", ".skops"}
PACKAGES = (
    "offshelf",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "scikit-learn",
    "numpy",
    "pyarrow",
    "datasets",
    "skops",
    "pillow",
)


class Run:
    """One run folder. Make one with `Run.create`, read one with `Run.open`."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self._clock = time.perf_counter()

    @classmethod
    def create(cls, folder: Path, verb: str, arguments: dict[str, Any], seed: int, overwrite: bool = False) -> Run:
        """Claim ``folder`` for a new run.

        Raises
        ------
        UsageError
            When the folder holds something that is not a run of the same verb, or a finished run while ``overwrite``
            is off; nothing is deleted in either case.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made ({error.strerror}). Name another folder with --out.") from error
        if any(folder.iterdir()):
            _may_replace(folder, verb, overwrite)
            for name in read_json(folder / "run.json").get("files", {}):
                (folder / name).unlink(missing_ok=True)  # an old model must not stand beside a new report
        sweep(folder)
        record = {
            "format": FORMAT,
            "verb": verb,
            "command": command_line(),
            "arguments": arguments,
            "versions": versions(),
            "seed": seed,
            "status": "running",
            "process": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }
        write_json(folder / "run.json", record)
        return cls(folder, record)

    @staticmethod
    def reopen(folder: Path, verb: str) -> None:
        """Unseal a complete run of ``verb``, so that `create` goes on with what its folder holds.

        Raises
        ------
        UsageError
            When the folder holds a run of another verb.
        """
        record = read_json(folder / "run.json")
        if record.get("verb") != verb:
            raise UsageError(
                f"{folder}: holds a run of `offshelf {record.get('verb')}`, not of {verb}; nothing was touched."
            )
        if record.get("status") == "complete":
            write_json(folder / "run.json", {**record, "status": "reopened", "files": {}})

    def note(self, **extra: Any) -> None:
        """Add to the record of a run that is still going, for the report to read."""
        self.record |= extra
        write_json(self.folder / "run.json", self.record)

    def finish(self, **extra: Any) -> None:
        """Seal the run: hash every file, then say "complete"."""
        files = {
            path.relative_to(self.folder).as_posix(): sha256_file(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != "run.json" and not path.name.startswith(".")
        }
        self.record.pop("process", None)
        self.record |= {
            "status": "complete",
            "seconds": round(time.perf_counter() - self._clock, 2),
            **extra,
            "files": files,
        }
        write_json(self.folder / "run.json", self.record)

    def pause(self, status: str, **extra: Any) -> None:
        """Note that the run ended early, as ``status`` ("stopped", "collapsed", ...) says; it can be gone on with."""
        self.record.pop("process", None)
        self.record |= {"status": status, "seconds": round(time.perf_counter() - self._clock, 2), **extra}
        write_json(self.folder / "run.json", self.record)

    def fail(self, reason: str) -> None:
        """Note why the run did not finish; what it wrote so far stays."""
        self.record.pop("process", None)
        write_json(self.folder / "run.json", self.record | {"status": "failed", "reason": reason})

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Open a complete run and check every file it seals against its hash.

        Raises
        ------
        RunError
            Naming the file that is missing, was changed, or is of a kind that has no place in a run.
        """
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise RunError(f"{folder}: not a run folder (no run.json). Give the folder that fit or finetune wrote.")
        record = read_json(folder / "run.json")
        again = f"run again: {record.get('command', '')}"
        if record.get("format") != FORMAT:
            found = record.get("format")
            raise RunError(f"{folder}: run format {found!r}, expected {FORMAT}. Use the offshelf that wrote it.")
        if record.get("status") != "complete":
            raise RunError(f"{folder}: the run is {record.get('status', 'unfinished')}, not complete; {again}")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in SUFFIXES and not path.name.startswith("."):
                kind = path.suffix or "nameless"
                raise RunError(f"{path}: a {kind} file has no place in a run and is not read; remove it.")
        for name, expected in record.get("files", {}).items():
            path = folder / name
            if not path.is_file():
                raise RunError(f"{path}: sealed in run.json, but missing. Restore it or {again}")
            if sha256_file(path) != expected:
                raise RunError(
                    f"{path}: changed since the run was written (its SHA-256 differs). Restore it or {again}"
                )
        return cls(folder, record)


def _may_replace(folder: Path, verb: str, overwrite: bool) -> None:
    what = "files that are not a run"
    if (folder / "run.json").is_file():
        record = read_json(folder / "run.json")
        owner = record.get("process")
        if record.get("status") == "running" and owner not in (None, os.getpid()) and alive(int(owner)):
            raise UsageError(
                f"{folder}: process {owner} has been writing this run since {record.get('started')}; "
                "nothing was touched. Wait for it, or name another folder with --out."
            )
        if record.get("verb") == verb and (overwrite or record.get("status") != "complete"):
            return
        done = "a complete run" if record.get("verb") == verb else f"a run of `offshelf {record.get('verb')}`"
        what = done + (" (--overwrite replaces it)" if record.get("verb") == verb else "")
    raise UsageError(f"{folder}: holds {what}; nothing was touched. Name another folder with --out.")


def new_run_folder(verb: str, source: str) -> Path:
    """``runs/<verb>-<source>``, numbered when taken; made at once so that two commands never share one."""
    name = new_name(verb, source)
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UsageError("runs/: ten thousand runs of this name; name a folder with --out.")


def unfinished(verb: str, source: str, arguments: dict[str, Any]) -> Path | None:
    """The newest folder below ``runs/`` in which an equal command was begun and is not complete, if there is one."""
    stem = new_name(verb, source)
    for folder in sorted(Path("runs").glob(f"{stem}*"), key=lambda path: path.stat().st_mtime, reverse=True):
        if re.fullmatch(re.escape(stem) + r"(-\d+)?", folder.name) and (folder / "run.json").is_file():
            record = read_json(folder / "run.json")
            same = record.get("verb") == verb and record.get("arguments") == finite(arguments)
            if same and record.get("status") != "complete":
                return folder
    return None


def new_name(verb: str, source: str) -> str:
    """``<verb>-<source>`` with the characters that every file system takes."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(source).stem or source).strip("-") or "data"
    return f"{verb}-{stem}"


def command_line() -> str:
    """The command as typed, quoted for a shell; from Python, the interpreter's script."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([program, *sys.argv[1:]]) if program == "offshelf" else f"offshelf (from Python, {program})"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """What the run ran on: processor, cores, system; no host or user names."""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
