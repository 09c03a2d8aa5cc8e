"""The feature cache: rows of numbers on disk, found by the content they were computed from.

A *space* is one way of computing (weights, transform, read-out, route); a *key* is the SHA-256 of an image's bytes.
A space is a folder of shards, each a safetensors file with ``keys (n, 32) uint8`` and ``values (n, d) float32``:

    <root>/v1/<space hash>/space.json
    <root>/v1/<space hash>/<random>.safetensors

Shards appear whole or not at all, and are never changed, so that a killed run loses at most the shard it was filling,
and two processes may fill one space at once: both rows are right, and either may be read. The format's version is a
part of the path: another version's cache is never read, and nothing in a space can go stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offshelf.engine.files import read_json, sweep, write_json, write_through
from offshelf.errors import RunError

if TYPE_CHECKING:
    import numpy as np

VERSION = "v1"


def cache_root() -> Path:
    """Where features are kept: ``OFFSHELF_CACHE`` when set, else the user's cache folder."""
    named = os.environ.get("OFFSHELF_CACHE")
    if named:
        return Path(named).expanduser() / "features"
    import platformdirs

    return Path(platformdirs.user_cache_dir("offshelf")) / "features"


class FeatureCache:
    """Rows of ``width`` float32 numbers of one space, keyed by content.

    Parameters
    ----------
    space : dict
        Everything the numbers depend on besides the image; JSON-able. Its hash names the folder.
    width : int
        Numbers a row.
    root : Path, optional
        Where spaces are kept; `cache_root` by default.
    """

    def __init__(self, space: dict[str, Any], width: int, root: Path | None = None) -> None:
        self.space = {**space, "width": width}
        self.width = width
        name = hashlib.sha256(json.dumps(self.space, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = (root or cache_root()) / VERSION / name
        self.damaged: list[Path] = []
        self._shards: list[Path] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        self._lock = threading.Lock()
        if not (self.folder / "space.json").exists():
            write_json(self.folder / "space.json", self.space)
        elif read_json(self.folder / "space.json") != json.loads(json.dumps(self.space)):
            raise RunError(
                f"{self.folder / 'space.json'}: describes other features than its folder's name. Delete {self.folder}."
            )
        sweep(self.folder)
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that other processes have finished since; set damaged ones aside as ``*.damaged``."""
        known = set(self._shards)
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in known:
                self._index(path)

    def _index(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as shard:
                keys = shard.get_tensor("keys")
                shape = tuple(shard.get_slice("values").get_shape())
        except FileNotFoundError:
            return  # another process set it aside between the listing and now
        except (SafetensorError, OSError, ValueError):
            keys, shape = None, ()
        if keys is None or keys.shape != (len(keys), 32) or shape != (len(keys), self.width):
            path.replace(path.with_suffix(".damaged"))  # its rows are computed again; the file stays for a look
            self.damaged.append(path.with_suffix(".damaged"))
            return
        number = len(self._shards)
        self._shards.append(path)
        for row, key in enumerate(keys):
            self._place.setdefault(key.tobytes(), (number, row))

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def put(self, keys: list[bytes], values: np.ndarray) -> None:
        """Add one shard: ``keys`` of 32 bytes, ``values (n, width)``.

        Raises
        ------
        RunError
            When the disk is full; the shards written before stay good.
        """
        import numpy as np
        from safetensors.numpy import save_file

        if values.shape != (len(keys), self.width):
            raise ValueError(f"values of shape {values.shape} do not fit {len(keys)} keys of width {self.width}")
        if not keys:
            return
        table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 32)
        tensors = {"keys": table.copy(), "values": np.ascontiguousarray(values, dtype=np.float32)}
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        write_through(path, lambda temporary: _save(save_file, tensors, temporary))
        with self._lock:
            self._index(path)

    def get(self, keys: list[bytes], out: np.ndarray, columns: slice = slice(None)) -> None:
        """Read the rows of ``keys`` into ``out[:, columns]``; a memory-mapped read, one pass a shard.

        Raises
        ------
        KeyError
            When a key was never put; ask ``in`` first.
        """
        import numpy as np
        from safetensors import safe_open

        wanted: dict[int, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            number, row = self._place[key]
            wanted.setdefault(number, []).append((position, row))
        for number, pairs in wanted.items():
            positions, rows = (np.array(column) for column in zip(*pairs))
            with safe_open(self._shards[number], framework="numpy") as shard:
                out[positions, columns] = shard.get_tensor("values")[rows]


def _save(save_file: Any, tensors: dict[str, Any], path: Path) -> None:
    try:
        save_file(tensors, str(path))
    except Exception as error:  # the Rust side wraps the operating system's error in its own type
        text = str(error)
        if "No space left" in text or "os error 28" in text or "os error 27" in text or "File too large" in text:
            raise OSError(28, "No space left on device", str(path)) from error
        raise
