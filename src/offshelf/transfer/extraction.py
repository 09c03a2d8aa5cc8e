"""From pictures to rows of numbers: one decode for all backbones, flat memory, and a cache that outlives the process.

The work goes in windows of images. Each window is read and hashed in a small thread pool; what the cache lacks is
decoded once, cut into copies and tiles, and passed through every backbone that lacks it; each backbone then adds one
shard. Peak memory is that of a window and the result, and the result is memory-mapped when it is large.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offshelf.backbones.preprocess import to_input
from offshelf.data.corruptions import corrupt
from offshelf.data.geometry import blank_centre, copies, split_tiles
from offshelf.data.images import decode_image, read_bytes
from offshelf.data.samples import Samples
from offshelf.engine.threads import readers
from offshelf.errors import ImageError
from offshelf.transfer.networks import Network, View

READ_THREADS = 4


@dataclass
class Extraction:
    """Features of n pictures, and how they came about.

    features : (n, copies, D) float32, backbone-major then tile within D; NaN rows where a picture could not be read.
    errors : {row: ImageError}; keys : SHA-256 of each picture's bytes (None where unreadable); computed : pairs of
    distinct picture and backbone that the cache did not have; backbones : how many there are.
    """

    features: np.ndarray
    errors: dict[int, ImageError]
    keys: list[bytes | None]
    computed: int = 0
    backbones: int = 1
    seconds: float = 0.0
    routes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cached_share(self) -> float:
        """Share of the (readable picture, backbone) pairs that the cache had; equal pictures count once."""
        pairs = self.backbones * len({key for key in self.keys if key})
        return 1 - self.computed / pairs if pairs else 0.0


def extract(
    samples: Samples,
    networks: Sequence[Network],
    view: View,
    *,
    batch_size: int = 16,
    window: int = 256,
    memory_limit: int = 2**30,
    advance: Callable[[int], None] = lambda n: None,
) -> Extraction:
    """Features of every sample from every network, out of the cache where it has them.

    Parameters
    ----------
    samples : Samples of n pictures.
    networks : the backbones, in the order of their blocks in D.
    view : what is done to a picture first; the same as the networks'.
    batch_size : pieces of pictures a forward pass, at least; one picture's pieces stay together.
    window : pictures a shard; what a killed process loses at most.
    memory_limit : bytes above which the result is a memory-mapped temporary file.
    advance : called with the number of pictures done.
    """
    started = time.perf_counter()
    n, width = len(samples), sum(network.row_width for network in networks) // view.copies
    root = networks[0].root
    result = Extraction(_allocate((n, view.copies, width), memory_limit, root), {}, [None] * n, backbones=len(networks))
    with readers(READ_THREADS) as pool:
        for first in range(0, n, window):
            rows = range(first, min(first + window, n))
            _one_window(samples, rows, networks, view, batch_size, pool, result, advance)
    for network in networks:
        result.routes.append(
            dict(network.decision or {"route": "not needed", "cosine_median": None, "cosine_min": None})
        )
    result.seconds = time.perf_counter() - started
    return result


def _allocate(shape: tuple[int, ...], memory_limit: int, root: Path) -> np.ndarray:
    if int(np.prod(shape)) * 4 <= memory_limit:
        return np.full(shape, np.nan, dtype=np.float32)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=root, prefix="features-", suffix=".mmap") as handle:
        # The mapping outlives the name: the file goes when the array does, also after a kill.
        table = np.memmap(handle.name, dtype=np.float32, mode="w+", shape=shape)
    for first in range(0, shape[0], 256):
        table[first : first + 256] = np.nan
    return table


def _one_window(
    samples: Samples,
    rows: range,
    networks: Sequence[Network],
    view: View,
    batch_size: int,
    pool: ThreadPoolExecutor,
    result: Extraction,
    advance: Callable[[int], None],
) -> None:
    """Read and hash the window, compute what the cache lacks, store it, and read all of it back into the result."""
    images = {row: samples.image(row) for row in rows}
    contents: dict[bytes, dict[str, Any]] = {}  # each distinct picture once
    for row, read in zip(rows, pool.map(_read_and_hash, images.values())):
        if isinstance(read, ImageError):
            result.errors[row] = read
        else:
            result.keys[row] = read
            contents.setdefault(read, images[row])
    missing = [{key for key in contents if net.cache is None or key not in net.cache} for net in networks]
    jobs = [(key, image) for key, image in contents.items() if any(key in lacks for lacks in missing)]
    refused: dict[bytes, ImageError] = {}
    computed: list[dict[bytes, np.ndarray]] = [{} for _ in networks]
    for batch in _decoded_batches(jobs, max(1, batch_size // view.pieces), view, pool):
        refused |= {key: pieces for key, pieces in batch if isinstance(pieces, ImageError)}
        pieces_of = {key: pieces for key, pieces in batch if not isinstance(pieces, ImageError)}
        _compute_batch(pieces_of, networks, missing, view, pool, computed)
        advance(len(batch))
    for net, rows_of in zip(networks, computed):
        result.computed += len(rows_of)
        if rows_of and net.cache is not None:
            net.cache.put(list(rows_of), np.stack(list(rows_of.values())))
    for row in rows:
        key = result.keys[row]
        if key in refused:
            result.errors[row] = ImageError(samples.name(row), refused[key].reason)
            result.keys[row] = None
    _assemble(rows, networks, view, result)
    advance(len(rows) - len(jobs))


def _compute_batch(
    pieces_of: dict[bytes, list[torch.Tensor]],
    networks: Sequence[Network],
    missing: list[set[bytes]],
    view: View,
    pool: ThreadPoolExecutor,
    computed: list[dict[bytes, np.ndarray]],
) -> None:
    """Pass one batch of decoded pictures through every network that lacks them."""
    inputs: dict[tuple[Any, ...], torch.Tensor] = {}
    for net, lacks, rows_of in zip(networks, missing, computed):
        keys = [key for key in pieces_of if key in lacks]
        if not keys:
            continue
        # Equal preprocessing and an equal list of pictures: the tensor made for the last network serves again.
        signature = (*net.input_key, *keys)
        if signature not in inputs:
            prepare = partial(to_input, card=net.card, resize=view.resize)
            inputs[signature] = torch.stack(
                list(pool.map(prepare, (piece for key in keys for piece in pieces_of[key])))
            )
        rows_of.update(zip(keys, net.features(inputs[signature]).reshape(len(keys), net.row_width)))


def _read_and_hash(image: dict[str, Any]) -> bytes | ImageError:
    try:
        return hashlib.sha256(read_bytes(image)).digest()
    except ImageError as error:
        return error


def _decoded_batches(
    jobs: list[tuple[bytes, dict[str, Any]]], size: int, view: View, pool: ThreadPoolExecutor
) -> Iterator[list[tuple[bytes, list[torch.Tensor] | ImageError]]]:
    """Batches of (key, pieces); the next batch is decoded while the caller computes on this one."""
    batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    ahead = None
    for number in range(len(batches) + 1):
        coming = (
            [pool.submit(_pieces, key, image, view) for key, image in batches[number]] if number < len(batches) else []
        )
        if ahead is not None:
            yield [(key, future.result()) for (key, _), future in zip(batches[number - 1], ahead)]
        ahead = coming


def _pieces(key: bytes, image: dict[str, Any], view: View) -> list[torch.Tensor] | ImageError:
    """Decode one picture and cut it: copies outermost, then tiles row by row; each ``(C, h, w)`` uint8."""
    try:
        data, name = read_bytes(image), str(image.get("path") or "image")
        if hashlib.sha256(data).digest() != key:  # features under another picture's key would never be found out
            return ImageError(name, "the file changed while it was being read; run again when nothing writes to it")
        picture = decode_image(data, name=name, at_least=view.decode_at_least)
        if view.blank_area is not None:
            picture = blank_centre(picture, area=view.blank_area)
        if view.corruption is not None:
            picture = corrupt(picture, view.corruption, key)
        return [tile for copy in copies(picture, view.copies) for tile in split_tiles(copy, view.grid)]
    except ImageError as error:
        return error


def _assemble(rows: range, networks: Sequence[Network], view: View, result: Extraction) -> None:
    """Read the window's rows back from the cache into their block of the result."""
    keys = [result.keys[row] for row in rows]
    here = [row for row, key in zip(rows, keys) if key is not None]
    if not here:
        return
    found = [key for key in keys if key is not None]
    column = 0
    for net in networks:
        assert net.cache is not None
        values = np.empty((len(found), net.row_width), dtype=np.float32)
        net.cache.get(found, values)
        width = net.row_width // view.copies
        result.features[here, :, column : column + width] = values.reshape(len(found), view.copies, width)
        column += width
