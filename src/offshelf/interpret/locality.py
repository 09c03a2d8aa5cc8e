"""How far attention looks: non-locality and gates, layer by layer and head by head (ConViT, arXiv 2103.10697).

d'Ascoli et al. 2021. With A (N, N) a head's attention over the patches of a g x g grid (rows
sum to 1) and |d_ij| the distance of two patches, in patches:

    non-locality      D = 1/N sum_ij A_ij |d_ij|          0: each patch sees itself; 4.14 (8 x 8), 7.28 (14 x 14): all
                                                          alike
    gate              sigma(lambda)                       share of positions against content; ConViT alone
    positions         s_ij = v . (dx, dy, dx^2 + dy^2)    strength -v_3, centre -v_xy / (2 v_3), when v_3 < 0

A is read where the network itself uses it (`offshelf.interpret.attention`), so that any vision transformer with
attention over all patches can be studied. Class and register tokens are left out, and rows divided by what remains of
them.

Departures: the published code feeds the output of the patch embedding to the attention of every layer, also of deep
ones; here each layer sees its true input, and ``official=True`` gives the published reading.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models.convit import GPSA
from torch import nn

from offshelf.backbones.card import name_of
from offshelf.backbones.convit import gated_layers
from offshelf.engine.undisturbed import undisturbed
from offshelf.errors import NotApplicable, UsageError
from offshelf.interpret.attention import attentions, watched

BATCH = 16  # pictures at once: a layer's attention takes batch x heads x N x N numbers

# ---- arithmetic ------------------------------------------------------------------------------------------------------


def distances(grid: tuple[int, int]) -> torch.Tensor:
    """Distance of every two patches of a grid (rows, columns), in patches: float64 (N, N), row by row."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).double()
    return torch.cdist(places, places)


def patches_only(attention: torch.Tensor, patches: int) -> torch.Tensor:
    """Attention among patches: (..., P + N, P + N) -> (..., N, N), the last N tokens; rows sum to 1 again.

    A row that gives nothing to patches stays without any.
    """
    inner = attention[..., -patches:, -patches:]
    return inner / inner.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(inner.dtype).tiny)


