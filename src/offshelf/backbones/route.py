"""The fast route: the same features in a third of the time, where it can be shown that they are the same.

A network is prepared once: batch norms folded into convolutions, memory laid out by channels, and weights in bfloat16
where the processor computes with it. bfloat16 keeps eight bits of a number, which some networks amplify, so the first
batch runs in single precision as well, through the network as it was loaded, and it stays only when the two agree:
median cosine of the *centred* features (minus their mean over the batch, which is what a classifier sees; the plain
cosine flatters) at least 0.995 and the worst at least 0.98. The route and both cosines belong with every result.

Half precision (float16) is never used on a processor: it is tens of times slower there than single precision.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from offshelf.backbones.fold import fold_batch_norms
from offshelf.backbones.readout import Readout, read
from offshelf.errors import UsageError

Route = Literal["bf16", "fp32"]

MEDIAN_AT_LEAST = 0.995
WORST_AT_LEAST = 0.98
CENTRED_FROM = 8
"""Fewest pictures whose mean says anything; below, features are compared as they are."""


class FastNetwork:
    """A frozen network, prepared for speed, with a guard.

    Parameters
    ----------
    model : nn.Module
        From `load_backbone`; it is copied, and stays as it is. It must be in evaluation mode.
    exact : bool
        Single precision whatever the processor can do; batch norms are folded, which changes nothing but rounding.
    route : {"bf16", "fp32"}, optional
        A route that was decided before, see `with_route`.

    Attributes
    ----------
    route : {"bf16", "fp32"} or None
        None until the first batch decides.
    cosine_median, cosine_min : float or None
        Agreement of bfloat16 with single precision on the first batch; None where nothing was compared.
    folded : int
        Batch norms folded into convolutions.
    note : str
        Why this route, in one sentence.
    """

    def __init__(self, model: nn.Module, exact: bool = False, route: Route | None = None) -> None:
        if route not in (None, "bf16", "fp32"):
            raise UsageError(f"route={route!r}: expected 'bf16' or 'fp32'")
        if any(module.training for module in model.modules()):
            raise UsageError("FastNetwork: the network is in training mode; call .eval() first, or use load_backbone")
        self.exact = exact
        self.route: Route | None = None
        self.cosine_median: float | None = None
        self.cosine_min: float | None = None
        self.note = ""
        self.folded = 0
        self._reference: nn.Module | None = model
        self._prepared: nn.Module | None = None
        if exact:
            self._settle("fp32", "single precision was asked for")
        elif route is not None:
            self._settle(route, "the route was decided before")
        elif not has_bf16(_device(model)):
            self._settle("fp32", "this processor has no bfloat16 arithmetic")

    @classmethod
    def with_route(cls, model: nn.Module, route: Route) -> FastNetwork:
        """Take a route that was decided before, so that new features are computed as the stored ones were."""
        return cls(model, route=route)

    def features(self, x: torch.Tensor, readout: Readout = "pooled") -> torch.Tensor:
        """Numbers for a batch of pictures; the first batch decides the route.

        Parameters
        ----------
        x : torch.Tensor
            Normalised pictures (B, 3, H, W), float.
        readout : {"pooled", "logits"}
            Before or after the network's own classifier.

        Returns
        -------
        torch.Tensor
            (B, d) float32, on the processor.
        """
        if self.route is None:
            return self._decide(x, readout)
        assert self._prepared is not None
        return run(self._prepared, x, self.route, readout)

    def decide(self, x: torch.Tensor, readout: Readout = "pooled") -> Route:
        """Decide the route on a batch, when it is not decided yet, and return it; 8 pictures or more say most."""
        if self.route is None:
            self._decide(x, readout)
        assert self.route is not None
        return self.route

    def _decide(self, x: torch.Tensor, readout: Readout) -> torch.Tensor:
        reference = self._reference
        assert reference is not None
        exact = run(reference, x, "fp32", readout)
        folded, self.folded = _folded_copy(reference)
        fast_network = _with_precision(copy.deepcopy(folded), "bf16")
        fast = run(fast_network, x, "bf16", readout)
        cosines, how = agreement(exact, fast)
        self.cosine_median, self.cosine_min = float(cosines.median()), float(cosines.min())
        # written so that a cosine that is not a number counts as disagreement
        keep = self.cosine_median >= MEDIAN_AT_LEAST and self.cosine_min >= WORST_AT_LEAST
        verdict = "agrees with" if keep else "departs from"
        why = (
            f"bfloat16 {verdict} single precision on the first {len(x)} pictures: {how} cosine "
            f"{self.cosine_median:.4f} in the median (at least {MEDIAN_AT_LEAST}), "
            f"{self.cosine_min:.4f} at worst (at least {WORST_AT_LEAST})"
        )
        if keep:
            self._settle("bf16", why, fast_network)
            return fast
        self._settle("fp32", why, _with_precision(folded, "fp32"))
        assert self._prepared is not None
        return run(self._prepared, x, "fp32", readout)

    def _settle(self, route: Route, why: str, prepared: nn.Module | None = None) -> None:
        if prepared is None:
            assert self._reference is not None
            prepared, self.folded = prepare(self._reference, route)
        self.route, self.note, self._prepared = route, why, prepared
        self._reference = None


def prepare(model: nn.Module, route: Route) -> tuple[nn.Module, int]:
    """Copy a network and make the copy fast: fold batch norms, lay memory out by channels, set the precision.

    Returns
    -------
    tuple
        The prepared copy, and the number of batch norms folded.
    """
    folded, count = _folded_copy(model)
    return _with_precision(folded, route), count


def _folded_copy(model: nn.Module) -> tuple[nn.Module, int]:
    duplicate = copy.deepcopy(model).eval()
    x = _probe(model)
    return duplicate, fold_batch_norms(duplicate, x)


def _with_precision(model: nn.Module, route: Route) -> nn.Module:
    """On a GPU weights stay in single precision and autocast does the rest, see `run`."""
    if route == "bf16" and _device(model).type == "cpu":
        model = model.to(torch.bfloat16)
    return model.to(memory_format=torch.channels_last)


def run(model: nn.Module, x: torch.Tensor, route: Route, readout: Readout) -> torch.Tensor:
    """One pass through a prepared network; (B, d) float32 on the processor."""
    device = _device(model)
    precision = torch.bfloat16 if route == "bf16" and device.type == "cpu" else torch.float32
    pictures = x.to(device=device, dtype=precision, memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        torch.autocast("cuda", torch.bfloat16, enabled=route == "bf16" and device.type == "cuda"),
    ):
        return read(model, pictures, readout).float().cpu()


def agreement(exact: torch.Tensor, fast: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Cosine, picture by picture, of two sets of features (B, d), and whether they were ``"centred"`` or ``"plain"``.

    Centred: minus their mean over the batch, from 8 pictures on. A picture whose features are the mean gives 0, which
    counts as disagreement: nothing can be said about it.
    """
    exact, fast = exact.double(), fast.double()
    if len(exact) < CENTRED_FROM:
        return torch.nn.functional.cosine_similarity(exact, fast, dim=1), "plain (fewer than 8 pictures)"
    return torch.nn.functional.cosine_similarity(exact - exact.mean(0), fast - fast.mean(0), dim=1), "centred"


def has_bf16(device: torch.device | None = None) -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX), or the GPU does."""
    if device is not None and device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device is not None and device.type != "cpu":
        return False
    return bool(instruction_sets() & {"avx512_bf16", "amx_bf16"})


def instruction_sets() -> set[str]:
    """Which of the instruction sets that change the numbers this processor has, in the kernel's names."""
    found = set()
    asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    for name, question in asked.items():
        if getattr(torch.cpu, question, bool)():
            found.add(name)
    return found


def cpu_signature() -> str:
    """The instruction set and torch's version, which decide the last bits of every feature; part of cache keys."""
    kind = torch.backends.cpu.get_cpu_capability().lower()
    extra = "".join(f"+{name}" for name in sorted(instruction_sets()))
    return f"{kind}{extra} torch-{torch.__version__}"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _probe(model: Any) -> torch.Tensor:
    """One random picture of the size the network expects, from a generator of its own."""
    card = getattr(model, "card", None)
    if card is None:
        from timm.data import resolve_model_data_config

        size = resolve_model_data_config(model)["input_size"][1:]
    else:
        size = card.input_size
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return x.to(_device(model))
