"""From pictures to rows of numbers: one decode for all backbones, flat memory, and a cache that outlives the process.

The work goes in windows of images. Each window is read and hashed in a small thread pool; what the cache lacks is
decoded once, cut into copies and tiles, and passed through every backbone that lacks it; each backbone then adds one
shard. Peak memory is that of a window and the result, and the result is memory-mapped when it is large.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from offshelf.backbones.card import BackboneCard, card_of
from offshelf.backbones.load import load_backbone
from offshelf.backbones.preprocess import Resize, to_input
from offshelf.backbones.readout import Readout
from offshelf.backbones.route import FastNetwork, cpu_signature
from offshelf.data.geometry import blank_centre, copies, split_tiles
from offshelf.data.images import decode_image, read_bytes
from offshelf.data.samples import Samples
from offshelf.engine.cache import VERSION, FeatureCache, cache_root
from offshelf.engine.files import read_json, write_json
from offshelf.errors import ImageError

READ_THREADS = 4


@dataclass(frozen=True)
class View:
    """What is done to a picture before a backbone sees it; a part of every cache key.

    grid : (rows, columns) of tiles; copies : 1, 2 or 16 jittered copies; resize : "squash" or "crop" (see
    `offshelf.backbones.preprocess.to_input`); blank_area : share of the picture blanked at its centre, or None;
    exact : decode at full size and compute in fp32; decode_at_least : the short side in pixels below which a JPEG is
    never decoded at reduced scale (None: always at full size).
    """

    grid: tuple[int, int] = (1, 1)
    copies: int = 1
    resize: Resize = "squash"
    blank_area: float | None = None
    exact: bool = False
    decode_at_least: int | None = None

    @property
    def pieces(self) -> int:
        """Pieces of one picture: copies x tiles."""
        return self.copies * self.grid[0] * self.grid[1]


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


class Network:
    """One backbone with its cache: loaded, and its route decided, only when something must be computed."""

    def __init__(self, name: str, view: View, readout: Readout, input_size: int | None, root: Path | None) -> None:
        self.name, self.view, self.readout = name, view, readout
        self.root = root or cache_root()
        self.card, self.width = card_and_width(name, readout)
        self.resized = input_size is not None and tuple(self.card.input_size) != (input_size, input_size)
        if input_size is not None:
            self.card = replace(self.card, input_size=(input_size, input_size))
        self._fast: FastNetwork | None = None
        self._decision: dict[str, Any] | None = None
        self._cache: FeatureCache | None = None

    @property
    def row_width(self) -> int:
        """Numbers a picture: copies x tiles x channels."""
        return self.view.pieces * self.width

    @property
    def decision(self) -> dict[str, Any] | None:
        """The route taken for these weights on this kind of machine: decided once, then remembered on disk."""
        if self._decision is None:
            if self.view.exact:
                self._decision = {"route": "fp32", "cosine_median": None, "cosine_min": None}
            elif self._decision_path.is_file():
                self._decision = read_json(self._decision_path)
        return self._decision

    @property
    def _decision_path(self) -> Path:
        parts = [self.card.weights_hash, self.readout, list(self.card.input_size), cpu_signature()]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return self.root / VERSION / "routes" / f"{name}.json"

    @property
    def cache(self) -> FeatureCache | None:
        """The cache of this backbone's features; None until the route is decided."""
        if self._cache is None and self.decision is not None:
            space = {
                "weights": self.card.weights_hash,
                "input": [
                    list(self.card.input_size),
                    list(self.card.mean),
                    list(self.card.std),
                    self.card.interpolation,
                ],
                "crop_pct": self.card.crop_pct if self.view.resize == "crop" else None,
                "readout": self.readout,
                "grid": list(self.view.grid),
                "copies": self.view.copies,
                "resize": self.view.resize,
                "blank_area": self.view.blank_area,
                "decode_at_least": self.view.decode_at_least,
                "route": self.decision["route"],
            }
            self._cache = FeatureCache(space, self.row_width, self.root)
        return self._cache

    @property
    def input_key(self) -> tuple[Any, ...]:
        """Backbones with equal keys see the same input tensors, which are then made once."""
        card = self.card
        return (tuple(card.input_size), tuple(card.mean), tuple(card.std), card.interpolation, card.crop_pct)

    def features(self, batch: torch.Tensor) -> np.ndarray:
        """``batch (B, 3, H, W)`` -> ``(B, width)`` float32, by the decided route; the first batch decides."""
        if self._fast is None:
            model = load_backbone(self.name, num_classes=None if self.readout == "logits" else 0)
            if self.resized and hasattr(model, "set_input_size"):  # position tables are made for one size
                model.set_input_size(img_size=tuple(self.card.input_size))  # type: ignore[operator]
            if self.decision is None:
                self._fast = FastNetwork(model)
                self._fast.decide(batch, readout=self.readout)
                self._remember(self._fast)
            if self._fast is None or self._fast.route != self.decision["route"]:  # type: ignore[index]
                self._fast = FastNetwork.with_route(model, self.decision["route"])  # type: ignore[index]
        return self._fast.features(batch, readout=self.readout).numpy()

    def _remember(self, fast: FastNetwork) -> None:
        found = {"route": fast.route, "cosine_median": fast.cosine_median, "cosine_min": fast.cosine_min}
        if not self._decision_path.is_file():  # the first process to decide is followed by all
            write_json(self._decision_path, found | {"backbone": self.name, "cpu": cpu_signature()})
        self._decision = read_json(self._decision_path)