def non_locality(attention: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mean distance, in patches, at which attention looks; (..., N, N) -> (...); d'Ascoli et al. 2021.

    Parameters
    ----------
    attention : rows sum to 1, N = rows x columns patches; further tokens before them are left out (`patches_only`).
    grid : rows, columns.

    Raises
    ------
    UsageError
        When the maps are no squares of at least that many tokens.
    """
    n = grid[0] * grid[1]
    if attention.ndim < 2 or attention.shape[-1] != attention.shape[-2] or attention.shape[-1] < n:
        raise UsageError(
            f"attention of shape {tuple(attention.shape)}: expected (..., N, N) with the {n} patches of a grid of "
            f"{grid[0]} x {grid[1]}, and perhaps tokens before them"
        )
    if attention.shape[-1] > n:
        attention = patches_only(attention, n)
    away = distances(grid).to(attention.device)
    return (attention.double() * away).sum(dim=(-2, -1)) / n


def uniform_non_locality(grid: tuple[int, int]) -> float:
    """Non-locality of a head that looks everywhere alike: 0.8536 on 2 x 2, 4.1365 on 8 x 8, 7.2808 on 14 x 14."""
    return float(distances(grid).mean())


def positional_maps(vectors: torch.Tensor, side: int) -> torch.Tensor:
    """The positional attention of heads: (h, 3) -> (h, N, N), N = side^2; rows sum to 1.

    ``vectors`` are v of the scores v . (dx, dy, dx^2 + dy^2); what is added to all scores of a head alike cancels.
    """
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = rows.flatten().double(), columns.flatten().double()
    dx, dy = x[None] - x[:, None], y[None] - y[:, None]  # key minus query
    relative = torch.stack([dx, dy, dx**2 + dy**2])
    return torch.einsum("hr,rij->hij", vectors.double(), relative).softmax(dim=-1)


def centre_distance(vectors: torch.Tensor) -> torch.Tensor:
    """|v_xy| / (2 |v_3|): how far from the query, in patches, a head's positions centre; (..., 3) -> (...).

    Infinite or NaN where v_3 is 0 and there is no centre.
    """
    return vectors[..., :2].norm(dim=-1) / (2 * vectors[..., 2].abs())


# ---- reading a network -----------------------------------------------------------------------------------------------


def locality_study(model: nn.Module, pictures: torch.Tensor | None = None, *, official: bool = False) -> dict[str, Any]:
    """How local a network's attention is, for each layer and head, as plain numbers and lists.

    Parameters
    ----------
    model : a timm network, which is left as it was, also in the middle of a training.
    pictures : float (B, 3, H, W), optional
        Normalised, of the size the network is built for. Without any, gates and positions of a ConViT alone are told.
    official : bool
        Feed the output of the patch embedding to every layer, as the published code does, in place of its true input.

    Returns
    -------
    dict
        ``grid`` [rows, columns], ``pictures`` (how many), ``reading`` ("true inputs" or "patch embedding"),
        ``uniform`` (non-locality of looking everywhere alike) and ``layers``: each with ``name``, ``kind`` ("gated" or
        "ordinary"), ``gate`` and ``non_locality`` (means over heads, or None) and ``heads``. A head has
        ``non_locality`` (None without pictures), and where it is gated ``gate``, ``strength`` (1 / patches^2),
        ``centre`` [dx, dy] in patches or None where it has none, ``centre_distance``, ``position`` (v) and
        ``positional_non_locality``.

    Raises
    ------
    NotApplicable
        For a network without attention over all patches, and for one without gated layers when there are no pictures.
    UsageError
        For pictures of another shape.
    """
    gated = dict(gated_layers(model))
    if pictures is None and not gated:
        raise NotApplicable(
            f"{name_of(model)} has no gates: without pictures there is nothing to tell of its locality; give some, "
            "or a ConViT"
        )
    grid = _grid(model)
    far = {} if pictures is None else _non_localities(model, pictures, grid, official)
    names = list(far) if far else list(gated)
    layers = [_layer(name, gated.get(name), far.get(name), grid) for name in names]
    return {
        "grid": list(grid),
        "pictures": 0 if pictures is None else len(pictures),
        "reading": "patch embedding" if official else "true inputs",
        "uniform": uniform_non_locality(grid),
        "layers": layers,
    }


class LocalityProbe:
    """Watch locality while a network is trained: give it to `offshelf.engine.train.train` as ``Watch(probe=...)``.

    Parameters
    ----------
    pictures : float (B, 3, H, W)
        Normalised pictures, the same at every look.
    official : as `locality_study` takes it.

    Attributes
    ----------
    rows : list of dict
        ``step``, ``layer``, ``head``, ``gate``, ``non_locality`` and ``centre_distance``, one for each look, layer and
        head.
    """

    def __init__(self, pictures: torch.Tensor, official: bool = False) -> None:
        self.pictures, self.official = pictures, official
        self.rows: list[dict[str, Any]] = []

    def __call__(self, step: int, module: nn.Module) -> dict[str, Any]:
        """Look at the network, or at the ``backbone`` of what is trained; the means of each layer are returned."""
        network = getattr(module, "backbone", module)
        device = next(network.parameters()).device
        study = locality_study(network, self.pictures.to(device), official=self.official)
        for number, layer in enumerate(study["layers"]):
            for head in layer["heads"]:
                told = {key: head.get(key) for key in ("head", "gate", "non_locality", "centre_distance")}
                self.rows.append({"step": step, "layer": number} | told)
        return {key: [layer[key] for layer in study["layers"]] for key in ("gate", "non_locality")}


def _grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of a network's patches."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise NotApplicable(f"{name_of(model)} has no grid of patches; expected a vision transformer")
    return int(grid[0]), int(grid[1])


def _non_localities(
    model: Any, pictures: torch.Tensor, grid: tuple[int, int], official: bool
) -> dict[str, torch.Tensor]:
    """Layer -> non-locality of its heads (h,), mean over pictures, in the order of the network."""
    size = tuple(model.patch_embed.img_size)
    if pictures.ndim != 4 or not len(pictures) or tuple(pictures.shape[-2:]) != size:
        raise UsageError(
            f"pictures of shape {tuple(pictures.shape)}: expected (B, 3, {size[0]}, {size[1]}), the size this network "
            "is built for; resize them, or the network by set_input_size"
        )
    sums: dict[str, torch.Tensor] = {}

    def take(name: str, attention: torch.Tensor) -> None:  # at once, since the maps of all layers fill the memory
        _check(model, name, attention, grid[0] * grid[1])
        far = non_locality(attention, grid).sum(dim=0)
        sums[name] = sums[name] + far if name in sums else far

    with undisturbed(model), watched(model, take):
        for first in range(0, len(pictures), BATCH):
            batch = pictures[first : first + BATCH]
            if not official:
                model.forward_features(batch)
                continue
            embedded = model.patch_embed(batch)
            if embedded.ndim == 4:  # (B, rows, columns, width) in networks that take any size
                embedded = embedded.flatten(1, 2)
            for _, layer in attentions(model):
                layer(embedded)
    return {name: total.cpu() / len(pictures) for name, total in sums.items()}


def _check(model: nn.Module, name: str, attention: torch.Tensor, patches: int) -> None:
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    shape = tuple(attention.shape)
    if len(shape) != 4 or shape[2] != shape[3] or not 0 <= shape[3] - patches <= prefix:
        raise NotApplicable(
            f"{name_of(model)}: {name} gives attention of shape {shape}, not over all {patches} patches of a picture "
            "(it looks through windows, or at pooled tokens); expected a ConViT or a plain vision transformer"
        )


def _layer(name: str, gated: GPSA | None, far: torch.Tensor | None, grid: tuple[int, int]) -> dict[str, Any]:
    count = len(far) if far is not None else gated.num_heads if gated is not None else 0
    heads: list[dict[str, Any]] = [
        {"head": head, "non_locality": None if far is None else float(far[head])} for head in range(count)
    ]
    if gated is not None:
        for head, told in zip(heads, _positions(gated, grid[0])):
            head.update(told)
    return {
        "name": name,
        "kind": "ordinary" if gated is None else "gated",
        "gate": None if gated is None else math.fsum(head["gate"] for head in heads) / count,
        "non_locality": None if far is None else float(far.mean()),
        "heads": heads,
    }


def _positions(layer: GPSA, side: int) -> list[dict[str, Any]]:
    """Gate and positional attention of each head of a gated layer."""
    vectors = layer.pos_proj.weight.detach().double().cpu()
    gates = layer.gating_param.detach().double().cpu().sigmoid()
    far = non_locality(positional_maps(vectors, side), (side, side))
    away = centre_distance(vectors)
    told = []
    for v, gate, distance, reach in zip(vectors, gates, away, far):
        strength = -float(v[2])
        told.append(
            {
                "gate": float(gate),
                "position": [float(number) for number in v],
                "strength": strength,
                "centre": [float(v[0]) / (2 * strength), float(v[1]) / (2 * strength)] if strength > 0 else None,
                "centre_distance": float(distance) if math.isfinite(distance) else None,
                "positional_non_locality": float(reach),
            }
        )
    return told
