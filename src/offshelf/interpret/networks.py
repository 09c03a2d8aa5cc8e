"""Which networks to look at, and what is known of each: names, folders, runs, tables of networks, and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offshelf.backbones.embedded import EMBEDDED
from offshelf.backbones.names import Source, resolve
from offshelf.data.tables import TABLES, read_table
from offshelf.engine.files import read_json
from offshelf.errors import UsageError, near

EMBEDDED_WORD, RUNS_WORD = "embedded", "runs"
COLUMN = "network"


@dataclass(frozen=True)
class Network:
    """One network to look at: what `load_backbone` takes, what it is called, and what is known of its training."""

    name: str
    label: str
    facts: dict[str, str] = field(default_factory=dict)


def networks_of(words: Sequence[str], groups: Sequence[str] = ()) -> list[Network]:
    """Networks from what was typed: names, folders, runs, tables; ``embedded`` for those that come with the package.

    Parameters
    ----------
    words
        Anything `load_backbone` takes; ``embedded``; ``runs``, all finished runs below ``runs/`` that hold a network; a
        table (CSV, TSV, JSON lines, Parquet) with a column ``network`` and others that say what is known of each.
    groups
        ``NAME=NETWORK,NETWORK``: what belongs together; these networks are looked at whether named before or not.

    Raises
    ------
    UsageError
        For a table without that column, or a group that is not written so.
    BackboneError
        For names that lead nowhere.
    """
    found: dict[str, dict[str, str]] = {}
    for word in words:
        for name, facts in _expanded(word):
            found[name] = found.get(name, {}) | facts
    for text in groups:
        group, equals, members = text.partition("=")
        names = [name.strip() for name in members.split(",") if name.strip()]
        if not equals or not group.strip() or not names:
            raise UsageError(f"--group {text}: expected NAME=NETWORK,NETWORK,... such as medical=runs/a,runs/b")
        for name in names:
            if found.get(name, {}).get("group", group.strip()) != group.strip():
                raise UsageError(f"--group {text}: {name} is in the group {found[name]['group']!r} already.")
            found[name] = found.get(name, {}) | {"group": group.strip()}
    sources = {name: resolve(name) for name in found}
    short = {name: _short(source) for name, source in sources.items()}
    labels = {name: text if list(short.values()).count(text) == 1 else name for name, text in short.items()}
    return [Network(name, labels[name], _known(sources[name]) | facts) for name, facts in found.items()]


def _expanded(word: str) -> list[tuple[str, dict[str, str]]]:
    if word == EMBEDDED_WORD and not Path(word).is_dir():
        return [(name, {}) for name in EMBEDDED]
    if word == RUNS_WORD and not (Path(word) / "run.json").is_file():
        folders = [path.parent.parent for path in sorted(Path(word).glob("*/model/config.json"))]
        if not folders:
            raise UsageError(
                "runs: no run below runs/ holds a network; expected one of pretrain or finetune. Name networks, or "
                f"leave the names out to look at the {len(EMBEDDED)} that come with the package."
            )
        return [(_as_path(path), {}) for path in folders]
    if word.lower().endswith(TABLES):
        return _table(Path(word))
    return [(word, {})]


def _table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Rows of a table of networks; folders are looked for beside the table."""
    rows: list[dict[str, Any]] = read_table(path).to_list()
    columns = list(rows[0]) if rows else []
    if COLUMN not in columns:
        raise UsageError(
            f"{path}: no column {COLUMN!r} that names the networks{near(COLUMN, columns)}; it has "
            f"{', '.join(columns) or 'no rows'}."
        )
    named = []
    for number, row in enumerate(rows, start=1):
        name = str(row.pop(COLUMN) or "").strip()
        if not name:
            raise UsageError(f"{path}: row {number} names no network; expected a name or a folder in {COLUMN!r}.")
        beside = path.parent / name
        facts = {key: str(value) for key, value in row.items() if value not in (None, "")}
        named.append((_as_path(beside) if beside.is_dir() else name, facts))
    return named


def _as_path(path: Path) -> str:
    """A path written so that it cannot be taken for a name."""
    return path.as_posix() if path.is_absolute() else f"./{path.as_posix()}"


def _short(source: Source) -> str:
    """What a network is called in tables: the folder's name, or the name as it is."""
    if source.kind in ("folder", "run"):
        folder = source.folder.parent if source.kind == "run" else source.folder
        return folder.resolve().name
    return source.name


def _known(source: Source) -> dict[str, str]:
    """What a name or a run says of the training: the method, and the data."""
    if source.kind == "random":
        return {"method": "none", "data": "none"}
    if source.kind == "embedded":
        _, method, data = source.name.partition(".")[2].split("_", 2)
        return {"method": method, "data": data}
    if source.kind != "run":
        return {}
    run = source.folder.parent
    record = read_json(run / "run.json")
    facts = {"method": str((record.get("arguments") or {}).get("method") or record.get("verb") or "unknown")}
    results = read_json(run / "results.json") if (run / "results.json").is_file() else {}
    data = str((results.get("data") or {}).get("source") or "")
    return facts | ({"data": Path(data).name or data} if data else {})