def networks_for(
    backbones: Sequence[str], view: View, readout: Readout, input_size: int | None = None, root: Path | None = None
) -> tuple[View, list[Network]]:
    """The backbones as networks over one view, with the scale of decoding settled for all of them."""
    networks = [Network(name, view, readout, input_size, root) for name in backbones]
    if not view.exact:
        # At twice the input's side a scaled JPEG decode moves pixels by less than a quarter of a level. The steps are
        # coarse, so that sets of backbones of like size share what the cache holds.
        scale = 640
        while scale < 2 * max(max(network.card.input_size) for network in networks):
            scale *= 2
        view = replace(view, decode_at_least=scale * max(view.grid))
        for network in networks:
            network.view = view
    return view, networks


_CARDS: dict[tuple[str, str, float], tuple[BackboneCard, int]] = {}


def card_and_width(name: str, readout: Readout) -> tuple[BackboneCard, int]:
    """A backbone's card and the measured width of its read-out; kept, so that clones of an estimator are cheap."""
    weights = Path(name) / "model.safetensors"
    changed = weights.stat().st_mtime if weights.is_file() else 0.0
    key = (name, readout, changed)
    if key not in _CARDS:
        model = load_backbone(name, num_classes=None if readout == "logits" else 0)
        card = card_of(model)
        _CARDS[key] = (card, card.width if readout == "pooled" else int(cast(int, model.num_classes)))
    return _CARDS[key]


def extract(
    samples: Samples,
    networks: Sequence[Network],
    view: View,
    *,
    batch_size: int = 32,
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
    with ThreadPoolExecutor(READ_THREADS) as pool:
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
    images = [samples.image(row) for row in rows]
    contents: dict[bytes, int] = {}  # one row for each distinct content
    for row, read in zip(rows, pool.map(_read_and_hash, images)):
        if isinstance(read, ImageError):
            result.errors[row] = read
        else:
            result.keys[row] = read
            contents.setdefault(read, row)
    missing = {id(net): {k for k in contents if net.cache is None or k not in net.cache} for net in networks}
    wanted = [key for key in contents if any(key in missing[id(net)] for net in networks)]
    computed: dict[int, tuple[list[bytes], list[np.ndarray]]] = {id(net): ([], []) for net in networks}
    per_batch = max(1, batch_size // view.pieces)
    refused: dict[bytes, ImageError] = {}
    jobs = [(key, images[contents[key] - rows.start]) for key in wanted]
    for batch in _decoded_batches(jobs, per_batch, view, pool):
        good = [(key, pieces) for key, pieces in batch if not isinstance(pieces, ImageError)]
        refused |= {key: pieces for key, pieces in batch if isinstance(pieces, ImageError)}
        inputs: dict[tuple[Any, ...], torch.Tensor] = {}
        for net in networks:
            todo = [pieces for key, pieces in good if key in missing[id(net)]]
            if not todo:
                continue
            keys = [key for key, _ in good if key in missing[id(net)]]
            # Equal preprocessing and an equal list of pictures: the tensor made for the last backbone serves again.
            signature = (*net.input_key, tuple(keys))
            if signature not in inputs:
                flat = [piece for pieces in todo for piece in pieces]
                inputs[signature] = torch.stack(list(pool.map(lambda p: to_input(p, net.card, view.resize), flat)))  # noqa: B023
            result.computed += len(keys)
            values = net.features(inputs[signature]).reshape(len(keys), net.row_width)
            computed[id(net)][0].extend(keys)
            computed[id(net)][1].append(values)
        advance(len(batch))
    for net in networks:
        keys, parts = computed[id(net)]
        if keys and net.cache is not None:
            net.cache.refresh()  # another process may have finished the same pictures meanwhile
            net.cache.put(keys, np.concatenate(parts))
    for row in rows:
        key = result.keys[row]
        if key in refused:
            result.errors[row] = ImageError(str(samples.name(row)), refused[key].reason)
            result.keys[row] = None
    _assemble(rows, networks, view, result)
    advance(len(rows) - len(wanted))


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
        coming = [pool.submit(_pieces, image, view) for _, image in batches[number]] if number < len(batches) else []
        if ahead is not None:
            yield [(key, future.result()) for (key, _), future in zip(batches[number - 1], ahead)]
        ahead = coming


def _pieces(image: dict[str, Any], view: View) -> list[torch.Tensor] | ImageError:
    """Decode one picture and cut it: copies outermost, then tiles row by row; each ``(C, h, w)`` uint8."""
    try:
        data = read_bytes(image)
        picture = decode_image(data, name=str(image.get("path") or "image"), at_least=view.decode_at_least)
        if view.blank_area is not None:
            picture = blank_centre(picture, area=view.blank_area)
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
