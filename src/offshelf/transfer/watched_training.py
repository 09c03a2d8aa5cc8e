"""One short training of a classifier with what a study of training wants to see: every loss and every gradient norm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Training, Watch, train
from offshelf.errors import OffshelfError
from offshelf.transfer.classification import Classification, ClassificationViews, LabelledPictures

JUDGED = 256  # pictures a pass when a network is only asked


@dataclass
class Course:
    """How a training went: loss and norm of the whole gradient of every step, probes, and where it broke off.

    diverged_at : the step (from 1) whose loss was no number any more, or None.
    """

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    diverged_at: int | None = None
    seconds: float = 0.0


class _DivergedError(OffshelfError):
    """The loss is no number any more."""


class _Watched(Classification):
    """A classification that keeps the loss and the gradient's norm of every step in ``course``."""

    def __init__(self, backbone: nn.Module, course: Course) -> None:
        super().__init__(backbone)
        self.course = course
        self.loss_now = float("nan")
        self.squares: dict[int, torch.Tensor] = {}
        for number, parameter in enumerate(self.parameters()):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._keeper(number))

    def _keeper(self, number: int) -> Callable[[torch.Tensor], None]:
        def keep(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self.squares[number] = parameter.grad.detach().float().square().sum()

        return keep

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss; a training whose loss is no number ends here."""
        told = super().forward(batch)
        self.loss_now = float(told["loss"].detach())
        if not np.isfinite(self.loss_now):
            raise _DivergedError(f"the loss became {self.loss_now} at step {len(self.course.losses) + 1}.")
        return told

    def after_step(self, step: int, total: int) -> None:
        """Keep what this step was like."""
        super().after_step(step, total)
        self.course.losses.append(self.loss_now)
        self.course.gradient_norms.append(float(torch.stack(list(self.squares.values())).sum().sqrt()))


def watched_training(
    model: nn.Module,
    data: LabelledPictures,
    recipe: Recipe,
    steps: int,
    *,
    seed: int = 0,
    launch: Launch | None = None,
    probe: Callable[[nn.Module], dict[str, Any]] | None = None,
    probe_every: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> Course:
    """Train all weights of ``model`` in place, by cross-entropy, for ``steps`` batches of ``recipe.batch_size``.

    The batches are a pure function of the data and the seed, so that two networks that are trained with the same of
    both see the same pictures in the same order.

    Parameters
    ----------
    model : a timm network with a classifier.
    probe, probe_every : called with the network before the first step, every so many steps, and after the last.

    Returns
    -------
    Course
        A loss that is no number ends the training, and is noted there.
    """
    course = Course()
    module = _Watched(model.requires_grad_(True), course)

    def asked(step: int, trained: Any) -> dict[str, Any]:
        found = {"step": step} | probe(trained.backbone)  # type: ignore[misc]
        course.probes.append(found)
        return dict(found)

    watch = Watch(advance=advance, probe=None if probe is None else asked, probe_every=probe_every or steps)
    plan = Training(recipe, steps=steps, batch_size=recipe.batch_size, seed=seed)
    began = time.perf_counter()
    try:
        train(module, data, plan, launch=launch, watch=watch)
    except _DivergedError:
        course.diverged_at = len(course.losses) + 1
        advance(steps - len(course.losses))
    model.to("cpu").eval()
    course.seconds = time.perf_counter() - began
    return course


def predicted_classes(model: nn.Module, pixels: np.ndarray, views: ClassificationViews) -> np.ndarray:
    """Most probable class ``(n,)`` of pictures ``(n, 3, S, S)`` uint8; a network that gives no numbers answers -1."""
    model.eval()
    found = []
    with torch.inference_mode():
        for first in range(0, len(pixels), JUDGED):
            batch = views.plain(pixels[first : first + JUDGED]).contiguous(memory_format=torch.channels_last)
            logits = model(batch).float()
            found.append(torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1))
    return torch.cat(found).numpy()
